"""The mapped axis: the only module that asks JAX which workers there are and talks to them.

The same code runs under ``shard_map`` (with and without ``check_vma``), ``pmap`` and ``vmap``. They
differ in two ways, both of them dealt with here:

* Types. With ``check_vma=True`` every value carries the set of axes it varies over, and a collective
  has to say that its result no longer does. Elsewhere the same request is an error.
* Rows. State that differs between workers is stored as one array ``(num_workers, *shape)``. A manual
  axis (``shard_map``) hands a worker ``(1, *shape)``, a batched axis (``vmap``, and ``pmap``) hands it
  ``shape``. Either is taken, by its rank; whatever came in goes out.

A third way to run is a *measurement*: no axis at all, collectives write down what they would have
sent and return zeros of the right shape. That is how bytes are counted from the real buffers.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

AxisName = str | tuple[str, ...]


@dataclasses.dataclass
class Measurement:
  """A dry run.

  Attributes:
    num_workers: n.
    step: the step meant; None is the last stage of a warm-up.
    operands: of every collective, as (name, bytes).
    choices: what every ``Auto`` chose.
  """

  num_workers: int
  step: int | None
  operands: list[tuple[str, int]] = dataclasses.field(default_factory=list)
  choices: list[Any] = dataclasses.field(default_factory=list)

  def record(self, name: str, x: jax.Array) -> None:
    self.operands.append((name, x.size * x.dtype.itemsize))


_measurement: contextvars.ContextVar[Measurement | None] = contextvars.ContextVar(
  "rtopk_jax_measurement", default=None
)


def measurement() -> Measurement | None:
  """The dry run under way, if any."""
  return _measurement.get()


@contextlib.contextmanager
def measure(num_workers: int, step: int | None) -> Iterator[Measurement]:
  """Within this context collectives are recorded instead of run."""
  token = _measurement.set(Measurement(num_workers, step))
  try:
    yield _measurement.get()  # pyright: ignore[reportReturnType]
  finally:
    _measurement.reset(token)


_row_axes: contextvars.ContextVar[set[AxisName] | None] = contextvars.ContextVar(
  "rtopk_jax_row_axes", default=None
)


@contextlib.contextmanager
def row_axes() -> Iterator[set[AxisName]]:
  """Within this context it is noted which axes rows are made for."""
  token = _row_axes.set(set())
  try:
    yield _row_axes.get()  # pyright: ignore[reportReturnType]
  finally:
    _row_axes.reset(token)


def _note_rows(axis_name: AxisName) -> None:
  found = _row_axes.get()
  if found is not None:
    found.add(axis_name)


def names(axis_name: AxisName) -> tuple[str, ...]:
  """The names of the axes as a tuple."""
  return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def is_bound(axis_name: AxisName) -> bool:
  """Whether this code runs inside a map over the axis (or a measurement)."""
  if measurement() is not None:
    return True
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
  dry = measurement()
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
  return jnp.int32(0) if measurement() is not None else lax.axis_index(axis_name)


def _varying(x: jax.Array) -> frozenset[str]:
  kind = jax.typeof(x)
  manual = getattr(kind, "manual_axis_type", None)
  return manual.varying if manual is not None else getattr(kind, "vma", frozenset())


def tracks_varying(axis_name: AxisName) -> bool:
  """Whether types say which values vary over the axis (``shard_map`` with ``check_vma=True``)."""
  if measurement() is not None or not is_bound(axis_name):
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
def in_parts(axis_name: AxisName) -> Iterator[None]:
  """Within this context each member of an axis, all of which have the same words, sends a part of them.

  The parts are put together again over that axis, so that a slow link carries nothing twice.
  """
  token = _parts_axis.set(axis_name)
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
  dry = measurement()
  if dry is not None:
    dry.record("all_gather", x)
    return jnp.zeros((dry.num_workers, *x.shape), x.dtype)
  return _carry(x, lambda part: _gather(part, axis_name), TILE)


def all_to_all(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """Row i of every worker's ``x`` to worker i: shape (num_workers, m) before and after."""
  dry = measurement()
  if dry is not None:
    dry.record("all_to_all", x)
    return x
  exchange = lambda part: lax.all_to_all(to_varying(part, axis_name), axis_name, 0, 0, tiled=True)
  return _carry(x, exchange, 1)


def psum(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """The sum of every worker's ``x``."""
  dry = measurement()
  if dry is not None:
    dry.record("psum", x)
    return x
  return lax.psum(to_varying(x, axis_name), axis_name)


def sum_over(tree: Any, axis_name: AxisName) -> tuple[Any, int]:
  """The sum of every worker's tree and of how many, over axes whose bytes are not counted."""
  if measurement() is not None:
    return tree, 1
  # In the shape of rows: of another, where an axis of 1,500 fills up tiles, a TPU would copy the
  # gradient before and after.
  sums = lax.psum(jax.tree.map(lambda x: x[None], tree), axis_name)
  return jax.tree.map(lambda x, total: total.reshape(x.shape), tree, sums), size(axis_name)


def model_axes(x: jax.Array, axis_name: AxisName) -> frozenset[str]:
  """The axes other than the workers' that a value varies over, where types tell."""
  return frozenset(_varying(x) - set(names(axis_name)))


def over_model(x: jax.Array, axes: frozenset[str]) -> jax.Array:
  """The sum over shards of a model."""
  return lax.psum(x, tuple(sorted(axes))) if axes else x


def model_index(axes: frozenset[str]) -> list[jax.Array]:
  """Which shard of a model this is, axis by axis."""
  return [lax.axis_index(name) for name in sorted(axes)]


def new_row(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, axis_name: AxisName) -> jax.Array:
  """Zeros for what one worker keeps of a leaf; outside a mapped axis, zero rows."""
  _note_rows(axis_name)
  if not is_bound(axis_name):
    return jnp.zeros((0, *shape), dtype)
  return as_row(jnp.zeros(shape, dtype), axis_name)


def as_row(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """What one worker keeps of a leaf, as its state has it.

  Outside a mapped axis there is no worker and so no row: the array has zero of them, and cannot be
  mistaken for the state of one worker that everybody shares.
  """
  _note_rows(axis_name)
  if not is_bound(axis_name):
    return jnp.zeros((0, *x.shape), x.dtype)
  if measurement() is None and set(names(axis_name)) <= set(_manual_axes()):
    return to_varying(x[None], axis_name)
  return x


def _manual_axes() -> tuple[str, ...]:
  return jax.sharding.get_abstract_mesh().manual_axes


def check_row(row: jax.Array, shape: tuple[int, ...], axis_name: AxisName, where: str) -> None:
  """Refuses what cannot be what this worker keeps of a leaf of some shape.

  Raises:
    ValueError: when the array is not one worker's row.
  """
  wrong = row.shape not in (shape, (1, *shape))
  if not wrong and tracks_varying(axis_name):
    wrong = not is_varying(row, axis_name)
  if wrong:
    reason = (
      "was made outside the mapped axis, where no worker has a row"
      if row.shape == (0, *shape)
      else f"has shape {row.shape}, not this worker's row {(1, *shape)} of (num_workers, *{shape})"
      if row.shape not in (shape, (1, *shape))
      else "is the same on all workers"
    )
    raise ValueError(
      f"state{where} {reason} (axis_name={axis_name!r}). Make the state with rtopk_jax.init(tx, "
      "params, mesh, axis_name) and shard it by rtopk_jax.state_specs(tx, params, axis_name), or "
      "call tx.init inside the mapped function."
    )
