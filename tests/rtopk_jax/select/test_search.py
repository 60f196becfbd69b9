"""The search for the r largest, against a sort in NumPy: the same set, ties to the lowest index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtopk_jax
from rtopk_jax.kernels import _gather
from rtopk_jax.kernels._threshold import RaggedRows, above, exact_threshold
from rtopk_jax.select import _keys, _search
from rtopk_jax.select._keys import LARGEST_KEY, magnitude_keys
from tests.rtopk_jax.reference import largest
from tests.rtopk_jax.vectors import (
  PACKINGS,
  WAYS,
  by_position,
  hard_keys,
  laplace,
  largest_positions,
  positions_of,
  vector_of,
)

LARGE = 140_003  # above what is sorted, and no multiple of anything

LISTED = 400_003  # above what is read again and again, too


@jax.jit(static_argnums=(1, 2))
def _searched(keys, count, packing):
  found, statistics = _search.largest(PACKINGS[packing](vector_of([keys])), [count], lambda x: x)
  return found.locate(jnp.arange(count, dtype=jnp.int32)), statistics.largest


def _check(named_keys, count, packing):
  for name, keys in named_keys:
    found, most = _searched(keys, count, packing)
    assert most == keys.max()
    np.testing.assert_array_equal(found, largest(keys, count), err_msg=name)


# Most ways with few that are looked for or with many, and all with all in `make test-slow`.
_LARGE = [
  ("cpu", "two bits", 20_000),
  ("cpu", "one bit", 437),
  ("cpu", "exact", 1),
  ("cpu", "exact", LARGE - 1),
  ("tpu", "exact tiles", 437),
]


@pytest.mark.parametrize(
  ("platform", "packing", "count"),
  [
    pytest.param(*way, count, marks=[] if (*way, count) in _LARGE else pytest.mark.slow)
    for way in WAYS
    for count in (1, 437, 20_000, LARGE - 1)
  ],
  indirect=["platform"],
)
def test_large_vectors(platform, packing, count):
  _check(hard_keys(LARGE).items(), count, packing)


MISLED = 1 << 19


def _looked_at(count, packing):
  """The positions whose keys the sample is of, in a vector of ``MISLED`` entries, found by what it returns."""
  packed = PACKINGS[packing](vector_of([np.arange(MISLED, dtype=np.int32)]))
  (size,) = _search._Plan(packed, [count]).samples
  positions = np.asarray(jax.jit(lambda: _search._sample(packed, 0, size))())
  assert np.unique(positions).size == size > 0
  return positions


def _misleading_keys(count, packing):
  """Keys at the positions that the sample is of, which have nothing to do with those elsewhere."""
  rng = np.random.default_rng(8)
  sample = _looked_at(count, packing)
  even, low = rng.integers(0, 2**29, MISLED), rng.integers(0, 1000, MISLED)
  half = sample[rng.permutation(sample.size)[: sample.size // 2]]
  for name, elsewhere, places_of_sample, planted in [
    ("the largest, all others zero", np.zeros(MISLED), sample, 2**30),
    ("the largest, all others small", low, sample, 2**30 + even[sample]),
    ("zero, all others large", 2**30 + even, sample, 0),
    ("the smallest, all others large", 2**30 + even, sample, low[sample]),
    ("half of it the largest", low, half, 2**30 + even[half]),
    ("half of it zero", even, half, 0),
    ("one value just above all others", np.full(MISLED, 7), sample, 8),
    ("one value just below all others", np.full(MISLED, 8), sample, 7),
    ("the largest key there is", even, sample, LARGEST_KEY),
  ]:
    keys = elsewhere.astype(np.int32)
    keys[places_of_sample] = planted
    yield name, keys


# Fewer than the sample has entries, and more than that.
@pytest.mark.parametrize(
  ("platform", "packing", "count"),
  [
    ("cpu", "one bit", 300),
    ("cpu", "exact", 20_000),
    pytest.param("cpu", "two bits", 20_000, marks=pytest.mark.slow),
    pytest.param("gpu", "one bit", 300, marks=pytest.mark.slow),
    pytest.param("tpu", "tiles", 300, marks=pytest.mark.slow),
    pytest.param("gpu", "two bits", 20_000, marks=pytest.mark.slow),
    pytest.param("cpu", "exact", 300, marks=pytest.mark.slow),
    pytest.param("cpu", "two bits", 90_000, marks=pytest.mark.slow),
    pytest.param("tpu", "exact tiles", 20_000, marks=pytest.mark.slow),
  ],
  indirect=["platform"],
)
def test_a_sample_that_misleads_costs_no_exactness(platform, packing, count):
  _check(_misleading_keys(count, packing), count, packing)


few_keys = st.integers(0, LARGEST_KEY) | st.sampled_from([0, 1, 2, LARGEST_KEY - 1, LARGEST_KEY])


@pytest.mark.slow
@given(st.lists(few_keys, min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_a_few_keys_many_times(few, seed):
  rng = np.random.default_rng(seed)
  keys = rng.choice(np.array(few, np.int32), LARGE, p=rng.dirichlet(np.full(len(few), 0.3)))
  ways = ((300, "one bit"), (700, "two bits"), (500, "exact"), (LARGE - 1, "two bits"))
  for count, packing in ways:
    np.testing.assert_array_equal(_searched(keys, count, packing)[0], largest(keys, count))


SMALL = (1, 2, 16, 17, 33, 129, 1000)

# Most kinds of words once; all sizes with all of them in `make test-slow`.
_SMALL = [
  ("cpu", "two bits", 17),
  ("cpu", "one bit", 1),
  ("cpu", "exact", 1000),
  ("tpu", "exact tiles", 1000),
]


@pytest.mark.parametrize(
  ("platform", "packing", "size"),
  [
    pytest.param(*way, size, marks=[] if (*way, size) in _SMALL else pytest.mark.slow)
    for way in WAYS
    for size in SMALL
  ],
  indirect=["platform"],
)
def test_small_vectors(platform, packing, size):
  for count in sorted({1, size // 3 + 1, size}):
    _check(hard_keys(size).items(), count, packing)


@given(st.lists(st.integers(0, LARGEST_KEY) | st.integers(0, 3), min_size=40, max_size=40))
def test_any_forty_keys(keys):
  keys = np.array(keys, np.int32)
  for packing in ("two bits", "exact"):
    np.testing.assert_array_equal(_searched(keys, 13, packing)[0], largest(keys, 13))


@pytest.mark.parametrize("platform", ["cpu", "gpu"], indirect=True)
def test_exact_thresholds_of_several_lists_at_once(platform):
  lists = [[3, 1, 3, 3, 0, 1, 9, 3], [7], list(range(700)), [2] * 513]
  counts = [5, 0, 613, 512]
  rows = RaggedRows([len(x) for x in lists])
  assert rows.shape == (1 + 1 + 2 + 2, 512)
  keys = np.full(rows.shape, -1, np.int32)
  begins, first = [], 0
  for x, capacity in zip(lists, rows.capacities, strict=True):
    keys.reshape(-1)[first : first + len(x)] = x
    begins.append(first)
    first += capacity
  sizes = np.array([len(x) for x in lists], np.int32)
  low, high = np.zeros(4, np.int32), np.full(4, 1000, np.int32)
  cut = jax.jit(lambda k, c: exact_threshold(k, rows, c, sizes, low, high))(keys, np.int32(counts))
  chosen = np.asarray(above(jnp.asarray(keys), rows, cut)).reshape(-1)
  for x, count, begin in zip(lists, counts, begins, strict=True):
    found = np.flatnonzero(chosen[begin : begin + len(x)])
    np.testing.assert_array_equal(found, largest(np.array(x), count))
  np.testing.assert_array_equal(cut.count, counts)


@pytest.mark.parametrize("platform", ["cpu", "gpu"], indirect=True)
def test_exact_thresholds_among_keys_that_equal_the_bounds(platform):
  rows = RaggedRows([600])
  chosen = jax.jit(lambda keys, *bounds: above(keys, rows, exact_threshold(keys, rows, *bounds)))
  for name, keys in {
    "all the highest": [9] * 600,
    "both": [4, 9] * 300,
    "one": [4] * 599 + [9],
  }.items():
    padded = np.full(rows.shape, -1, np.int32)
    padded.reshape(-1)[:600] = keys
    for count in (0, 1, 3, 599, 600):
      bounds = [np.int32([x]) for x in (count, 600, min(keys), max(keys))]
      found = np.flatnonzero(np.asarray(chosen(padded, *bounds)).reshape(-1))
      np.testing.assert_array_equal(found, largest(np.array(keys), count), err_msg=name)


SHAPES = [(300, 500), (7, 13), (100, 1003), (33,), (50, 3000), (501,), (17, 17, 17)]

# Most kinds of vectors on CPUs, and groups of a few leaves elsewhere.
LONG_FEW, SHORT_FEW = [(300, 500), (7, 13), (500, 501)], SHAPES[2::-1]
_PIECES = [
  ("cpu", SHORT_FEW, 0.2, "one"),
  ("gpu", LONG_FEW, 0.003, "each"),
  pytest.param("tpu", SHORT_FEW, 0.2, "each", marks=pytest.mark.slow),
  pytest.param("gpu", SHAPES, 0.003, "each", marks=pytest.mark.slow),
  pytest.param("tpu", SHAPES[:0:-1], 0.2, "each", marks=pytest.mark.slow),
  pytest.param("gpu", SHAPES, 0.2, "joined", marks=pytest.mark.slow),
  pytest.param("gpu", SHAPES[:0:-1], 0.003, "one", marks=pytest.mark.slow),
  pytest.param("tpu", SHAPES, 0.003, "one", marks=pytest.mark.slow),
]

_PIECES_OF_CPUS = [
  pytest.param("cpu", shapes, density, kind, marks=[] if default else pytest.mark.slow)
  for shapes in (SHAPES, SHAPES[:0:-1])
  for kind in ("one", "each", "joined")
  for density, default in ((0.003, shapes is SHAPES and kind == "joined"), (0.2, False))
]


@pytest.mark.parametrize(
  ("platform", "shapes", "density", "kind"), [*_PIECES_OF_CPUS, *_PIECES], indirect=["platform"]
)
def test_pieces_are_searched_as_one_vector_and_as_groups(platform, shapes, density, kind):
  rng = np.random.default_rng(2)
  leaves = [rng.laplace(size=shape).astype(np.float32) for shape in shapes]
  assert sum(x.size for x in leaves) > _keys.SORT_BELOW
  assert (sum(x.size for x in leaves) <= _search._SHORT) == (shapes[0] != SHAPES[0])
  leaves[1][:] = 0  # where a threshold among zeros must not count those that fill up a word
  selector = rtopk_jax.rtop_k(density, 3)

  @jax.jit
  def run():
    vector = vector_of(leaves, kind)
    chosen = selector.select(vector, jax.random.key)
    return chosen.positions, _gather.take(vector, chosen.positions), chosen.statistics.square

  positions, values, square = map(np.asarray, run())
  assert np.all(np.diff(positions) > 0)
  np.testing.assert_allclose(square, sum(np.sum(x**2) for x in leaves), rtol=1e-5)
  numbers = range(len(shapes))
  groups = [numbers] if kind == "one" else [[i] for i in numbers]
  counts = [selector.counts(positions_of(leaves, members).size) for members in groups]
  for members, (k, _) in zip(groups, counts, strict=True):
    assert np.isin(positions, positions_of(leaves, members)).sum() == k
  assert np.isin(positions, largest_positions(leaves, groups, [r for _, r in counts])).all()
  # Where they lie in one array they follow each other as elsewhere.
  np.testing.assert_array_equal(values, by_position(leaves)[positions])


@pytest.mark.parametrize(
  ("platform", "packing", "kind"),
  [
    ("cpu", "one bit", "joined"),
    pytest.param("cpu", "two bits", "one", marks=pytest.mark.slow),
    pytest.param("gpu", "one bit", "one", marks=pytest.mark.slow),
    pytest.param("tpu", "tiles", "joined", marks=pytest.mark.slow),
    pytest.param("cpu", "one bit", "one", marks=pytest.mark.slow),
    pytest.param("cpu", "two bits", "joined", marks=pytest.mark.slow),
    pytest.param("cpu", "exact", "one", marks=pytest.mark.slow),
    pytest.param("cpu", "exact", "joined", marks=pytest.mark.slow),
    pytest.param("gpu", "one bit", "joined", marks=pytest.mark.slow),
  ],
  indirect=["platform"],
)
def test_leaves_longer_than_what_is_read_at_a_time(platform, packing, kind):
  rng = np.random.default_rng(3)
  leaves = [rng.laplace(size=size).astype(np.float32) for size in (2_200_003, 1_500_000)]
  counts, groups = ([50], [[0, 1]]) if kind == "one" else ([50, 30], [[0], [1]])

  @jax.jit
  def run(leaves):
    packed = PACKINGS[packing](vector_of(leaves, kind))
    ranks = jnp.arange(sum(counts), dtype=jnp.int32)
    return _search.largest(packed, counts, magnitude_keys)[0].locate(ranks)

  np.testing.assert_array_equal(run(leaves), largest_positions(leaves, groups, counts))


SELECTORS = [
  rtopk_jax.rtop_k(0.001, 3),
  rtopk_jax.top_k(0.05),
  rtopk_jax.random_k(0.01),
  rtopk_jax.rtop_k(0.05, 3),
  rtopk_jax.top_k(0.001),
  rtopk_jax.random_k(0.2),
]


@pytest.mark.parametrize(
  ("platform", "selector"),
  [
    # Two kinds of selectors on a platform each.
    pytest.param(name, selector, marks=[] if (i + 1) % 3 == j and i < 2 else pytest.mark.slow)
    for i, selector in enumerate(SELECTORS)
    for j, name in enumerate(("cpu", "gpu", "tpu"))
  ],
  indirect=["platform"],
)
def test_selectors_on_every_platform(platform, selector):
  vector = laplace(LISTED, zeros=0)
  found = jax.jit(lambda *x: selector(*x))(vector, jax.random.key(0))
  k, r = selector.counts(vector.size)
  indices = np.asarray(found.indices)
  assert indices.size == k
  assert np.all(np.diff(indices) > 0)
  assert np.isin(indices, largest(vector, r)).all()
  np.testing.assert_array_equal(found.values, vector[indices])


@pytest.mark.slow
def test_the_same_entries_are_drawn_on_all_platforms():
  vector, key = laplace(LARGE), jax.random.key(3)
  found = []
  for name in ("cpu", "gpu", "tpu"):
    with rtopk_jax.platform(name):
      # A function of its own, of which JAX keeps no other platform's program.
      select = jax.jit(lambda *x: rtopk_jax.rtop_k(0.01, 5)(*x))
      found.append(select(vector, key).indices)
  np.testing.assert_array_equal(found[1], found[0])
  np.testing.assert_array_equal(found[2], found[0])
