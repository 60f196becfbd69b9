"""Whether a platform's ways of doing things give what others do: every operation, selections, whole exchanges.

Operations of ``rtopk_jax.kernels`` are traced for a platform and run on its device, and beside that traced for CPUs
and run on one. Selections and exchanges are compared with the NumPy reference of the tests, blocks with the CPU's way.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rtopk_jax
from rtopk_jax.kernels import _accumulate, _gather, _prefix_sum, _scatter, here
from rtopk_jax.kernels._portable import Portable
from rtopk_jax.kernels._statistics import sum_and_max
from rtopk_jax.kernels._threshold import RaggedRows, Threshold, exact_threshold
from rtopk_jax.select._keys import magnitude_keys
from rtopk_jax.vector._vector import Place, Vector, places

# Sums of floats in another order.
_CLOSE = 1e-5
_COUNT = np.int32(1)


class Check(NamedTuple):
  """Something that is right or not.

  Attributes:
    name: what it is.
    run: raises where it is wrong.
  """

  name: str
  run: Callable[[], None]


class _Data(NamedTuple):
  """What operations work on."""

  rng: np.random.Generator
  size: int

  @property
  def shapes(self) -> list[tuple[int, ...]]:
    """A flat leaf, one by rows, and one of short rows; about ``size`` entries in all."""
    rows = max(1, self.size // 3 // 48)
    return [(self.size // 3,), (rows, 48), (rows, 16, 3)]

  @property
  def where(self) -> tuple[Place, ...]:
    return places(self.shapes)

  def leaves(self) -> tuple[np.ndarray, ...]:
    return tuple(self.rng.laplace(size=shape).astype(np.float32) for shape in self.shapes)

  def integers(self, most: int, count: int) -> np.ndarray:
    return self.rng.integers(0, most + 1, count).astype(np.int32)

  def positions(self) -> np.ndarray:
    """Ascending, one in a hundred, all of entries."""
    own = [np.arange(place.first, place.first + place.size) for place in self.where]
    every = np.concatenate(own)
    return np.sort(self.rng.choice(every, max(4, every.size // 100), False)).astype(np.int32)


def _of_loops(data: _Data) -> Iterator[tuple[str, Callable[..., Any], tuple]]:
  """Operations that are loops, as functions of arrays."""
  number = np.int32(data.size)

  def once_or_more(x):
    return here().once_or_more(lambda x: x <= 5, lambda x: x // 3, x)

  def once(x):
    return here().once(lambda state: (jnp.bool_(False), 2 * state[1]), (jnp.bool_(True), x))

  def up_to(x):
    halved = lambda x: x // 2
    return here().up_to(31, lambda x: x == 0, halved, x)

  words = data.rng.integers(0, 1 << 30, (max(1, data.size // 16), 16)).astype(np.int32)

  def reduce_rows(words):
    return here().reduce_rows(sum_and_max, (words & 1023, words >> 10))

  def offsets(count):
    return [jnp.int32(x) for x in here().offsets([0, 7, 9], count)]

  yield "once_or_more", once_or_more, (number,)
  yield "once", once, (number,)
  yield "up_to", up_to, (number,)
  yield "reduce_rows", reduce_rows, (words,)
  yield "offsets", offsets, (_COUNT,)
  yield "settled", lambda x, count: here().settled(x + 1, count), (number, _COUNT)
  yield "made_once", lambda x, count: here().made_once(lambda: 3 * x, count), (words, _COUNT)


def _of_counts(data: _Data) -> Iterator[tuple[str, Callable[..., Any], tuple]]:
  """Operations that count."""
  counts = data.integers(32, max(65, data.size // 32))
  firsts = np.array([place.first for place in data.where], np.int32)
  sizes = (data.size // 2, data.size // 4)
  rows = RaggedRows(sizes)
  keys, begin = np.full(rows.shape[0] * rows.WIDTH, -1, np.int32), 0
  for size, capacity in zip(sizes, rows.capacities, strict=True):
    # Some of them equal.
    keys[begin : begin + size] = data.integers(1 << 20, size) >> 8
    begin += capacity
  there, wanted = (np.array([max(1, x // part) for x in sizes], np.int32) for part in (1, 20))

  def threshold(keys, wanted, there):
    low, high = jnp.zeros(2, jnp.int32), jnp.full(2, 1 << 12, jnp.int32)
    found = exact_threshold(keys.reshape(rows.shape), rows, wanted, there, low, high)
    # Of a threshold there are several names: which keys are above it is what counts.
    value, index = rows.spread(found.value), rows.spread(found.index)
    keys = keys.reshape(rows.shape)
    return found.count, (keys > value) | ((keys == value) & (rows.position() < index))

  yield "running_total", lambda counts: _prefix_sum.running_total(counts, 32), (counts,)
  yield "count_below", _prefix_sum.count_below, (data.positions(), firsts)
  yield "exact_threshold", threshold, (keys.reshape(rows.shape), wanted, there)


def _of_reads(data: _Data) -> Iterator[tuple[str, Callable[..., Any], tuple]]:
  """Operations that read a vector."""
  where, leaves = data.where, data.leaves()
  low, high = magnitude_keys(jnp.float32(1)), magnitude_keys(jnp.float32(4))

  vector_of = lambda leaves: Vector(where, tuple((x, x) for x in leaves), lambda x, y: x + y)

  def packed(leaves, width):
    vector = vector_of(leaves)
    packing = here().packing(vector, width, False)
    beyond = jnp.full(1, vector.span, jnp.int32)
    lower, higher = (
      Threshold.of(jnp.full(1, key), beyond, jnp.zeros(1, jnp.int32)) for key in (low, high)
    )
    words, tally = packing.pack(jnp.int32(0), packing.start(), lower, higher, magnitude_keys)
    count = data.size // 1000
    return packing.members(words).first(count), tally

  yield "packing", lambda *leaves: packed(leaves, 2), leaves
  yield "pack_pieces", lambda *leaves: packed(leaves, 1), leaves
  yield "flat", lambda *leaves: here().flat(vector_of(leaves)).read_all(1), leaves
  yield "read_all", lambda *x: [_gather.read_all(vector_of(x), i) for i in range(len(x))], leaves
  yield "statistics", lambda *x: here().statistics(vector_of(x), 1, magnitude_keys), leaves
  yield "join", lambda *leaves: here().join([x.reshape(-1) for x in leaves]), leaves
  yield "take", lambda at, *x: _gather.take(vector_of(x), at), (data.positions(), *leaves)


def _of_writes(data: _Data) -> Iterator[tuple[str, Callable[..., Any], tuple]]:
  """Operations that write to leaves."""
  where, leaves, at = data.where, data.leaves(), data.positions()
  values, keep = np.sin(at.astype(np.float32)), at % 3 > 0

  def put(at, values, keep, *leaves):
    zeros = _scatter.put(leaves, where, at, jnp.float32(0), keep=keep, are_zero=True)
    return zeros, _scatter.put(leaves, where, at, values, keep=keep)

  def in_folds(at, values, *leaves):
    function = lambda where, lists: [_scatter.put([2 * x for x in lists[0]], where, at, values)]
    return _scatter.in_folds(where, [leaves], function)

  def sums(at, values):
    into = here().sums(where, 2 * at.size)
    start = [jnp.zeros(size, jnp.float32) for size in into.sizes]
    found = _accumulate.Sums(start, jnp.int32(0))
    for sent in (values, -values * (at % 2 > 0)):
      found = into.add(found, at, sent, jnp.bool_(True))
    return into.leaves(found.arrays), into.nonzero(found)

  def add_part(at, values, leaf, count):
    share = _scatter.Share(where[0], 0, jnp.int32(0), count)
    return here().add_part(leaf, _accumulate.Part(at, values, share))

  of_first = np.int32(np.searchsorted(at, leaves[0].size))
  yield "put", put, (at, values, keep, *leaves)
  yield "in_folds", in_folds, (at, values, *leaves)
  yield "sums", sums, (at, values)
  yield "add_part", add_part, (at, values, leaves[0], of_first)


def operations(platform: str, size: int) -> Iterator[Check]:
  """A check for each operation of ``rtopk_jax.kernels``.

  Args:
    platform: whose way is checked, on JAX's default device.
    size: entries of what is worked on, 4,096 or more.

  Yields:
    The checks.
  """
  data = _Data(np.random.default_rng(0), size)
  for kind in (_of_loops, _of_counts, _of_reads, _of_writes):
    for name, function, args in kind(data):
      yield Check(name, lambda function=function, args=args: _same(platform, function, args))


def unchecked() -> list[str]:
  """Operations that have no check of their own, by their names in ``Portable``."""
  known = {check.name for check in operations("cpu", 1 << 12)}
  return [
    name
    for name, method in vars(Portable).items()
    if callable(method) and not name.startswith("_") and name not in known
  ]


def _same(platform: str, function: Callable[..., Any], args: tuple) -> None:
  """Has a function of a platform compared with what it is on a CPU."""
  found, expected = (_traced_for(name, function)(*args) for name in (platform, "cpu"))
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    if np.ndim(x) == 0 and np.issubdtype(np.asarray(x).dtype, np.floating):
      np.testing.assert_allclose(x, y, _CLOSE)
    else:
      np.testing.assert_array_equal(x, y)


def _traced_for(platform: str, function: Callable[..., Any]) -> Callable[..., Any]:
  """A function, compiled for a platform: "cpu" runs on a CPU, others on JAX's default device."""
  device = jax.devices("cpu")[0] if platform == "cpu" else jax.devices()[0]
  # A new function, so that JAX has traced it for nothing else.
  compiled = jax.jit(lambda *args: function(*args))

  def run(*args):
    with rtopk_jax.platform(platform), jax.default_device(device):
      return jax.device_get(compiled(*args))

  return run


def selections(platform: str, sizes: list[int], density: float = 0.001) -> Iterator[Check]:
  """Checks of selectors by what they select of vectors that are hard to select from.

  Args:
    platform: whose way is checked.
    sizes: entries of the vectors.
    density: k/d.

  Yields:
    The checks.
  """
  selectors = {
    "rtop_k": rtopk_jax.rtop_k(density, 5),
    "top_k": rtopk_jax.top_k(density),
    "random_k": rtopk_jax.random_k(density),
  }
  for size in sizes:
    for name, selector in selectors.items():
      run = lambda size=size, own=selector: _selects(platform, own, size)
      yield Check(f"{name} of {size:,} entries", run)


# Of random entries, by kind.
_VECTORS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "all different": lambda x: x,
  "many equal": np.round,
  "nearly all zero": lambda x: np.where(np.abs(x) > 7, x, 0),
  "subnormal": lambda x: x * np.float32(1e-40),
}


def _selects(platform: str, selector: Any, size: int) -> None:
  """Exactly k, of the r largest, the same as on a CPU."""
  from tests.rtopk_jax import reference

  def select(vector):
    slices = selector(vector, jax.random.key(1))
    return slices.values, slices.indices

  ours, theirs = (_traced_for(name, select) for name in (platform, "cpu"))
  drawn = np.random.default_rng(size).laplace(size=size).astype(np.float32)
  k, r = selector.counts(size)
  for kind, of in _VECTORS.items():
    vector = of(drawn).astype(np.float32)
    values, indices = ours(vector)
    if indices.shape != (k,) or np.unique(indices).size != k:
      raise AssertionError(f"{kind}: {np.unique(indices).size} entries of {k}")
    if not set(indices.tolist()) <= set(reference.largest(vector, r).tolist()):
      raise AssertionError(f"{kind}: not all are among the {r} largest")
    bits = values.view(np.uint32), vector[indices].view(np.uint32)
    np.testing.assert_array_equal(*bits, err_msg=f"{kind}: values")
    np.testing.assert_array_equal(indices, theirs(vector)[1], err_msg=f"{kind}: as on a CPU")


def exchanges(platform: str, rows: int) -> Iterator[Check]:
  """Checks of some steps of four simulated workers, updates and memory.

  Args:
    platform: whose way is checked.
    rows: of the largest leaf, which has 640 columns.

  Yields:
    The checks.
  """
  # In the order of a tree's leaves, which is that of their names.
  shapes_of = lambda rows: {"b": (7,), "v": (rows // 2, 3, 32), "w": (rows, 640)}
  shapes = shapes_of(rows)
  options: dict[str, dict[str, Any]] = {
    "global, residual": {},
    "leaf, top_k, momentum, residual": {"scope": "leaf", "kind": "top_k", "momentum": 0.5},
    "top_k, mean over senders": {"kind": "top_k", "average": "senders"},
    "random_k": {"kind": "random_k"},
    "16-bit memory": {"memory_dtype": jnp.bfloat16, "exact": False},
  }
  for name, own in options.items():
    yield Check(name, lambda own=own: _as_the_reference(platform, shapes, own))
  # Of these numbers nothing is exact: among many, two would be so close that rounding changes their order.
  clipped = {"clip_norm": 2.0, "momentum": 0.9, "exact": False}
  yield Check(
    "global, clipping, momentum, residual",
    lambda: _as_the_reference(platform, shapes_of(min(rows, 70)), clipped, powers=False),
  )
  # What the reference does not know.
  beyond: dict[str, dict[str, Any]] = {
    "owners": {"collective": "reduce_scatter"},
    "blocks of 256, int8": {
      "scope": rtopk_jax.Block(256),
      "wire": rtopk_jax.Wire("int8", "block"),
    },
    "Elias–Fano, bfloat16": {"wire": rtopk_jax.Wire("bfloat16", "elias_fano")},
  }
  for name, own in beyond.items():
    yield Check(f"{name}, as on a CPU", lambda own=own: _as_on_a_cpu(platform, shapes, own))


def _as_the_reference(
  platform: str,
  shapes: dict[str, tuple[int, ...]],
  options: dict[str, Any],
  powers: bool = True,
) -> None:
  from tests.rtopk_jax import harness

  # Of powers of two, what is computed is comparable bit for bit.
  gradients = harness.gradients(shapes, 3, 4, powers=powers)
  own = {"density": 0.01, "subsample": 4, **options}
  with rtopk_jax.platform(platform):
    harness.check("vmap", gradients, **own)


def _as_on_a_cpu(
  platform: str, shapes: dict[str, tuple[int, ...]], options: dict[str, Any]
) -> None:
  from tests.rtopk_jax import harness

  selector = rtopk_jax.rtop_k(0.02, 4)
  tx = rtopk_jax.sparse_exchange(selector, harness.AXIS, dense=False, **options)

  def two_steps(gradients: Any) -> Any:
    state: Any
    first, second = (jax.tree.map(lambda g: g[i], gradients) for i in range(2))
    _, state = tx.update(first, tx.init(first))
    updates, state = tx.update(second, state)
    return updates, state.residual

  mapped = jax.vmap(two_steps, in_axes=1, axis_name=harness.AXIS)
  gradients = harness.gradients(shapes, 2, 4)
  found, expected = (_traced_for(name, mapped)(gradients) for name in (platform, "cpu"))
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
