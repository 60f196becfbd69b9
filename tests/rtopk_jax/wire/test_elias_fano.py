"""The code of indices: exact, of known size, close to the entropy; and values of half the bits."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtopk_jax
from rtopk_jax.kernels import _bitpack
from rtopk_jax.wire import _elias_fano
from tests.rtopk_jax import harness


@functools.partial(jax.jit, static_argnums=1)
def _encode(indices, d):
  return _bitpack.join(_elias_fano.encode(indices, d))


_decode = jax.jit(_elias_fano.decode, static_argnums=(1, 2))


def _round_trip(indices, d):
  indices = np.asarray(sorted(indices), np.int32)
  code = _encode(indices, d)
  assert code.shape == (_elias_fano.words(len(indices), d),)
  assert code.dtype == jnp.uint32
  decoded = _decode(code, len(indices), d)
  np.testing.assert_array_equal(decoded, indices)


@given(st.sets(st.integers(0, 999), min_size=37, max_size=37))
def test_any_set(indices):
  _round_trip(indices, 1000)


@pytest.mark.parametrize(
  ("indices", "d"),
  [
    ([0], 1),
    ([0], 2**31 - 1),
    ([2**31 - 2], 2**31 - 1),
    (range(64), 64),
    (range(1000), 1001),
    (range(0, 100_000, 99), 100_000),
    (range(90_000, 90_300), 100_000),
    ([0, 1, 2, 99_999], 100_000),
  ],
  ids=lambda x: str(x)[:20],
)
def test_corners(indices, d):
  _round_trip(indices, d)


@pytest.mark.parametrize(
  ("d", "low", "threes"),
  [(200, 4, False), (600 * 16, 2, True)],
)
def test_words_against_a_code_of_bits_in_python(d, low, threes):
  """A bucket of 16 for d/k = 28.6, and of 12 for d/k = 16, where a power of two would cost more."""
  indices = [3, 4, 17, 60, 61, 90, d - 1] if not threes else list(range(5, d, 16))
  k = len(indices)
  bucket = (3 if threes else 1) << low
  packed, first = [], 0
  for bits in (x for x in (16, 8, 4, 2, 1) if low & x):
    length = math.ceil(bits * k / 32)
    fields = [(x % bucket >> first) % 2**bits for x in indices]
    packed += [
      sum(x << bits * i for i, x in enumerate(fields[word::length])) for word in range(length)
    ]
    first += bits
  twenties = [indices[i : i + 20] for i in range(0, k, 20)] if threes else []
  digits = [sum((x % bucket >> low) * 3**i for i, x in enumerate(part)) for part in twenties]
  number = sum(1 << (x // bucket + i) for i, x in enumerate(indices))
  length = math.ceil((k + (d - 1) // bucket) / 32)
  bits = [(number >> (32 * w)) & 0xFFFF_FFFF for w in range(length)]
  code = _encode(np.array(indices, np.int32), d)
  assert _elias_fano.words(k, d) == len(packed) + len(digits) + len(bits)
  np.testing.assert_array_equal(code, [*packed, *digits, *bits])


@pytest.mark.parametrize("d", [11_173_962, 51_022_000])
def test_size_is_close_to_the_entropy(d):
  log2_factorial = lambda n: math.lgamma(n + 1) / math.log(2)
  for density in [*np.geomspace(1e-4, 0.1, 400), 1 / 1024, 1 / 16]:
    k = round(density * d)
    entropy = (log2_factorial(d) - log2_factorial(k) - log2_factorial(d - k)) / k
    assert 32 * _elias_fano.words(k, d) / k < entropy + 0.60, density


def test_few_indices_are_not_coded():
  assert rtopk_jax.Wire(indices="elias_fano").words(1, 1_000_000) == 2
  slices = rtopk_jax.SparseSlices(jnp.array([1.5]), jnp.array([70_000]), 1_000_000)
  wire = rtopk_jax.Wire(indices="elias_fano")
  decoded = wire.decode(wire.encode(slices), 1, 1_000_000)
  assert (decoded.values.tolist(), decoded.indices.tolist()) == ([1.5], [70_000])


@pytest.mark.parametrize("k", [1, 6, 7])
@pytest.mark.parametrize("values", ["bfloat16", "float16"])
def test_short_values_are_rounded_and_saturate(values, k):
  wire = rtopk_jax.Wire(values=values)
  sent = np.array([1e-3, -3.14159, 3e38, -3.4e38, 0.0, -1e-30, 70_000.0], np.float32)[-k:]
  slices = rtopk_jax.SparseSlices(jnp.asarray(sent), jnp.arange(k, dtype=jnp.int32), 9)
  decoded = wire.decode(wire.encode(slices), k, 9).values
  largest = float(jnp.finfo(values).max)
  expected = np.clip(sent, -largest, largest).astype(jnp.dtype(values)).astype(np.float32)
  np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("mode", ["vmap", pytest.param("shard_map", marks=pytest.mark.slow)])
@pytest.mark.parametrize("values", ["float32", "bfloat16", "float16", "int8", "int4", "int2"])
def test_what_rounding_loses_stays_in_the_memory(values, mode):
  wire = rtopk_jax.Wire(values=values, indices="elias_fano")
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.2), harness.AXIS, dense=False, wire=wire, average="sum"
  )
  shapes = {"w": (30, 50)}
  grads = harness.gradients(shapes, 3, 4)
  updates, state = harness.run(mode, tx, grads)
  # Summed over workers and steps, all that came in went out or is kept.
  came_in = np.cumsum(np.asarray(grads["w"], np.float64).sum(axis=1), axis=0)
  went_out = np.cumsum(np.asarray(updates["w"], np.float64), axis=0)
  kept = np.asarray(state.residual["w"], np.float64).sum(axis=1)
  np.testing.assert_allclose(went_out + kept, came_in, atol=2e-5)
  params = {"w": jnp.zeros((30, 50))}
  # 300 of 1,500 in buckets of 4, or of 6 with digits: 2 bits each, and 300 + 374 in unary.
  k = 300
  index_words = math.ceil(2 * k / 32) + math.ceil((k + 1499 // 4) / 32)
  value_words = {"float32": k, "bfloat16": k / 2, "float16": k / 2}
  value_words |= {f"int{bits}": 2 + math.ceil(bits * k / 32) for bits in (8, 4, 2)}
  words = math.ceil(value_words[values]) + index_words
  assert rtopk_jax.wire_bytes(tx, params, 4).sent == harness.gathered(words)
