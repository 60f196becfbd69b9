"""The search for the r largest, against a sort in NumPy: the same set, ties to the lowest index."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtopk_jax
from rtopk_jax.kernels import _gather
from rtopk_jax.kernels._flat_packing import FlatPacking
from rtopk_jax.kernels._threshold import RaggedRows, above, exact_threshold
from rtopk_jax.select import _search, _selector
from rtopk_jax.select._keys import LARGEST_KEY, magnitude_keys
from rtopk_jax.vector._layout import Bundle
from rtopk_jax.vector._vector import Run, Vector, places
from tests.rtopk_jax import harness

# With two bits an entry, with one, and with a cut that is moved until it is the wanted one.
FORMS = [
  FlatPacking,
  functools.partial(FlatPacking, width=1),
  functools.partial(FlatPacking, width=1, exact=True),
]

LARGE = 140_003  # above what is sorted, and no multiple of anything
LISTED = 400_003  # above what is read again and again, too


def _sorted(keys, count):
  return np.sort(np.argsort(-keys.astype(np.int64), kind="stable")[:count])


@jax.jit(static_argnums=(1, 2))
def _searched(keys, count, packing):
  whole = Vector(places([keys.shape]), ((keys,),), lambda x: x)
  found, statistics = _search.largest(packing(whole), [count], lambda x: x)
  return found.locate(jnp.arange(count, dtype=jnp.int32)), statistics.largest


def _hard_keys(size):
  """Vectors that a sample says little about."""
  rng = np.random.default_rng(5)
  keys = rng.integers(0, 2**30, size)
  return {
    "even": keys,
    "zero": np.zeros(size),
    "largest": np.full(size, LARGEST_KEY),
    "three values": rng.integers(0, 3, size),
    "one in a hundred": keys * (rng.random(size) < 0.01),
    "one in ten thousand": keys * (rng.random(size) < 1e-4),
    "falling": np.arange(size)[::-1],
    "chunks": np.repeat(keys[: size // 100 + 1], 100)[:size],
    "heavy tail": np.minimum(1 / rng.random(size) ** 3, 2**30),
    "the end alone": np.where(np.arange(size) < size - 50, 0, keys),
  }


@pytest.mark.parametrize("packing", FORMS)
@pytest.mark.parametrize("count", [1, 437, 20_000, LARGE - 1])
def test_large_vectors(count, packing):
  for name, keys in _hard_keys(LARGE).items():
    keys = keys.astype(np.int32)
    found, most = _searched(keys, count, packing)
    assert most == keys.max()
    np.testing.assert_array_equal(found, _sorted(keys, count), err_msg=name)


MISLED = 1 << 19


def _looked_at(count, packing):
  """The positions whose keys the sample is of, in a vector of ``MISLED`` entries, found by what it returns."""
  whole = Vector(places([(MISLED,)]), ((jnp.arange(MISLED, dtype=jnp.int32),),), lambda x: x)
  (size,) = _search._Plan(packing(whole), [count]).samples
  positions = np.asarray(_search._sample(packing(whole), 0, size))
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
  ("count", "packing"),
  [
    (300, FORMS[1]),
    (300, FORMS[2]),
    (20_000, FORMS[0]),
    (20_000, FORMS[2]),
    pytest.param(90_000, FORMS[0], marks=pytest.mark.slow),
  ],
)
def test_a_sample_that_misleads_costs_no_exactness(count, packing):
  for name, keys in _misleading_keys(count, packing):
    found, most = _searched(keys, count, packing)
    assert most == keys.max()
    np.testing.assert_array_equal(found, _sorted(keys, count), err_msg=name)


few_keys = st.integers(0, LARGEST_KEY) | st.sampled_from([0, 1, 2, LARGEST_KEY - 1, LARGEST_KEY])


@pytest.mark.slow
@given(st.lists(few_keys, min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_a_few_keys_many_times(few, seed):
  rng = np.random.default_rng(seed)
  keys = rng.choice(np.array(few, np.int32), LARGE, p=rng.dirichlet(np.full(len(few), 0.3)))
  for count, packing in ((300, FORMS[1]), (700, FORMS[0]), (500, FORMS[2]), (LARGE - 1, FORMS[0])):
    np.testing.assert_array_equal(_searched(keys, count, packing)[0], _sorted(keys, count))


@pytest.mark.parametrize("packing", FORMS)
@pytest.mark.parametrize("size", [1, 2, 16, 17, 33, 129, 1000])
def test_small_vectors(size, packing):
  for count in sorted({1, size // 3 + 1, size}):
    for name, keys in _hard_keys(size).items():
      keys = keys.astype(np.int32)
      found, most = _searched(keys, count, packing)
      assert most == keys.max()
      np.testing.assert_array_equal(found, _sorted(keys, count), err_msg=name)


@given(st.lists(st.integers(0, LARGEST_KEY) | st.integers(0, 3), min_size=40, max_size=40))
def test_any_forty_keys(keys):
  keys = np.array(keys, np.int32)
  for packing in (FORMS[0], FORMS[2]):
    np.testing.assert_array_equal(_searched(keys, 13, packing)[0], _sorted(keys, 13))


def test_exact_cuts_of_several_lists_at_once():
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
    np.testing.assert_array_equal(found, _sorted(np.array(x), count))
  np.testing.assert_array_equal(cut.count, counts)


@pytest.mark.parametrize("count", [0, 1, 3, 599, 600])
def test_exact_cuts_among_keys_that_equal_the_bounds(count):
  for name, keys in {
    "all the highest": [9] * 600,
    "both": [4, 9] * 300,
    "one": [4] * 599 + [9],
  }.items():
    rows = RaggedRows([len(keys)])
    padded = np.full(rows.shape, -1, np.int32)
    padded.reshape(-1)[:600] = keys
    bounds = [np.int32([x]) for x in (count, 600, min(keys), max(keys))]
    cut = jax.jit(lambda k, *bounds, rows=rows: exact_threshold(k, rows, *bounds))(padded, *bounds)
    chosen = np.flatnonzero(np.asarray(above(jnp.asarray(padded), rows, cut)).reshape(-1))
    np.testing.assert_array_equal(chosen, _sorted(np.array(keys), count), err_msg=name)


SHAPES = [(300, 500), (7, 13), (100, 1003), (33,), (50, 3000), (501,), (17, 17, 17)]


def _pieces(leaves, kind):
  """Leaves as one group, as a group each, or as a group each but one array."""
  arrays = [jnp.asarray(x) for x in leaves]
  numbers = tuple(range(len(leaves)))
  shapes = tuple(x.shape for x in leaves)
  if kind == "joined":
    bundle = Bundle(numbers, shapes, apart=True)
    arrays = [bundle.join(arrays)]
    where = places([bundle.shape], [bundle.runs(0)])
  else:
    one = [(Run(0, x.size, 0),) for x in leaves]
    each = [(Run(0, x.size, i),) for i, x in enumerate(leaves)]
    where = places(shapes, one if kind == "one" else each)
  return Vector(where, tuple((x,) for x in arrays), lambda x: x)


@pytest.mark.parametrize("kind", ["one", "each", "joined"])
@pytest.mark.parametrize("density", [0.003, 0.2])
@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:0:-1]], ids=["listed", "exact"])
def test_pieces_are_searched_as_one_vector_and_as_groups(shapes, density, kind):
  rng = np.random.default_rng(2)
  leaves = [rng.laplace(size=shape).astype(np.float32) for shape in shapes]
  assert sum(x.size for x in leaves) > _selector.SORT_BELOW
  assert (sum(x.size for x in leaves) <= _search._SHORT) == (shapes != SHAPES)
  leaves[1][:] = 0  # where a cut among zeros must not count those that fill up a word
  selector = rtopk_jax.rtop_k(density, 3)

  @jax.jit
  def run():
    vector = _pieces(leaves, kind)
    chosen = selector.select(vector, jax.random.key)
    return chosen.positions, _gather.take(vector, chosen.positions), chosen.statistics.square

  positions, values, square = map(np.asarray, run())
  where = places(shapes)
  assert np.all(np.diff(positions) > 0)
  np.testing.assert_allclose(square, sum(np.sum(x**2) for x in leaves), rtol=1e-5)
  everything = np.full(where[-1].first + 5000, np.nan, np.float32)
  for place, x in zip(where, leaves, strict=True):
    everything[place.first : place.first + place.size] = x.reshape(-1)
  np.testing.assert_array_equal(values, everything[positions])
  numbers = range(len(shapes))
  for part in [numbers] if kind == "one" else [[i] for i in numbers]:
    of_part = np.concatenate(
      [np.arange(where[i].first, where[i].first + where[i].size) for i in part]
    )
    k, r = selector.counts(of_part.size)
    large = of_part[np.argsort(-np.abs(everything[of_part]), kind="stable")[:r]]
    chosen = np.intersect1d(positions, of_part)
    assert chosen.size == k
    assert set(chosen.tolist()) <= set(large.tolist())


@pytest.mark.parametrize("packing", FORMS)
@pytest.mark.parametrize("kind", ["one", "joined"])
def test_leaves_longer_than_what_is_read_at_a_time(kind, packing):
  rng = np.random.default_rng(3)
  leaves = [rng.laplace(size=size).astype(np.float32) for size in (2_200_003, 1_500_000)]
  counts = [50] if kind == "one" else [50, 30]
  search = lambda x: _search.largest(packing(x), counts, magnitude_keys)[0]
  ranks = jnp.arange(50 if kind == "one" else 80, dtype=jnp.int32)
  found = jax.jit(lambda: search(_pieces(leaves, kind)).locate(ranks))()
  second = places([x.shape for x in leaves])[1].first
  keys = np.zeros(second + leaves[1].size, np.int32)
  keys[: leaves[0].size], keys[second:] = (np.abs(x).view(np.int32) for x in leaves)
  if kind == "one":
    expected = _sorted(keys, 50)
  else:
    expected = np.concatenate([_sorted(keys[:second], 50), second + _sorted(keys[second:], 30)])
  np.testing.assert_array_equal(found, expected)


def _vector(size, dtype="float32"):
  rng = np.random.default_rng(0)
  vector = rng.laplace(size=size).astype(np.float32)
  vector[rng.random(size) < 0.3] = 0
  vector[100:200] *= np.float32(1e-42)  # subnormal
  return jnp.asarray(vector).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
  "selector",
  [rtopk_jax.rtop_k(0.01, 5), rtopk_jax.top_k(0.8)],
  ids=["rtop_k", "top_k"],
)
@pytest.mark.parametrize("size", [LARGE, LISTED])
def test_methods_choose_the_same(size, selector, dtype):
  vector, key = _vector(size, dtype), jax.random.key(1)
  by_search = jax.jit(selector)(vector, key)
  by_top_k = jax.jit(dataclasses.replace(selector, method="top_k"))(vector, key)
  np.testing.assert_array_equal(by_search.indices, by_top_k.indices)
  np.testing.assert_array_equal(
    by_search.values.astype("float32"), by_top_k.values.astype("float32")
  )
  assert (np.diff(np.asarray(by_search.indices)) > 0).all()


def test_methods_draw_random_entries_in_ways_of_their_own():
  vector, key = _vector(LARGE), jax.random.key(1)
  drawn = [
    np.asarray(jax.jit(rtopk_jax.random_k(0.02, method=x))(vector, key).indices)
    for x in ("search", "top_k")
  ]
  for indices in drawn:
    assert indices.shape == (round(0.02 * LARGE),)
    assert (np.diff(indices) > 0).all()
    assert 0 <= indices[0] < indices[-1] < LARGE
  assert not np.array_equal(*drawn)


def test_the_reference_is_a_sort():
  """That is what it is there for: also of all entries."""
  for make in (rtopk_jax.rtop_k, rtopk_jax.top_k, rtopk_jax.random_k):
    texts = [
      jax.jit(lambda v, k, x=x: make(0.01, method=x)(v, k, 2)).lower(
        _vector(LISTED), jax.random.key(0)
      )
      for x in ("search", "top_k")
    ]
    by_search, by_top_k = ("top_k" in text.as_text() for text in texts)
    assert by_top_k
    assert not by_search


# Of each kind of search the shortest vector, whose lists are long beside it.
@pytest.mark.parametrize(
  ("size", "dtype"),
  [
    (_selector.SORT_BELOW + 1, "float32"),
    (LARGE, "float32"),
    (_search._SHORT + 1, "float32"),
    (1 << 20, "bfloat16"),
    (1 << 22, "float32"),
    pytest.param(_selector.SORT_BELOW + 1, "bfloat16", marks=pytest.mark.slow),
    pytest.param(_search._SHORT + 1, "float16", marks=pytest.mark.slow),
    pytest.param(1 << 20, "float32", marks=pytest.mark.slow),
    pytest.param(1 << 23, "float16", marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize(
  "selector",
  [
    rtopk_jax.top_k(1e-5),
    rtopk_jax.rtop_k(0.001, 5),
    pytest.param(rtopk_jax.top_k(0.003), marks=pytest.mark.slow),
    pytest.param(rtopk_jax.rtop_k(0.01, 4), marks=pytest.mark.slow),
    rtopk_jax.top_k(0.1),
  ],
  ids=lambda selector: f"{selector.density}x{selector.subsample}",
)
def test_nothing_of_the_vectors_length_is_sorted_or_stored(selector, size, dtype):
  vector, key = jax.ShapeDtypeStruct((size,), dtype), jax.random.key(0)
  compiled = jax.jit(selector).lower(vector, key).compile()
  assert not [x for x in compiled.as_text().splitlines() if " sort(" in x or "TopK" in x]
  # Two bits an entry, and 64 bytes for each that is looked for.
  allowed = size / 4 + 64 * selector.counts(size).r
  assert compiled.memory_analysis().temp_size_in_bytes <= allowed


@pytest.mark.parametrize(
  ("selector", "size"),
  [
    pytest.param(rtopk_jax.rtop_k(0.01, 5), LISTED, marks=pytest.mark.slow, id="two bits"),
    pytest.param(rtopk_jax.top_k(0.001), LISTED, id="one bit"),
    pytest.param(rtopk_jax.rtop_k(0.01, 5), LARGE, id="exact"),
  ],
)
def test_vmap_and_shard_map_agree(selector, size):
  keys = jax.random.split(jax.random.key(0), 2)
  vectors = jnp.stack([_vector(size), jnp.zeros(size)])  # one needs more turns than the other
  harness.check_mapped(lambda v, k: selector(v, k).indices, vectors, keys)


def test_unknown_method_is_refused():
  for make in (rtopk_jax.rtop_k, rtopk_jax.top_k, rtopk_jax.random_k):
    with pytest.raises(ValueError, match="method must be one of 'search', 'top_k', got 'sort'"):
      make(0.1, method="sort")
