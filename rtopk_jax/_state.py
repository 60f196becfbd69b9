"""State and trees that both exchanges handle alike: rows in, rows out, and what is refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rtopk_jax import _axis, _checks, _exchange
from rtopk_jax._axis import AxisName
from rtopk_jax._metrics import ExchangeMetrics


def per_worker_fields(x: Any) -> tuple[str, ...]:
  """The fields of a state of this library whose leaves are rows, one of every worker."""
  return getattr(type(x), "per_worker", ())


def map_rows(
  function: Callable[[Any], Any], state: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
  """A whole chain's state with a function applied to the leaves that are rows, others as they are."""
  is_end = lambda x: bool(per_worker_fields(x)) or (is_leaf is not None and is_leaf(x))

  def visit(x):
    own = per_worker_fields(x)
    if not own:
      return x
    rows = lambda tree: jax.tree.map(function, tree, is_leaf=is_leaf)
    fields = {
      name: rows(field) if name in own else map_rows(function, field, is_leaf)
      for name, field in x._asdict().items()
    }
    return x._replace(**fields)

  return jax.tree.map(visit, state, is_leaf=is_end)


def increment(count: jax.Array) -> jax.Array:
  """The next step's count; it stays at the largest int32 once there."""
  return jnp.where(count < jnp.iinfo(jnp.int32).max, count + 1, count)


def settle(finite: jax.Array, new: ExchangeMetrics, old: ExchangeMetrics) -> ExchangeMetrics:
  """The metrics after a step: those of the last exchange that was not skipped, and the skips."""
  kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
  return kept._replace(skipped=old.skipped + (~finite).astype(jnp.int32))


def read_rows(rows: Any, updates: Any, axis_name: AxisName, field: str) -> list[jax.Array]:
  """This worker's part of a field of the state."""
  check_structure(updates, **{f"state.{field}": rows})
  paths = jax.tree.leaves_with_path(rows)
  for (path, row), g in zip(paths, jax.tree.leaves(updates), strict=True):
    _axis.check_row(row, g.shape, axis_name, f".{field}{jax.tree_util.keystr(path)}")
  return [row for _, row in paths]


def write_rows(new: list[jax.Array], rows: Any) -> Any:
  """A field of the state after a step, in the shape it had."""
  old, structure = jax.tree.flatten(rows)
  return jax.tree.unflatten(
    structure, [x.reshape(row.shape) for x, row in zip(new, old, strict=True)]
  )


def check_present(present: Any, axis_name: AxisName) -> jax.Array | None:
  """Refuses what does not say of one worker whether it takes part."""
  if present is None:
    return None
  present = jnp.asarray(present)
  if present.shape or present.dtype != jnp.bool_:
    raise TypeError(
      "present says whether this worker takes part, and must be a bool scalar, got "
      f"{present.dtype} of shape {present.shape}."
    )
  return _axis.to_varying(present, axis_name)


def check_options(average: Any, momentum: Any, nesterov: Any, clip_norm: Any) -> None:
  _checks.one_of("average", average, _exchange.AVERAGES)
  _checks.momentum("momentum", momentum)
  _checks.flag("nesterov", nesterov)
  if nesterov and not momentum:
    raise ValueError("nesterov=True has no effect with momentum=0; give a momentum in (0, 1).")
  if clip_norm is not None:
    _checks.real("clip_norm", clip_norm)
    if clip_norm <= 0:
      raise ValueError(f"clip_norm must be above 0, or None not to clip, got {clip_norm!r}.")


def local_updates(updates: Any, params: Any, axis_name: AxisName) -> Any:
  """A local gradient as arrays; refused for other dtypes, another structure, a sum over workers."""
  check_floating("updates", updates)
  check_structure(updates, params=params)
  updates = jax.tree.map(jnp.asarray, updates)
  _check_local(updates, axis_name)
  return updates


def check_floating(name: str, tree: Any) -> None:
  for path, leaf in jax.tree.leaves_with_path(tree):
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
      raise TypeError(
        f"{name}{jax.tree_util.keystr(path)} is of {dtype}, and only floating point leaves can be "
        "exchanged; keep others out, with optax.masked or optax.partition for example."
      )


def check_structure(updates: Any, **others: Any) -> None:
  structure = jax.tree.structure(updates)
  for name, other in others.items():
    if other is not None and jax.tree.structure(other) != structure:
      raise ValueError(
        f"updates and {name} have different structures: {differences(updates=updates, **{name: other})}."
      )


def differences(is_leaf: Callable[[Any], bool] | None = None, **trees: Any) -> str:
  """What each of two trees has and the other has not; their structures where it is not in the leaves."""
  paths = {
    name: [
      jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    ]
    for name, tree in trees.items()
  }
  found = []
  for name, other in (tuple(paths), tuple(reversed(paths))):
    missing = [f"{name}{path}" for path in paths[name] if path not in paths[other]]
    if missing:
      listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
      found.append(f"{other} has nothing for {listed}")
  structures = (str(jax.tree.structure(tree, is_leaf=is_leaf)) for tree in trees.values())
  return "; ".join(found) or " and ".join(structures)


def _check_local(updates: Any, axis_name: AxisName) -> None:
  if not _axis.tracks_varying(axis_name):
    return
  for path, leaf in jax.tree.leaves_with_path(updates):
    if not _axis.is_varying(leaf, axis_name):
      raise ValueError(
        f"updates{jax.tree_util.keystr(path)} is the same on all workers of axis {axis_name!r}: it "
        "was summed over them already, densely, by jax.grad with respect to replicated parameters. "
        "Take local gradients with rtopk_jax.local_value_and_grad(loss_fn, axis_name)."
      )
