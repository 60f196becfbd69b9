"""The search for the r largest, against a sort in NumPy: the same set, ties to the lowest index."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import rtopk_jax
from rtopk_jax import _search

LARGE = 140_003  # above what is sorted or counted whole, and no multiple of anything


def _sorted(keys, count):
  return np.sort(np.argsort(-keys.astype(np.int64), kind="stable")[:count])


@jax.jit(static_argnums=1)
def _searched(keys, count):
  return _search.largest(keys, count).locate(jnp.arange(count, dtype=jnp.int32))


def _hard_keys(size):
  """Vectors that a sample says little about."""
  rng = np.random.default_rng(5)
  keys = rng.integers(0, 2**30, size)
  return {
    "even": keys,
    "zero": np.zeros(size),
    "largest": np.full(size, _search.LARGEST_KEY),
    "three values": rng.integers(0, 3, size),
    "one in a hundred": keys * (rng.random(size) < 0.01),
    "one in ten thousand": keys * (rng.random(size) < 1e-4),
    "falling": np.arange(size)[::-1],
    "stretches": np.repeat(keys[: size // 100 + 1], 100)[:size],
    "heavy tail": np.minimum(1 / rng.random(size) ** 3, 2**30),
    "the end alone": np.where(np.arange(size) < size - 50, 0, keys),
  }


@pytest.mark.parametrize("count", [1, 700, 20_000, LARGE - 1])
def test_large_vectors(count):
  for name, keys in _hard_keys(LARGE).items():
    keys = keys.astype(np.int32)
    found = np.asarray(_searched(keys, count))
    np.testing.assert_array_equal(found, _sorted(keys, count), err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 16, 17, 129, 1000])
def test_small_vectors(size):
  for count in sorted({1, size // 3 + 1, size}):
    for name, keys in _hard_keys(size).items():
      keys = keys.astype(np.int32)
      found = np.asarray(_searched(keys, count))
      np.testing.assert_array_equal(found, _sorted(keys, count), err_msg=name)


@given(st.lists(st.integers(0, _search.LARGEST_KEY) | st.integers(0, 3), min_size=40, max_size=40))
def test_any_forty_keys(keys):
  keys = np.array(keys, np.int32)
  np.testing.assert_array_equal(np.asarray(_searched(keys, 13)), _sorted(keys, 13))


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_exact_cut_counts(count):
  keys = np.array([3, 1, 3, 3, 0, 1, 9, 3], np.int32)
  cut = jax.jit(_search.exact_cut)(keys, count)
  above = (keys > cut.value) | ((keys == cut.value) & (np.arange(8) < cut.index))
  np.testing.assert_array_equal(np.flatnonzero(above), _sorted(keys, count))


def _vector(dtype="float32"):
  rng = np.random.default_rng(0)
  vector = rng.laplace(size=LARGE).astype(np.float32)
  vector[rng.random(LARGE) < 0.3] = 0
  vector[100:200] *= np.float32(1e-42)  # subnormal
  return jnp.asarray(vector).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
  "selector",
  [rtopk_jax.rtop_k(0.01, 5), rtopk_jax.top_k(0.8), rtopk_jax.random_k(0.02)],
  ids=["rtop_k", "top_k", "random_k"],
)
def test_methods_choose_the_same(selector, dtype):
  vector, key = _vector(dtype), jax.random.key(1)
  by_search = jax.jit(selector)(vector, key)
  by_top_k = jax.jit(dataclasses.replace(selector, method="top_k"))(vector, key)
  np.testing.assert_array_equal(by_search.indices, by_top_k.indices)
  np.testing.assert_array_equal(
    by_search.values.astype("float32"), by_top_k.values.astype("float32")
  )
  assert (np.diff(np.asarray(by_search.indices)) > 0).all()


def test_nothing_of_the_vectors_length_is_sorted_or_stored():
  size = 1 << 22
  vector, key = jax.ShapeDtypeStruct((size,), jnp.float32), jax.random.key(0)
  compiled = jax.jit(rtopk_jax.rtop_k(0.001, 5)).lower(vector, key).compile()
  assert not [x for x in compiled.as_text().splitlines() if " sort(" in x or "TopK" in x]
  # Keys beside the vector would take 4 bytes an entry.
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * size


def test_vmap_and_shard_map_agree():
  selector = rtopk_jax.rtop_k(0.01, 5)
  keys = jax.random.split(jax.random.key(0), 2)
  vectors = jnp.stack([_vector(), jnp.zeros(LARGE)])  # one needs more turns than the other
  one_by_one = [jax.jit(selector)(v, k).indices for v, k in zip(vectors, keys, strict=True)]
  together = jax.jit(jax.vmap(lambda v, k: selector(v, k).indices))(vectors, keys)
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.jit(
    jax.shard_map(
      lambda v, k: selector(v[0], k[0]).indices[None],
      mesh=mesh,
      in_specs=(P("data"), P("data")),
      out_specs=P("data"),
    )
  )(vectors, keys)
  np.testing.assert_array_equal(together, jnp.stack(one_by_one))
  np.testing.assert_array_equal(spread, jnp.stack(one_by_one))


def test_unknown_method_is_refused():
  with pytest.raises(ValueError, match="method must be one of 'search', 'top_k', got 'sort'"):
    rtopk_jax.Selector(0.1, 1, method="sort")
