"""The mapped axis: the only module that asks JAX which workers there are and talks to them.

The same code runs under ``shard_map`` (with and without ``check_vma``), ``pmap`` and ``vmap``. They
differ in two ways, both of them dealt with here:

* Types. With ``check_vma=True`` every value carries the set of axes it varies over, and a collective
  has to say that its result no longer does. Elsewhere the same request is an error.
* Rows. State that differs between workers is stored as one array ``(num_workers, *shape)``. A manual
  axis (``shard_map``) hands a worker ``(1, *shape)``, a batched axis (``vmap``, and ``pmap``) hands it
  ``shape``. Either is taken, by its rank; whatever came in goes out.

What is traced and not run goes by ``_modes``.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _agreed, _modes
from rtopk_jax._modes import AxisName as AxisName
from rtopk_jax._modes import Traffic


def mark_own(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """The same value, which depends on the worker's number as far as a trace can tell."""
  return lax.optimization_barrier((x, lax.axis_index(axis_name)))[0]


def names(axis_name: AxisName) -> tuple[str, ...]:
  """The names of the axes as a tuple."""
  return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def is_bound(axis_name: AxisName) -> bool:
  """Whether this code runs inside a map over the axis (or a measurement)."""
  if _modes.measurement() is not None:
    return True
  if _modes.is_unmapped():
    return False
  try:
    lax.axis_size(axis_name)
  except NameError:
    return False
  return True


def size(axis_name: AxisName) -> int:
  """The number of workers.

  Raises:
    NameError: outside a map over the axis.
  """
  dry = _modes.measurement()
  if dry is not None:
    return dry.num_workers
  if not is_bound(axis_name):
    raise NameError(
      f"axis_name={axis_name!r} is not a mapped axis here. Call update inside jax.shard_map over a "
      f"mesh that has it, or inside jax.pmap or jax.vmap with axis_name={axis_name!r}."
    )
  return lax.axis_size(axis_name)


def index(axis_name: AxisName) -> jax.Array:
  """This worker's number, an int32 scalar."""
  return jnp.int32(0) if _modes.measurement() is not None else lax.axis_index(axis_name)


def _varying(x: jax.Array) -> frozenset[str]:
  kind = jax.typeof(x)
  manual = getattr(kind, "manual_axis_type", None)
  return manual.varying if manual is not None else getattr(kind, "vma", frozenset())


def tracks_varying(axis_name: AxisName) -> bool:
  """Whether types say which values vary over the axis (``shard_map`` with ``check_vma=True``)."""
  if _modes.measurement() is not None or _modes.analysing() or not is_bound(axis_name):
    return False
  return set(names(axis_name)) <= _varying(lax.axis_index(axis_name))


def is_varying(x: jax.Array, axis_name: AxisName) -> bool:
  """Whether a value varies over the whole axis by its type."""
  return set(names(axis_name)) <= _varying(x)


def to_varying(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """The same value, typed as this worker's own where types are tracked."""
  if not tracks_varying(axis_name):
    return x
  missing = tuple(name for name in names(axis_name) if name not in _varying(x))
  return lax.pcast(x, missing, to="varying") if missing else x


def varying_like(x: jax.Array, reference: jax.Array) -> jax.Array:
  """The same value, typed as varying over all axes that another varies over (a loop's first state)."""
  missing = tuple(_varying(reference) - _varying(x))
  return lax.pcast(x, missing, to="varying") if missing else x


_parts_axis: contextvars.ContextVar[AxisName | None] = contextvars.ContextVar(
  "rtopk_jax_parts_axis", default=None
)
# Words of a TPU's tile of a flat array.
TILE = 128


@contextlib.contextmanager
def in_parts(axis_name: AxisName | None) -> Iterator[None]:
  """Within this context each member of an axis, all of which have the same words, sends a part of them.

  The parts are put together again over that axis, so that a slow link carries nothing twice. Where it is not mapped,
  or None, everything is sent whole.
  """
  is_mapped = axis_name is not None and is_bound(axis_name)
  token = _parts_axis.set(axis_name if is_mapped else None)
  try:
    yield
  finally:
    _parts_axis.reset(token)


def _carry(x: jax.Array, send: Callable[[jax.Array], jax.Array], unit: int) -> jax.Array:
  """What a collective makes of ``x``, whose last axis may be sent in parts of whole units."""
  axis_name = _parts_axis.get()
  if axis_name is None or lax.axis_size(axis_name) == 1:
    return send(x)
  members, length = lax.axis_size(axis_name), x.shape[-1]
  part = -(-length // (members * unit)) * unit
  widths = [(0, 0)] * (x.ndim - 1) + [(0, members * part - length)]
  begin = lax.axis_index(axis_name) * part
  mine = lax.dynamic_slice_in_dim(jnp.pad(x, widths), begin, part, axis=x.ndim - 1)
  sent = send(mine)
  whole = _gather(sent, axis_name, axis=sent.ndim - 1, tiled=True)
  return lax.slice_in_dim(whole, 0, length, axis=sent.ndim - 1)


def _gather(x: jax.Array, axis_name: AxisName, **options: Any) -> jax.Array:
  if tracks_varying(axis_name):
    return lax.all_gather(to_varying(x, axis_name), axis_name, to="invarying", **options)
  return lax.all_gather(x, axis_name, **options)


def all_gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """Every worker's ``x``, shape ``(num_workers, *x.shape)``, the same on all of them."""
  return gather_by(x, axis_name, lambda part: _gather(part, axis_name), Traffic.all_gather)


def gather_by(
  x: jax.Array,
  axis_name: AxisName,
  send: Callable[[jax.Array], jax.Array],
  traffic: Callable[[int, int], Traffic],
) -> jax.Array:
  """``all_gather`` by some way of sending, which says what it does to a link for so many bytes and workers."""
  dry = _modes.measurement()
  if dry is not None:
    dry.record(traffic, x)
    return jnp.zeros((dry.num_workers, *x.shape), x.dtype)
  return _carry(x, send, TILE)


def agreed(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """The same value, typed as the same on all workers, which it is by whoever's word this is called on."""
  return _agreed.agreed(x, names(axis_name))


def all_to_all(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """Row i of every worker's ``x`` to worker i: shape (num_workers, m) before and after."""
  dry = _modes.measurement()
  if dry is not None:
    dry.record(Traffic.all_to_all, x)
    return x
  exchange = lambda part: lax.all_to_all(to_varying(part, axis_name), axis_name, 0, 0, tiled=True)
  return _carry(x, exchange, 1)


def psum(tree: Any, axis_name: AxisName) -> Any:
  """The sum of every worker's array, or of every array of its tree, in one collective."""
  dry = _modes.measurement()
  if dry is not None:
    dry.record(Traffic.all_reduce, *jax.tree.leaves(tree))
    return tree
  leaves, structure = jax.tree.flatten(tree)
  parted = [_part_to_sum(to_varying(x, axis_name)) for x in leaves]
  totals = lax.psum([part for part, _ in parted], axis_name)
  whole = [restore(total) for total, (_, restore) in zip(totals, parted, strict=True)]
  return jax.tree.unflatten(structure, whole)


def _part_to_sum(x: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """What this member of the axis of ``in_parts`` sends of an array, and what makes all of it of the sums.

  A part along the longest axis that can be dealt, which a flat array is filled up for; all, where none can, or where
  there is little.
  """
  axis_name = _parts_axis.get()
  members = 1 if axis_name is None else lax.axis_size(axis_name)
  fits = [axis for axis, length in enumerate(x.shape) if x.ndim == 1 or length % members == 0]
  if axis_name is None or members == 1 or x.size < members * TILE or not fits:
    return x, lambda total: total
  axis = max(fits, key=lambda axis: x.shape[axis])
  length = x.shape[axis]
  part = -(-length // members)
  filled = jnp.pad(x, (0, members * part - length)) if length % members else x
  mine = lax.dynamic_slice_in_dim(filled, lax.axis_index(axis_name) * part, part, axis)

  def restore(total: jax.Array) -> jax.Array:
    whole = _gather(total, axis_name, axis=axis, tiled=True)
    return lax.slice_in_dim(whole, 0, length, axis=axis)

  return mine, restore


def sum_over(tree: Any, axis_name: AxisName) -> tuple[Any, int]:
  """The sum of every worker's tree and of how many, over axes whose bytes are not counted."""
  if _modes.measurement() is not None:
    return tree, 1
  # In the shape of rows: of another, where an axis of 1,500 fills up tiles, a TPU would copy the
  # gradient before and after.
  sums = lax.psum(jax.tree.map(lambda x: x[None], tree), axis_name)
  return jax.tree.map(lambda x, total: total.reshape(x.shape), tree, sums), size(axis_name)


def model_axes(tree: Any, axis_name: AxisName) -> list[frozenset[str]]:
  """For each leaf the axes other than the workers' that it varies over.

  Types tell, or ``sharded`` does.

  Raises:
    ValueError: when other axes are mapped by hand and nothing tells.
  """
  declared = _modes.sharding()
  paths = jax.tree.leaves_with_path(tree)
  if declared is not None:
    return [_declared_axes(declared, path) for path, _ in paths]
  if tracks_varying(axis_name):
    return [frozenset(_varying(x) - set(names(axis_name))) for _, x in paths]
  others = [name for name in _manual_axes() if name not in names(axis_name)]
  others = [name for name in others if lax.axis_size(name) > 1]
  if others and _modes.measurement() is None:
    raise ValueError(
      f"with check_vma=False nothing says which gradients are sharded over the axes {others!r}, which are "
      f"mapped by hand beside axis_name={axis_name!r}. Use jax.shard_map with check_vma=True, its "
      "default, or rtopk_jax.make_train_step with param_specs."
    )
  return [frozenset()] * len(paths)


def _declared_axes(sharding: _modes.Sharding, path: tuple[Any, ...]) -> frozenset[str]:
  if path in sharding.axes:
    return sharding.axes[path]
  if not sharding.every:
    return frozenset()
  raise ValueError(
    f"updates{jax.tree_util.keystr(path)} reach the exchange by another path than any parameter has, and with "
    "param_specs it cannot be told how they are sharded. Put what rearranges them after the exchange."
  )


def every_model_axis(tree: Any, axis_name: AxisName) -> frozenset[str]:
  """All axes other than the workers' that some leaf of a tree varies over, whatever its structure."""
  declared = _modes.sharding()
  if declared is not None:
    return declared.every
  return frozenset().union(*model_axes(tree, axis_name))


def over_model(x: jax.Array, axes: frozenset[str]) -> jax.Array:
  """The sum over shards of a model."""
  return lax.psum(x, tuple(sorted(axes))) if axes else x


def index_with_shards(axis_name: AxisName, axes: frozenset[str]) -> jax.Array:
  """A number of its own for every shard of a model, sharded over some axes, of every worker."""
  number = index(axis_name)
  for name in sorted(axes):
    number = number * lax.axis_size(name) + lax.axis_index(name)
  return number


def new_row(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, axis_name: AxisName) -> jax.Array:
  """Zeros for what one worker keeps of a leaf; outside a mapped axis, zero rows."""
  _modes.note_rows(axis_name)
  if not is_bound(axis_name):
    return jnp.zeros((0, *shape), dtype)
  return as_row(jnp.zeros(shape, dtype), axis_name)


def as_row(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """What one worker keeps of a leaf, as its state has it.

  Outside a mapped axis there is no worker and so no row: the array has zero of them, and cannot be
  mistaken for the state of one worker that everybody shares.
  """
  _modes.note_rows(axis_name)
  if not is_bound(axis_name):
    return jnp.zeros((0, *x.shape), x.dtype)
  if _modes.measurement() is not None:
    return x
  if _modes.analysing():
    return mark_own(x, axis_name)
  if set(names(axis_name)) <= set(_manual_axes()):
    return to_varying(x[None], axis_name)
  return x


def _manual_axes() -> tuple[str, ...]:
  return jax.sharding.get_abstract_mesh().manual_axes


def check_row(row: jax.Array, shape: tuple[int, ...], axis_name: AxisName, where: str) -> None:
  """Refuses what cannot be what this worker keeps of a leaf of some shape.

  Raises:
    ValueError: when the array is not one worker's row.
  """
  remedy = (
    "Make the state with rtopk_jax.init(tx, params, mesh, axis_name) and shard it by "
    "rtopk_jax.state_specs(tx, params, axis_name), or call tx.init inside the mapped function."
  )
  if row.shape in (shape, (1, *shape)):
    if not tracks_varying(axis_name) or is_varying(row, axis_name):
      return
    reason = "is the same on all workers"
  elif row.shape == (0, *shape):
    reason = "was made outside the mapped axis, where no worker has a row"
  else:
    reason = (
      f"has shape {row.shape}, not this worker's row {(1, *shape)} of (num_workers, *{shape})"
    )
    if row.shape[1:] == shape:
      remedy += (
        " Where the state is that of another number of workers, "
        "rtopk_jax.resize_workers(state, new_count) makes it that of new_count."
      )
  raise ValueError(f"state{where} {reason} (axis_name={axis_name!r}). {remedy}")
