"""The code of indices: exact, of known size, close to the entropy; and values of half the bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtopk_jax
from rtopk_jax import _elias_fano
from tests.rtopk_jax import harness


def _round_trip(indices, d):
  indices = np.asarray(sorted(indices), np.int32)
  code = jax.jit(_elias_fano.encode, static_argnums=1)(indices, d)
  assert code.shape == (_elias_fano.words(len(indices), d),)
  assert code.dtype == jnp.uint32
  decoded = jax.jit(_elias_fano.decode, static_argnums=(1, 2))(code, len(indices), d)
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


def test_words_against_a_code_of_bits_in_python():
  d, indices = 200, [3, 4, 17, 90, 91, 150, 199]
  low = 4  # ⌊log2(200 / 7)⌋
  planes = [sum(((x >> j) & 1) << i for i, x in enumerate(indices)) for j in range(low)]
  unary = sum(1 << ((x >> low) + i) for i, x in enumerate(indices))
  code = _elias_fano.encode(np.array(indices, np.int32), d)
  np.testing.assert_array_equal(code, [*planes, unary])


@pytest.mark.parametrize("density", [1e-4, 3e-4, 1e-3, 1 / 1024, 0.003, 0.01, 0.03, 1 / 16, 0.1])
def test_size_is_close_to_the_entropy(density):
  d = 11_173_962
  k = round(density * d)
  log2_factorial = lambda n: math.lgamma(n + 1) / math.log(2)
  entropy = (log2_factorial(d) - log2_factorial(k) - log2_factorial(d - k)) / k
  assert 32 * _elias_fano.words(k, d) / k < entropy + 0.61


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


@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
@pytest.mark.parametrize("values", ["float32", "bfloat16", "float16"])
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
  np.testing.assert_allclose(went_out + kept, came_in, atol=1e-5)
  params = {"w": jnp.zeros((30, 50))}
  k = 300
  bits = {"float32": 32, "bfloat16": 16, "float16": 16}[values]
  low, unary = 2 * math.ceil(k / 32), math.ceil((k + 1499 // 4) / 32)
  assert rtopk_jax.wire_bytes(tx, params, 4).sent == 12 + 4 * (k * bits // 32 + low + unary)
