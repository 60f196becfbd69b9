"""Selectors against a sort in NumPy, and the statistics of what they draw."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax.select import _keys, _search
from tests.rtopk_jax.reference import largest

SIZES = (1, 7, 33)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(jnp.bfloat16))


@functools.partial(jax.jit, static_argnums=0)
def select(selector, vector, seed):
  return selector(vector, jax.random.key(seed))


@st.composite
def vectors(draw):
  """Vectors with ties, zeros of both signs, subnormals and huge values."""
  dtype = draw(st.sampled_from(DTYPES))
  info = jnp.finfo(dtype)
  tiny, huge = float(info.smallest_subnormal), float(info.max)
  special = [0.0, -0.0, tiny, -tiny, 3 * tiny, float(info.tiny), 1.0, -1.0, 0.5, huge, -huge]
  values = st.one_of(st.sampled_from(special), st.floats(-100, 100, width=16))
  size = draw(st.sampled_from(SIZES))
  return np.array(draw(st.lists(values, min_size=size, max_size=size))).astype(dtype)


@hypothesis.given(vectors(), st.sampled_from([0.01, 0.3, 1.0]))
def test_top_k_is_a_stable_sort(vector, density):
  size = vector.size
  k = max(1, round(density * size))
  slices = select(rtopk_jax.top_k(density), vector, 0)
  np.testing.assert_array_equal(slices.indices, largest(vector, k))
  assert slices.values.dtype == vector.dtype
  assert np.asarray(slices.values).tobytes() == vector[np.asarray(slices.indices)].tobytes()


# (density, r/k): k rounds to 0, a fraction, r > d
@hypothesis.given(
  vectors(), st.sampled_from([(0.01, 4), (0.3, 1.5), (0.3, 100)]), st.integers(0, 99)
)
def test_rtop_k_is_a_subset_of_the_largest(vector, ratios, seed):
  density, subsample = ratios
  size = vector.size
  k = max(1, round(density * size))
  r = min(size, round(subsample * k))
  slices = select(rtopk_jax.rtop_k(density, subsample), vector, np.int32(seed))
  indices = np.asarray(slices.indices)
  assert indices.shape == (k,)
  assert indices.dtype == np.int32
  assert np.all(np.diff(indices) > 0)
  assert set(indices.tolist()) <= set(largest(vector, r).tolist())
  assert np.asarray(slices.values).tobytes() == vector[indices].tobytes()
  dense = np.zeros_like(vector)
  dense[indices] = vector[indices]
  np.testing.assert_array_equal(np.asarray(slices.to_dense()), dense)


# Vectors that are searched in either way, and no multiples of anything.
LARGE, LISTED = _keys.SORT_BELOW + 4003, _search._SHORT + 4003
# Of each dtype a selector: words of the second way have one bit an entry for the first, and two for the others.
LARGE_TOP_K = dict(zip(DTYPES, map(rtopk_jax.top_k, (0.002, 0.01, 0.2)), strict=True))


@st.composite
def large_vectors(draw):
  """As ``vectors``, and infinite values; of a few values many times each, and of some ordinary ones."""
  dtype = draw(st.sampled_from(DTYPES))
  info = jnp.finfo(dtype)
  tiny, huge, infinite = float(info.smallest_subnormal), float(info.max), float("inf")
  special = [0.0, -0.0, tiny, -tiny, 3 * tiny, float(info.tiny), 1.0, -1.0, huge, -huge]
  values = st.sampled_from([*special, infinite, -infinite]) | st.floats(-100, 100, width=16)
  few = np.array(draw(st.lists(values, min_size=1, max_size=6))).astype(dtype)
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  size = draw(st.sampled_from([LARGE, LISTED]))
  vector = rng.choice(few, size, p=rng.dirichlet(np.full(few.size, 0.3)))
  ordinary = rng.random(size) < draw(st.sampled_from([0.0, 1e-4, 0.1]))
  return np.where(ordinary, rng.standard_normal(size).astype(dtype), vector)


@hypothesis.settings(max_examples=20)
@hypothesis.given(large_vectors())
@pytest.mark.slow
def test_top_k_of_a_large_vector_is_a_stable_sort(vector):
  selector = LARGE_TOP_K[vector.dtype]
  k = round(selector.density * vector.size)
  slices = select(selector, vector, 0)
  np.testing.assert_array_equal(slices.indices, largest(vector, k))
  assert np.asarray(slices.values).tobytes() == vector[np.asarray(slices.indices)].tobytes()


@hypothesis.given(vectors(), st.integers(0, 99))
def test_random_k_does_not_look_at_the_vector(vector, seed):
  selector, vector = rtopk_jax.random_k(0.3), vector.astype(np.float32)
  slices = select(selector, vector, np.int32(seed))
  other = select(selector, np.ones_like(vector), np.int32(seed))
  np.testing.assert_array_equal(slices.indices, other.indices)
  assert np.asarray(slices.values).tobytes() == vector[np.asarray(slices.indices)].tobytes()


@pytest.mark.parametrize(
  ("density", "subsample", "size", "counts"),
  [
    (0.001, 5, 100, (1, 5)),  # k rounds to 0 and is 1
    (0.5, 5, 10, (5, 10)),  # r > d
    (0.4, 5, 1, (1, 1)),
    (1.0, 1, 7, (7, 7)),
    (0.1, 2.5, 30, (3, 8)),
    (0.001, 5, 11_173_962, (11_174, 55_870)),
  ],
)
def test_counts(density, subsample, size, counts):
  assert rtopk_jax.rtop_k(density, subsample).counts(size) == counts
  assert rtopk_jax.top_k(density).counts(size) == (counts[0], counts[0])
  assert rtopk_jax.random_k(density).counts(size) == (counts[0], size)


def test_subsample_is_the_number_of_workers_by_default():
  assert rtopk_jax.rtop_k(0.1).counts(100, num_workers=5) == (10, 50)


def test_a_numpy_vector_will_do():
  vector = np.array([1, -3, 2], np.float32)
  slices = rtopk_jax.top_k(0.5)(vector, jax.random.key(0))
  np.testing.assert_array_equal(slices.to_dense(), [0, -3, 2])


def test_a_selector_is_static_under_jit():
  jitted = jax.jit(lambda s, v: s(v, jax.random.key(0), 2).values, static_argnums=0)
  vector = jnp.arange(10.0)
  jitted(rtopk_jax.rtop_k(0.1), vector)
  jitted(rtopk_jax.rtop_k(0.1), vector)
  assert jitted._cache_size() == 1
  assert hash(rtopk_jax.rtop_k(0.1)) == hash(rtopk_jax.rtop_k(0.1))
  assert rtopk_jax.rtop_k(0.1) != rtopk_jax.random_k(0.1)


def draws(selector, vector, count):
  """Messages for ``count`` keys, as dense vectors."""
  keys = jax.random.split(jax.random.key(0), count)
  return np.asarray(jax.jit(jax.vmap(lambda key: selector(vector, key).to_dense()))(keys))


def test_draws_are_uniform_over_all_subsets():
  # 20 subsets of 3 of the 6 largest; the 0.999 quantile of chi-square with 19 degrees is 43.8.
  vector = jnp.array([9.0, -0.1, 8.0, 7.0, 0.0, -6.0, 5.0, 4.0, 0.3, 0.2])
  count = 20_000
  sent = draws(rtopk_jax.rtop_k(0.3, 2), vector, count) != 0
  _, times = np.unique(sent, axis=0, return_counts=True)
  expected = count / math.comb(6, 3)
  assert len(times) == math.comb(6, 3)
  assert np.sum((times - expected) ** 2 / expected) < 43.8


def large_draws(selector, vector, count):
  """Indices for ``count`` keys."""
  keys = jax.random.split(jax.random.key(5), count)
  return np.asarray(jax.jit(jax.vmap(lambda key: selector(vector, key).indices))(keys))


def test_draws_from_a_large_vector_are_uniform_over_all_subsets():
  # As above: 20 subsets of 3 of the 6 largest.
  rng = np.random.default_rng(4)
  vector = rng.standard_normal(LARGE).astype(np.float32)
  count = 4_000
  sent = large_draws(rtopk_jax.rtop_k(3 / LARGE, 2), jnp.asarray(vector), count)
  subsets, times = np.unique(sent, axis=0, return_counts=True)
  assert set(subsets.ravel().tolist()) == set(largest(vector, 6).tolist())
  expected = count / math.comb(6, 3)
  assert len(times) == math.comb(6, 3)
  assert np.sum((times - expected) ** 2 / expected) < 43.8


@pytest.mark.slow
def test_draws_from_a_large_vector_are_uniform_over_the_largest():
  # Each of the 1,000 largest is sent by half of the keys; as below, with 999 degrees (0.999 quantile 1142).
  rng = np.random.default_rng(6)
  vector = rng.standard_normal(LARGE).astype(np.float32)
  count, k = 1_000, 500
  sent = large_draws(rtopk_jax.rtop_k(k / LARGE, 2), jnp.asarray(vector), count)
  times = np.bincount(np.searchsorted(largest(vector, 2 * k), sent.ravel()))
  assert times.size == 2 * k
  assert np.isin(sent, largest(vector, 2 * k)).all()
  assert np.sum((times - count / 2) ** 2) / (count / 4) * (2 * k - 1) / (2 * k) < 1142


def test_random_k_draws_every_entry_equally_often():
  # Each of 40 entries is sent by a quarter of the keys. Within a message draws are without replacement,
  # so the statistic below is (d - 1)/d times chi-square with 39 degrees (0.999 quantile 72.1).
  count, size, density = 8_000, 40, 0.25
  times = (draws(rtopk_jax.random_k(density), jnp.ones(size), count) != 0).sum(0)
  variance = count * density * (1 - density)
  assert np.sum((times - count * density) ** 2) / variance * (size - 1) / size < 72.1


@pytest.mark.parametrize(
  ("selector", "r"),
  [(rtopk_jax.rtop_k(0.1, 4, unbiased=True), 24), (rtopk_jax.random_k(0.1, unbiased=True), 60)],
)
def test_the_mean_of_unbiased_messages_is_top_r(selector, r):
  vector = np.random.default_rng(0).standard_normal(60).astype(np.float32)
  count, k = 20_000, 6
  mean = draws(selector, vector, count).mean(0, dtype=np.float64)
  top_r = np.zeros_like(vector)
  top_r[largest(vector, r)] = vector[largest(vector, r)]
  # An entry of top_r arrives as (r/k)x with probability k/r: variance (r/k - 1)x².
  error = np.abs(vector) * math.sqrt((r / k - 1) / count)
  assert np.all(np.abs(mean - top_r) <= 4.5 * error * (top_r != 0))


@pytest.mark.parametrize("dtype", [pytest.param(DTYPES[0], marks=pytest.mark.slow), *DTYPES[1:]])
def test_scaled_values_stay_finite(dtype):
  """The scale, 100,000, is above the largest float16; a product may be above any largest number."""
  selector, size = rtopk_jax.random_k(1e-5, unbiased=True), 100_000
  most = float(jnp.finfo(dtype).max)
  for value, expected in ((0.25, 25_000), (-most, -most), (most / 2, most)):
    slices = select(selector, np.full(size, value, dtype), 0)
    assert slices.values.dtype == dtype
    np.testing.assert_array_equal(slices.values, np.array([expected]).astype(dtype))
  # What is not finite before stays what it is.
  for value in (math.inf, math.nan):
    slices = select(selector, np.full(size, value, dtype), 0)
    np.testing.assert_array_equal(slices.values.astype(jnp.float32), [value])


@pytest.mark.parametrize(("subsample", "r"), [(1, 6), (3, 18), (10, 60)])
def test_contraction(subsample, r):
  vector = np.random.default_rng(1).standard_normal(60).astype(np.float32)
  count, k = 20_000, 6
  errors = np.sum((vector - draws(rtopk_jax.rtop_k(0.1, subsample), vector, count)) ** 2, axis=1)
  square = np.sum(np.square(vector, dtype=np.float64))
  top_square = np.sum(np.square(vector[largest(vector, r)], dtype=np.float64))
  expected = square - k / r * top_square
  within = 4.5 * errors.std() / math.sqrt(count) + 1e-5 * square
  assert abs(errors.mean(dtype=np.float64) - expected) <= within


@pytest.mark.parametrize(
  "selector", [rtopk_jax.top_k(1e-4), rtopk_jax.rtop_k(1e-4, 4), rtopk_jax.random_k(1e-4)]
)
def test_vectors_as_long_as_int32_can_index(selector):
  """All numbers of such a program fit: traced, since the vector would take 4 GB."""
  size = 2**31 - 1
  vector = jax.ShapeDtypeStruct((size,), jnp.float16)
  slices = jax.eval_shape(selector, vector, jax.random.key(0))
  assert slices.indices.shape == (selector.counts(size).k,)
  for collective in ("all_gather", "reduce_scatter"):
    tx = rtopk_jax.sparse_exchange(selector, "w", dense=False, collective=collective)
    assert rtopk_jax.wire_bytes(tx, {"w": vector}, 4).sent > 4 * slices.indices.size
