"""How fast this device compresses: the part of the cost model that has to be measured."""

import numbers
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rtopk_jax import _checks
from rtopk_jax.exchange._cost import LocalSpeed
from rtopk_jax.mesh._specs import init, state_specs
from rtopk_jax.select._named import rtop_k
from rtopk_jax.select._slices import SparseSlices
from rtopk_jax.transform import _gradients
from rtopk_jax.transform._dense import dense_exchange
from rtopk_jax.transform._metrics import shapes
from rtopk_jax.transform._sparse import sparse_exchange
from rtopk_jax.vector._vector import MAX_SIZE
from rtopk_jax.wire._wire import Wire

_AXIS = "alone"
# r/k, which is the number of workers in the paper; most users have few.
_SUBSAMPLE = 4
# By how much the leaves of the smaller model are shorter, along their first axis.
_SHORTER = 16


def measure_local(params: Any, density: float = 0.001, *, repeats: int = 5) -> LocalSpeed:
  """Times this worker's share of an exchange, on one device and without a link.

  An exchange with nobody else does all that a worker does by itself, and as a ``ReduceScatter`` all that an
  owner does, of the whole vector. It is also timed with leaves of a sixteenth. The line through both times, drawn
  on to no entries, gives the overhead. Where several workers share a machine, let all of them measure at once.

  Args:
    params: the parameters, arrays or ``ShapeDtypeStruct``; a number d, 1e6 for example, stands for one vector.
    density: k/d.
    repeats: how often each is timed; the median counts.

  Returns:
    ``LocalSpeed``, for ``advise``.

  Raises:
    TypeError: when ``repeats`` is not an integer, or for leaves that are not floating point.
    ValueError: when ``repeats`` is below 1, for a density outside (0, 1], for a number of parameters that is
      not whole, below 1 or more than int32 can index.

  Examples:
    >>> import rtopk_jax
    >>> local = rtopk_jax.measure_local(10_000, repeats=1)
    >>> 0 < local.overhead + 10_000 * local.compress < 10
    True
  """
  _checks.density("density", density)
  _checks.at_least("repeats", repeats, 1, integer=True)
  if isinstance(params, numbers.Real):
    params = [jax.ShapeDtypeStruct((_checks.whole("params", params),), jnp.float32)]
  _gradients.check_exchangeable("params", params)
  params = shapes(params)
  short = jax.tree.map(_shorter, params)
  size, shorter = (sum(leaf.size for leaf in jax.tree.leaves(x)) for x in (params, short))
  if not size:
    raise ValueError("params must have at least one entry, got none.")
  _checks.at_most("params", size, MAX_SIZE, "the entries that int32 can index")
  k = max(1, round(density * size))
  place, sort = _place(k, size, repeats) / k, _sort(k, repeats) / (2 * k)

  def exchange(params, collective):
    tx = sparse_exchange(rtop_k(density, _SUBSAMPLE), _AXIS, dense=False, collective=collective)
    return _alone(tx, params, repeats)

  gathered, reduced = exchange(params, "all_gather"), exchange(params, "reduce_scatter")
  plain = _alone(dense_exchange(_AXIS), params, repeats)
  alone = max(0.0, gathered - place * k)
  overhead, compress = _line((shorter, size), (exchange(short, "all_gather"), alone))
  owning = reduced - alone - (2 * sort + 4 * place) * k
  return LocalSpeed(compress, place, plain / size, overhead, max(0.0, owning) / size, sort)


def _line(sizes: tuple[int, int], seconds: tuple[float, float]) -> tuple[float, float]:
  """A line through the times of a smaller and a larger model: seconds at size 0, and seconds an entry.

  A small model lies in caches, and a line through its time might begin below 0. So neither number is below 0, and
  the line goes through the larger model's time in any case.
  """
  (small, large), (brief, long) = sizes, seconds
  rise = max(0.0, long - brief) / max(1, large - small)
  start = min(max(0.0, brief - rise * small), long)
  return start, (long - start) / large


def _shorter(leaf: jax.ShapeDtypeStruct | jax.Array) -> jax.ShapeDtypeStruct:
  """A leaf with a first axis of a sixteenth."""
  shape = tuple(-(-length // _SHORTER) for length in leaf.shape[:1]) + leaf.shape[1:]
  return jax.ShapeDtypeStruct(shape, leaf.dtype)


def _place(k: int, size: int, repeats: int) -> float:
  """Seconds to decode a message and add it to a vector."""
  wire = Wire()
  spread = jnp.arange(k, dtype=jnp.int32) * (size // k)
  words = wire.encode(SparseSlices(jnp.ones(k, jnp.float32), spread, size))

  def add(total, words):
    sent = wire.decode(words, k, size)
    return total.at[sent.indices].add(sent.values, unique_indices=True, indices_are_sorted=True)

  add = jax.jit(add, donate_argnums=0)
  total = jnp.zeros(size, jnp.float32)

  def run():
    nonlocal total
    total = add(total, words)
    return total

  return _median(run, repeats)


def _sort(k: int, repeats: int) -> float:
  """Seconds to sort k entries by their owners, and k numbers that came for one."""
  mixed = jax.random.bits(jax.random.key(0), (k,), jnp.uint32)
  owners, numbers = (mixed % 8).astype(jnp.int32), (mixed >> 1).astype(jnp.int32)

  def both(owners, numbers):
    entries = lax.iota(jnp.int32, k)
    return lax.sort((owners, entries), num_keys=1, is_stable=True), lax.sort(numbers)

  both = jax.jit(both)
  return _median(lambda: both(owners, numbers), repeats)


def _alone(tx: optax.GradientTransformation, params: Any, repeats: int) -> float:
  """Seconds of an update of one worker, whose gradient nobody needs afterwards, as in training."""
  mesh = Mesh(np.array(jax.local_devices()[:1]), (_AXIS,))
  specs = state_specs(tx, params, _AXIS)

  def exchange(state, gradient):
    updates, state = tx.update(jax.tree.map(lambda x: x[0], gradient), state)
    # Donated memory goes to the first result of its size: arguments and results are in the same order.
    return state, jax.tree.map(lambda x: x[None], updates)

  mapped = jax.shard_map(
    exchange, mesh=mesh, in_specs=(specs, P(_AXIS)), out_specs=(specs, P(_AXIS))
  )
  step = jax.jit(mapped, donate_argnums=(0, 1))
  rows = NamedSharding(mesh, P(_AXIS))
  draw = lambda x: np.random.default_rng(0).standard_normal((1, *x.shape), np.float32)
  drawn = jax.device_put(jax.tree.map(draw, params), rows)
  copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
  state, gradient = init(tx, zeros, mesh, _AXIS), copy(drawn)

  def fill():
    nonlocal gradient
    gradient = None
    gradient = copy(drawn)
    return gradient

  def update():
    nonlocal state, gradient
    state, gradient = step(state, gradient)
    return state, gradient

  return _median(update, repeats, fill)


def _median(run: Callable[[], Any], repeats: int, first: Callable[[], Any] = lambda: None) -> float:
  """Seconds of a function that is called so often, after another one that does not count."""
  seconds = []
  for _ in range(repeats + 1):
    jax.block_until_ready(first())
    begun = time.perf_counter()
    jax.block_until_ready(run())
    seconds.append(time.perf_counter() - begun)
  # The first call compiles.
  return float(np.median(seconds[1:]))
