"""Short numbers packed into words, by planes: first the lowest bit of all of them, then the next.

That takes no scatter, and no bit offset that could outgrow an int32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis

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
  if not width:
    return jnp.zeros(0, jnp.uint32)
  numbers = jnp.pad(numbers, (0, _plane(numbers.size) - numbers.size)).astype(jnp.uint32)
  planes = [(numbers >> np.uint32(i)) & np.uint32(1) for i in range(width)]
  if numbers.size % 32:
    bits = jnp.concatenate(planes)
    planes = [jnp.pad(bits, (0, -bits.size % 32))]
  # All planes in one reduction, which compilers for CPUs vectorise where they do not a sum by itself.
  number = lax.iota(jnp.uint32, 32)[None]
  zero = _axis.varying_like(jnp.uint32(0), numbers)
  packed = lax.reduce(
    tuple(plane.reshape(-1, 32) << number for plane in planes),
    (zero,) * len(planes),
    lambda a, b: tuple(x | y for x, y in zip(a, b, strict=True)),
    (1,),
  )
  return jnp.concatenate(packed)


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
