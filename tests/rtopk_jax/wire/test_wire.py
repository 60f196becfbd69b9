"""The wire: what is decoded is what was sent, or next to it."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax.wire import _elias_fano, _wire
from tests.rtopk_jax import harness

WIRE = rtopk_jax.Wire()
LARGEST = 2**31 - 1


@functools.partial(jax.jit, static_argnums=1)
def round_trip(slices, d):
  words = WIRE.encode(slices)
  return words, WIRE.decode(words, slices.values.size, d)


@hypothesis.given(st.data(), st.sampled_from([1, 2, 9]), st.sampled_from([9, 1000, LARGEST]))
def test_a_message_is_read_as_it_was_written_bit_for_bit(data, k, d):
  """Values are any 32 bits: infinities, NaN payloads and subnormals too."""
  values = data.draw(hnp.arrays(np.uint32, k)).view(np.float32)
  drawn = data.draw(st.lists(st.integers(0, d - 1), min_size=k, max_size=k, unique=True))
  indices = np.sort(np.array(drawn, np.int32))
  words, decoded = round_trip(rtopk_jax.SparseSlices(values, indices, d), d)
  assert words.dtype == jnp.uint32
  assert words.shape == (WIRE.words(k, d),)
  assert np.asarray(decoded.values).tobytes() == values.tobytes()
  np.testing.assert_array_equal(decoded.indices, indices)
  assert decoded.size == d


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_travels_as_float32(dtype):
  values = jnp.array([1.5, -0.0, 65504.0]).astype(dtype)
  words = WIRE.encode(rtopk_jax.SparseSlices(values, jnp.array([0, 1, 2]), 3))
  decoded = WIRE.decode(words, 3, 3).values
  assert decoded.dtype == jnp.float32
  np.testing.assert_array_equal(decoded, values.astype(jnp.float32))


LEVELS = {"int8": 127, "int4": 7, "int2": 1}
# Bits of a value, and how many share a scale of 32 more.
BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4, "int2": 2}
SHARED = 256
BLOCK = 64
# (k, d): one of one, one of many, all, and several blocks of values with a rest.
SHAPES = [(1, 1), (1, 2**31 - 65), (BLOCK, BLOCK), (600, 5000)]


@functools.partial(jax.jit, static_argnums=(0, 4))
def coded(wire, values, indices, begins, d, seed):
  blocks = _wire.Blocks(begins, BLOCK)
  slices = rtopk_jax.SparseSlices(values, indices, d)
  words = wire.encode(slices, jax.random.key(seed), blocks)
  return words, wire.decode(words, values.size, d, blocks)


def sets(k, d, seed):
  """Ascending indices, crowded or spread."""
  rng = np.random.default_rng(seed)
  crowded = max(k, int(d ** rng.uniform()))
  start = rng.integers(0, d - crowded + 1)
  chosen = rng.choice(crowded, k, replace=False) if crowded < 1 << 20 else _rare(rng, k, crowded)
  return np.sort(start + chosen).astype(np.int32)


def _rare(rng, k, d):
  found = np.unique(rng.integers(0, d, 2 * k + 1))
  return rng.permutation(found)[:k]


def magnitudes(k):
  """Values with ties, zeros, and magnitudes from next to nothing to next to infinity."""
  special = [0.0, -0.0, 1.0, -1.0, 65519.0, -65520.0, 70_000.0, 1e-7, 3e38, -3.4e38]
  ordinary = st.floats(-100, 100, width=32, allow_subnormal=False)
  few = st.lists(st.sampled_from(special) | ordinary, min_size=1, max_size=8)
  return st.tuples(few, st.integers(0, 2**32 - 1)).map(
    lambda x: np.random.default_rng(x[1]).choice(np.float32(x[0]), k)
  )


@pytest.mark.parametrize(
  ("values", "indices"),
  [
    # Each code twice or so; values and indices know nothing of each other.
    pytest.param(values, indices, marks=[] if (i + j) % 2 else pytest.mark.slow)
    for i, values in enumerate(BITS)
    for j, indices in enumerate(("int32", "elias_fano", "block"))
  ],
)
@hypothesis.settings(max_examples=16)
@hypothesis.given(st.data(), st.sampled_from(SHAPES), st.integers(0, 2**31 - 1))
def test_every_code_is_read_as_it_was_written(values, indices, data, shape, seed):
  k, d = shape
  wire = rtopk_jax.Wire(values, indices)
  sent, where = data.draw(magnitudes(k)), sets(k, d, seed)
  begins = where // BLOCK * BLOCK
  words, decoded = coded(wire, sent, where, begins, d, np.int32(seed))
  np.testing.assert_array_equal(decoded.indices, where)
  assert words.shape == (wire.words(k, d, _wire.Blocks(begins, BLOCK)),)
  found = np.asarray(decoded.values)
  assert found.dtype == np.float32
  if values == "float32":
    assert found.tobytes() == sent.tobytes()
  elif values in LEVELS:
    scale = np.concatenate(
      [np.full(x.size, np.abs(x).max()) for x in np.split(sent, range(SHARED, k, SHARED))]
    )
    step = scale.astype(np.float64) / LEVELS[values]
    assert np.all(np.abs(found.astype(np.float64) - sent) <= 1.00001 * step)
    # The largest and nothing are what they are.
    largest = np.abs(sent) == scale
    np.testing.assert_allclose(found[largest], sent[largest], rtol=1e-6)
    assert not np.any(found[sent == 0])
  else:
    most = float(jnp.finfo(values).max)
    expected = np.clip(sent, -most, most).astype(jnp.dtype(values)).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


@hypothesis.settings(max_examples=12)
@hypothesis.given(st.data(), st.integers(1, LARGEST), st.integers(0, 2**32 - 1))
def test_sets_of_any_size_of_any_size(data, d, seed):
  """A program for every pair of sizes, so that they are few."""
  d = max(1, d >> data.draw(st.integers(0, 30)))
  k = data.draw(st.integers(1, min(d, 3000)))
  where = sets(k, d, seed)
  code = jax.jit(lambda x: jnp.concatenate(_elias_fano.encode(x, d)))(where)
  assert code.shape == (_elias_fano.words(k, d),)
  decoded = jax.jit(_elias_fano.decode, static_argnums=(1, 2))(code, k, d)
  np.testing.assert_array_equal(decoded, where)


@pytest.mark.parametrize("collective", ["all_gather", "reduce_scatter"])
def test_what_is_beyond_float16_stays_in_the_memory_and_follows(collective):
  """One gradient of some 1e6, then none: 65,504 of an entry a step, until nothing is left."""
  workers, steps, most = 2, 130, 65_504
  rng = np.random.default_rng(0)
  grads = np.zeros((steps, workers, 10, 8), np.float32)
  # Whole thousands up to 1.2 million: every sum and difference is exact.
  grads[0] = rng.choice([-1, 1], (workers, 10, 8)) * rng.integers(800, 1200, (workers, 10, 8)) * 1e3
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.5),
    harness.AXIS,
    dense=False,
    average="sum",
    wire=rtopk_jax.Wire("float16"),
    collective=collective,
  )
  updates, state = harness.run("vmap", tx, {"w": grads})
  sent, kept = updates["w"], state.residual["w"]
  senders = workers if collective == "all_gather" else 1
  assert np.abs(sent).max() == senders * most
  total = np.cumsum(sent, axis=0, dtype=np.float64) + kept.sum(axis=1, dtype=np.float64)
  # What is below 65,504 is rounded to multiples of up to 32, with which thousands and 65,504 are exact as well.
  np.testing.assert_array_equal(total, np.broadcast_to(grads[0].sum(axis=0), total.shape))
  assert np.abs(kept[0]).max() > 1e6 - most
  assert not np.any(kept[-1])
