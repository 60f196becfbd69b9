"""How fast this device compresses: the part of the cost model that has to be measured."""

import numbers
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rtopk_jax import _checks, _state
from rtopk_jax._dense import dense_exchange
from rtopk_jax._metrics import shapes
from rtopk_jax._plan import LocalSpeed
from rtopk_jax._select import SparseSlices
from rtopk_jax._selectors import rtop_k
from rtopk_jax._sharding import init, state_specs
from rtopk_jax._transform import sparse_exchange
from rtopk_jax._vector import MAX_SIZE
from rtopk_jax._wire import Wire

_AXIS = "alone"
# r/k: the paper's r/k is the number of workers, and few of those are many here.
_SUBSAMPLE = 4


def measure_local(params: Any, density: float = 0.001, *, repeats: int = 5) -> LocalSpeed:
  """Times this worker's share of an exchange, on one device and without a link.

  An exchange with nobody else does all that a worker does by itself. Where several workers share a
  machine, let all of them measure at once.

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
    >>> 0 < local.compress < 1
    True
  """
  _checks.density("density", density)
  _checks.at_least("repeats", repeats, 1, integer=True)
  if isinstance(params, numbers.Real):
    params = [jax.ShapeDtypeStruct((_checks.whole("params", params),), jnp.float32)]
  _state.check_floating("params", params)
  params = shapes(params)
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  if not size:
    raise ValueError("params must have at least one entry, got none.")
  _checks.at_most("params", size, MAX_SIZE, "the entries that int32 can index")
  k = max(1, round(density * size))
  place = _place(k, size, repeats) / k
  compressed = _alone(
    sparse_exchange(rtop_k(density, _SUBSAMPLE), _AXIS, dense=False), params, repeats
  )
  plain = _alone(dense_exchange(_AXIS), params, repeats)
  return LocalSpeed(max(0.0, compressed - place * k) / size, place, plain / size)


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


def _alone(tx: optax.GradientTransformation, params: Any, repeats: int) -> float:
  """Seconds of an update of one worker."""
  mesh = Mesh(np.array(jax.local_devices()[:1]), (_AXIS,))
  specs = state_specs(tx, params, _AXIS)
  step = jax.jit(
    jax.shard_map(
      lambda g, state: tx.update(jax.tree.map(lambda x: x[0], g), state),
      mesh=mesh,
      in_specs=(P(_AXIS), specs),
      out_specs=(P(), specs),
    ),
    donate_argnums=1,
  )
  rows = NamedSharding(mesh, P(_AXIS))
  draw = lambda x: np.random.default_rng(0).standard_normal((1, *x.shape), np.float32)
  gradient = jax.device_put(jax.tree.map(draw, params), rows)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
  state = init(tx, zeros, mesh, _AXIS)

  def update():
    nonlocal state
    updates, state = step(gradient, state)
    return updates, state

  return _median(update, repeats)


def _median(run: Callable[[], Any], repeats: int) -> float:
  jax.block_until_ready(run())
  seconds = []
  for _ in range(repeats):
    begun = time.perf_counter()
    jax.block_until_ready(run())
    seconds.append(time.perf_counter() - begun)
  return float(np.median(seconds))
