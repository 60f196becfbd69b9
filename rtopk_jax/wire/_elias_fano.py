r"""Ascending indices in little more than the bits that a set of them is worth (Elias, 1974; Fano, 1971).

An index is divided by a bucket size b. The remainders are stored as they are. The quotients ascend, with steps
so small that unary code suits them: bit (quotient + i) is set for the i-th index. With b a power of two that
takes log₂ b + 1 + d/(k b) bits an index, up to 0.61 more than the entropy log₂ C(d, k)/k at densities up to
10 %. Between the powers lie the sizes 3·2^j, whose remainders are j bits and a digit of three values, twenty to
a word; with the better of the two it is at most 0.60. The size depends on k and d alone, so it is known when
compiling.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax.kernels import _bitpack
from rtopk_jax.kernels._bitset import BitSet

# Digits of three values in a word: 3²⁰ < 2³².
_DIGITS = 20
_POWERS = np.uint32(3) ** np.arange(_DIGITS, dtype=np.uint32)


class _Sizes(NamedTuple):
  """How the words of a message are divided.

  Attributes:
    low: bits of a remainder that are packed.
    in_threes: whether the bucket size is 3·2^low, and not 2^low: then a remainder has a digit of three values, too.
    packed: words of the packed bits.
    digits: words of the digits.
    unary: words of the quotients.
  """

  low: int
  in_threes: bool
  packed: int
  digits: int
  unary: int

  @property
  def bucket(self) -> int:
    return (3 if self.in_threes else 1) << self.low

  @property
  def words(self) -> int:
    return self.packed + self.digits + self.unary


@functools.cache
def _sizes(k: int, d: int) -> _Sizes:
  level = max(0, math.floor(math.log2(d / k)))
  choices = []
  threes = [(low, True) for low in (level - 2, level - 1) if low >= 0]
  for low, in_threes in ((level, False), *threes, (level + 1, False)):
    bucket = (3 if in_threes else 1) << low
    unary = -(-(k + (d - 1) // bucket) // 32)
    digits = -(-k // _DIGITS) if in_threes else 0
    choices.append(_Sizes(low, in_threes, _bitpack.words(k, low), digits, unary))
  return min(choices, key=lambda sizes: sizes.words)


def words(k: int, d: int) -> int:
  """How many 32-bit words k of d indices take."""
  return _sizes(k, d).words


def encode(indices: jax.Array, d: int) -> list[jax.Array]:
  """The words of some indices.

  Args:
    indices: shape (k,), int32, strictly ascending, from 0 to d − 1.
    d: entries that they point into.

  Returns:
    uint32 words, ``words(k, d)`` in all, in parts.
  """
  (k,) = indices.shape
  sizes = _sizes(k, d)
  # Without signs division by a constant is a shift or a product.
  indices, bucket = indices.astype(jnp.uint32), np.uint32(sizes.bucket)
  quotient = indices // bucket
  rest = indices - quotient * bucket
  bit = quotient + lax.iota(jnp.uint32, k)
  # No two indices share a bit, so adding is setting.
  unary = (
    jnp.zeros(sizes.unary, jnp.uint32)
    .at[bit >> 5]
    .add(np.uint32(1) << (bit & 31), indices_are_sorted=True)
  )
  parts = _bitpack.pack(rest, sizes.low)
  if sizes.in_threes:
    digits = jnp.pad(rest >> np.uint32(sizes.low), (0, -k % _DIGITS))
    parts.append(jnp.sum(digits.reshape(-1, _DIGITS) * _POWERS[None], axis=1, dtype=jnp.uint32))
  return [*parts, unary]


def decode(code: jax.Array, k: int, d: int) -> jax.Array:
  """The indices of some words.

  Args:
    code: what ``encode`` returned, joined.
    k: how many indices.
    d: entries that they point into.

  Returns:
    int32, shape (k,), ascending.
  """
  sizes = _sizes(k, d)
  rest = _bitpack.unpack(code[: sizes.packed], k, sizes.low)
  after = sizes.packed + sizes.digits
  if sizes.in_threes:
    digits = code[sizes.packed : after].reshape(-1, 1) // _POWERS[None] % np.uint32(3)
    rest += digits.reshape(-1)[:k] << np.uint32(sizes.low)
  quotient = BitSet(code[after:], width=1).first(k) - lax.iota(jnp.int32, k)
  return quotient * sizes.bucket + rest.astype(jnp.int32)
