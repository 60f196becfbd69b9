"""State and trees that both exchanges handle alike: rows in, rows out, and what is refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rtopk_jax import _axis, _checks
from rtopk_jax._axis import AxisName
from rtopk_jax.exchange import _collective
from rtopk_jax.transform import _gradients
from rtopk_jax.transform._metrics import ExchangeMetrics

# What each argument ``average`` stands for.
AVERAGES_BY_NAME = {**{name: name for name in _collective.AVERAGES}, "mean": "workers"}


def per_worker_fields(x: Any) -> tuple[str, ...] | None:
  """The fields of a state of this library whose leaves are rows, one of every worker; None for others' states."""
  return getattr(type(x), "per_worker", None)


def map_rows(function: Callable[[Any], Any], state: Any) -> Any:
  """A whole chain's state with a function applied to the leaves that are rows, others as they are."""

  def visit(x):
    own = per_worker_fields(x)
    if not own:
      return x
    fields = {
      name: jax.tree.map(function, field) if name in own else map_rows(function, field)
      for name, field in x._asdict().items()
    }
    return x._replace(**fields)

  return jax.tree.map(visit, state, is_leaf=lambda x: bool(per_worker_fields(x)))


def increment(count: jax.Array) -> jax.Array:
  """The next step's count; it stays at the largest int32 once there."""
  return jnp.where(count < jnp.iinfo(jnp.int32).max, count + 1, count)


def settle(finite: jax.Array, new: ExchangeMetrics, old: ExchangeMetrics) -> ExchangeMetrics:
  """The metrics after a step: those of the last exchange that was not skipped, and the skips."""
  kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
  return kept._replace(skipped=old.skipped + (~finite).astype(jnp.int32))


def read_rows(rows: Any, updates: Any, axis_name: AxisName, field: str) -> list[jax.Array]:
  """This worker's part of a field of the state."""
  _gradients.check_structure(updates, **{f"state.{field}": rows})
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


def check_options(average: Any, momentum: Any, nesterov: Any, clip_norm: Any) -> None:
  """Refuses options that both exchanges have, where they are out of range or without effect."""
  _checks.one_of("average", average, AVERAGES_BY_NAME)
  _checks.momentum("momentum", momentum)
  _checks.flag("nesterov", nesterov)
  if nesterov and not momentum:
    raise ValueError("nesterov=True has no effect with momentum=0; give a momentum in (0, 1).")
  if clip_norm is not None:
    _checks.real("clip_norm", clip_norm)
    if clip_norm <= 0:
      raise ValueError(f"clip_norm must be above 0, or None not to clip, got {clip_norm!r}.")


def check_kind(state: Any, kind: type) -> None:
  """Refuses what has another type than an exchange's state, such as what a checkpoint was restored to."""
  if isinstance(state, kind):
    return
  keys = f" with the keys {sorted(state)}" if isinstance(state, dict) else ""
  raise TypeError(
    f"state must be the {kind.__name__} that init makes, got {type(state).__name__}{keys}. Restore a "
    "checkpoint into the structure of rtopk_jax.init(…), for example with Orbax's StandardRestore of it."
  )


def check_fields(state: Any, updates: Any, **wanted: tuple[bool, str]) -> None:
  """Refuses a state of the same kind that was made by other options.

  Args:
    state: an exchange's.
    updates: the gradient; of one without leaves every state is as good.
    **wanted: by the name of a field whether it has to be there, and the option by which.
  """
  if not jax.tree.leaves(updates):
    return
  for field, (is_wanted, option) in wanted.items():
    value = getattr(state, field)
    is_there = not (isinstance(value, tuple) and not value)
    if is_there != is_wanted:
      raise ValueError(
        f"state.{field} is {'there' if is_there else '()'}, and the exchange has {option}: the state is that of another "
        "transformation. Make it with rtopk_jax.init(tx, params, mesh, axis_name), or tx.init inside the map."
      )


def common_end(path: tuple[Any, ...], other: tuple[Any, ...]) -> int:
  """How many keys at their ends two paths have in common."""
  count = 0
  for a, b in zip(reversed(path), reversed(other), strict=False):
    if a != b:
      break
    count += 1
  return count
