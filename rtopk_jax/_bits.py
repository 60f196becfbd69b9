"""Short numbers packed into words, by planes: first the lowest bit of all of them, then the next.

That takes no scatter, and no bit offset that could outgrow an int32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# So many numbers and their planes begin at words of their own, which costs them next to nothing.
_ALIGNED = 16384


def _plane(count: int) -> int:
  return -(-count // 32) * 32 if count >= _ALIGNED else count


def words(count: int, width: int) -> int:
  """How many words ``count`` numbers of ``width`` bits take."""
  return -(-width * _plane(count) // 32)


def pack(numbers: jax.Array, width: int) -> jax.Array:
  """The words of some numbers.

  Args:
    numbers: shape (m,), an integer dtype; only the lowest ``width`` bits count.
    width: bits of each.

  Returns:
    uint32, shape (words(m, width),).
  """
  numbers = jnp.pad(numbers, (0, _plane(numbers.size) - numbers.size)).astype(jnp.uint32)
  bits = (numbers[None] >> lax.iota(jnp.uint32, width)[:, None]) & np.uint32(1)
  bits = bits.reshape(-1)
  bits = jnp.pad(bits, (0, -bits.size % 32)).reshape(-1, 32)
  return jnp.sum(bits << lax.iota(jnp.uint32, 32)[None], axis=1, dtype=jnp.uint32)


def unpack(code: jax.Array, count: int, width: int) -> jax.Array:
  """The numbers of some words.

  Args:
    code: what ``pack`` returned.
    count: how many numbers.
    width: bits of each.

  Returns:
    uint32, shape (count,).
  """
  bits = (code[:, None] >> lax.iota(jnp.uint32, 32)[None]) & np.uint32(1)
  bits = bits.reshape(-1)[: width * _plane(count)].reshape(width, _plane(count))
  bits <<= lax.iota(jnp.uint32, width)[:, None]
  return jnp.sum(bits, axis=0, dtype=jnp.uint32)[:count]
