"""What several models are made of."""

import jax
import jax.numpy as jnp


def matmul(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """A product with factors in ``dtype`` and sums in float32."""
  return jnp.dot(x.astype(dtype), w.astype(dtype), preferred_element_type=jnp.float32)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
  """An array with a share of its entries set to zero, and the rest larger by as much."""
  kept = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), 0)
