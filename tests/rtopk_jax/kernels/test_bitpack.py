"""Arrays joined to one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtopk_jax.kernels import here


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint32"])
def test_one_array_after_another(platform, dtype):
  """Bit for bit, both zeros and subnormal numbers included."""
  width = 8 * jnp.dtype(dtype).itemsize
  bits = np.arange(0, 30_000, 7).astype(f"uint{width}")
  bits = np.concatenate([bits, bits | bits.dtype.type(1 << (width - 1))])
  whole = bits.view(jnp.dtype(dtype))
  parts = [whole[:3], whole[3:3], whole[3:500], whole[500:]]
  joined = np.asarray(jax.jit(here().join)(parts))
  assert joined.dtype == whole.dtype
  np.testing.assert_array_equal(joined.view(bits.dtype), bits)


def test_arrays_of_16_bits_are_not_joined_in_float32():
  parts = [jax.ShapeDtypeStruct((size,), jnp.bfloat16) for size in (300, 4_000, 20)]
  assert "f32[" not in jax.jit(here().join).lower(parts).compile().as_text()
