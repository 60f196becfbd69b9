"""A wire of one's own: values of 8 bits, floating point, with a scale for every 32 of them.

    tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data", wire=Float8())

``docs/extending.md`` walks through it.
"""

import dataclasses

import jax
import jax.numpy as jnp

import rtopk_jax

BLOCK, LARGEST = 32, 448.0


@dataclasses.dataclass(frozen=True)
class Float8(rtopk_jax.WireFormat):
  """Numbers of 1 sign, 4 exponent and 3 mantissa bits, times powers of two; indices as they are."""

  def words(self, k: int, d: int) -> int:
    """A word for a block's scale, eight for its values, one for each index."""
    return -(-k // BLOCK) * (1 + BLOCK // 4) + k

  def encode(self, slices: rtopk_jax.SparseSlices, key: jax.Array | None = None) -> jax.Array:
    """Scales, values, indices."""
    values = jnp.pad(slices.values, (0, -slices.values.size % BLOCK)).reshape(-1, BLOCK)
    # With powers of two no product is rounded: what is lost is exactly what the memory keeps.
    _, exponent = jnp.frexp(jnp.max(jnp.abs(values), axis=1) / LARGEST)
    scales = jnp.ldexp(jnp.float32(1), jnp.clip(exponent, -100, 126))
    eighths = (values / scales[:, None]).astype(jnp.float8_e4m3fn).reshape(-1, 4)
    parts = scales, jax.lax.bitcast_convert_type(eighths, jnp.uint32), slices.indices
    return jnp.concatenate([jax.lax.bitcast_convert_type(x, jnp.uint32) for x in parts])

  def decode(self, words: jax.Array, k: int, d: int) -> rtopk_jax.SparseSlices:
    """The same backwards."""
    blocks = -(-k // BLOCK)
    scales, eighths, indices = jnp.split(words, (blocks, words.size - k))
    scales = jax.lax.bitcast_convert_type(scales, jnp.float32)
    eighths = jax.lax.bitcast_convert_type(eighths, jnp.float8_e4m3fn).reshape(-1, BLOCK)
    values = (eighths.astype(jnp.float32) * scales[:, None]).reshape(-1)[:k]
    return rtopk_jax.SparseSlices(values, jax.lax.bitcast_convert_type(indices, jnp.int32), d)
