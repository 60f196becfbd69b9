r"""Values in a few bits each, by stochastic rounding: right on average, whatever the value.

Of every ``BLOCK`` values the largest magnitude s is sent as it is. With L the largest number that b bits hold,
a value x becomes one of the two whole numbers next to x L/s, the nearer the more likely:

.. math::
  q = \lfloor x L/s + U \rfloor, \qquad U \sim \mathrm{Unif}[0, 1), \qquad E[q\, s/L] = x.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis, _bits

BITS = {"int8": 8, "int4": 4, "int2": 2}
# Values that share a scale: it adds an eighth of a bit to each.
BLOCK = 256
# Shifts and factors that spread each bit over all others.
_MIXING = (
  (16, np.uint32(0x7FEB_352D)),
  (15, np.uint32(0x846C_A68B)),
  (16, np.uint32(0x9E37_79B1)),
)


def words(k: int, values: str) -> int:
  """How many 32-bit words k values take."""
  return -(-k // BLOCK) + _bits.words(k, BITS[values])


def _levels(values: str) -> int:
  return (1 << (BITS[values] - 1)) - 1


def encode(x: jax.Array, values: str, key: jax.Array) -> jax.Array:
  """The words of some values.

  Args:
    x: shape (k,), float32.
    values: a key of ``BITS``.
    key: of the rounding.

  Returns:
    uint32, shape (words(k, values),).
  """
  (k,) = x.shape
  blocks = jnp.pad(x, (0, -k % BLOCK)).reshape(-1, BLOCK)
  # Magnitudes in the order of the numbers that their bits spell; by halves, since compilers for CPUs vectorise
  # what makes two numbers of a row.
  bits = lax.bitcast_convert_type(jnp.abs(blocks), jnp.int32)
  zero = _axis.varying_like(jnp.int32(0), x)
  highest = lax.reduce(
    (bits[:, : BLOCK // 2], bits[:, BLOCK // 2 :]),
    (zero, zero),
    lambda a, b: (jnp.maximum(a[0], b[0]), jnp.maximum(a[1], b[1])),
    (1,),
  )
  scale = lax.bitcast_convert_type(jnp.maximum(*highest), jnp.float32)
  levels = _levels(values)
  # Divided first, so that nothing overflows.
  shares = jnp.where(scale[:, None] > 0, blocks / scale[:, None], jnp.float32(0))
  numbers = jnp.floor(shares * levels + _uniform(key, blocks.shape))
  # x = s with U close to 1 may be rounded up to a number that there is not.
  numbers = jnp.clip(numbers, -levels, levels).astype(jnp.int32).reshape(-1)[:k]
  # What is not finite must stay so: no word of the numbers would tell.
  scale = jnp.where(jnp.isfinite(scale), scale, jnp.float32(jnp.nan))
  scales = lax.bitcast_convert_type(scale, jnp.uint32)
  return jnp.concatenate([scales, _bits.pack(numbers, BITS[values])])


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Numbers from 0 to 1, by a hash of the entries' numbers that a key shifts.

  Rounding wants a draw that is even for each value, which a bijection of an even shift is, and not one that
  nobody could foresee, which takes longer than all the rest of coding.
  """
  shift, mask = jax.random.bits(key, (2,), jnp.uint32)
  x = lax.iota(jnp.uint32, math.prod(shape)) + shift
  for bits, factor in _MIXING:
    x = (x ^ (x >> np.uint32(bits))) * factor
    x ^= mask
  # 23 bits below 1, as the mantissa of a number from 1 to 2.
  mantissa = (x >> np.uint32(9)) | np.uint32(0x3F80_0000)
  return (lax.bitcast_convert_type(mantissa, jnp.float32) - 1).reshape(shape)


def decode(code: jax.Array, k: int, values: str) -> jax.Array:
  """The values of some words, shape (k,), float32."""
  width, blocks = BITS[values], -(-k // BLOCK)
  scale = lax.bitcast_convert_type(code[:blocks], jnp.float32)
  numbers = _bits.unpack(code[blocks:], k, width)
  # The sign bit is the highest of ``width``.
  shift = 32 - width
  numbers = lax.bitcast_convert_type(numbers << shift, jnp.int32) >> shift
  numbers = jnp.pad(numbers, (0, -k % BLOCK)).reshape(-1, BLOCK)
  return (numbers.astype(jnp.float32) / _levels(values) * scale[:, None]).reshape(-1)[:k]
