"""The wire: what is decoded is what was sent."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax

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
