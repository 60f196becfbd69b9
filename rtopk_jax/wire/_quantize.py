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

from rtopk_jax.kernels import _bitpack

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
  return sum(rows * (1 + _width(columns, values)) for rows, columns in _blocks(k))


def _blocks(k: int) -> list[tuple[int, int]]:
  """How many blocks of how many values there are: the whole ones, and one of what is left."""
  return [shape for shape in ((k // BLOCK, BLOCK), (1, k % BLOCK)) if math.prod(shape)]


def _width(columns: int, values: str) -> int:
  """Words that the numbers of a block take."""
  return -(-columns * BITS[values] // 32)


def _levels(values: str) -> int:
  return (1 << (BITS[values] - 1)) - 1


def encode(x: jax.Array, values: str, key: jax.Array) -> list[jax.Array]:
  """The words of some values.

  Args:
    x: shape (k,), float32.
    values: a key of ``BITS``.
    key: of the rounding.

  Returns:
    uint32 words, ``words(k, values)`` in all, in parts.
  """
  parts, start = [], 0
  for rows, columns in _blocks(x.size):
    blocks = x[start : start + rows * columns].reshape(rows, columns)
    scale = _largest(blocks)
    numbers = _round(blocks, scale, values, _uniform(key, start, blocks.shape))
    # What is not finite must stay so: no word of the numbers would tell.
    scale = jnp.where(jnp.isfinite(scale), scale, jnp.float32(jnp.nan))
    parts += [
      lax.bitcast_convert_type(scale, jnp.uint32),
      _bitpack.pack_rows(numbers.astype(jnp.uint32), BITS[values]).reshape(-1),
    ]
    start += rows * columns
  return parts


def _largest(blocks: jax.Array) -> jax.Array:
  """The largest magnitude of each block."""
  # In the order of the numbers that their bits spell.
  bits = lax.bitcast_convert_type(jnp.abs(blocks), jnp.int32)
  return lax.bitcast_convert_type(_bitpack.by_halves(lax.max, bits, axis=1), jnp.float32)


def _round(blocks: jax.Array, scale: jax.Array, values: str, uniform: jax.Array) -> jax.Array:
  """The whole numbers that a block's values are sent as, int32."""
  levels = _levels(values)
  # Compilers multiply by 1/s, which for the largest s is subnormal and so zero: both are brought down first.
  down = jnp.where(scale > 1, jnp.float32(2**-8), jnp.float32(1))
  blocks, scale = blocks * down[:, None], scale * down
  # Divided first, so that nothing overflows.
  shares = jnp.where(scale[:, None] > 0, blocks / scale[:, None], jnp.float32(0))
  numbers = jnp.floor(shares * levels + uniform)
  # x = s with U close to 1 may be rounded up to a number that there is not.
  return jnp.clip(numbers, -levels, levels).astype(jnp.int32)


def _uniform(key: jax.Array, start: int, shape: tuple[int, ...]) -> jax.Array:
  """Numbers from 0 to 1, by a hash of the entries' numbers that a key shifts.

  Rounding needs a draw that is uniform for each value. A bijection, shifted by a uniform number, gives one. It does
  not need a draw that nobody can foresee, which would take longer than all the rest of coding.
  """
  shift, mask = jax.random.bits(key, (2,), jnp.uint32)
  x = lax.iota(jnp.uint32, math.prod(shape)) + (shift + np.uint32(start))
  for bits, factor in _MIXING:
    x = (x ^ (x >> np.uint32(bits))) * factor
    x ^= mask
  # 23 bits below 1, as the mantissa of a number from 1 to 2.
  mantissa = (x >> np.uint32(9)) | np.uint32(0x3F80_0000)
  return (lax.bitcast_convert_type(mantissa, jnp.float32) - 1).reshape(shape)


def decode(code: jax.Array, k: int, values: str) -> jax.Array:
  """The values of some words, shape (k,), float32."""
  parts, start = [], 0
  bits = BITS[values]
  for rows, columns in _blocks(k):
    width = _width(columns, values)
    scale = lax.bitcast_convert_type(code[start : start + rows], jnp.float32)
    fields = code[start + rows : start + rows * (1 + width)].reshape(rows, 1, width)
    # To the top of the word, so that the highest bit is the sign.
    fields <<= (32 - bits * (1 + lax.iota(jnp.uint32, 32 // bits)))[None, :, None]
    numbers = lax.bitcast_convert_type(fields, jnp.int32) >> (32 - bits)
    numbers = numbers.reshape(rows, -1)[:, :columns].astype(jnp.float32)
    parts.append((numbers / _levels(values) * scale[:, None]).reshape(-1))
    start += rows * (1 + width)
  return _bitpack.join(parts)
