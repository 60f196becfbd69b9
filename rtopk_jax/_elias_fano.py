"""Ascending indices in little more than the bits that a set of them is worth (Elias, 1974; Fano, 1971).

An index is cut into l low bits and the rest. The low bits are stored as they are. The rest ascends, with
steps so small that unary code suits it: bit (rest + i) is set for the i-th index. With l = ⌊log₂(d/k)⌋ that
takes l + 1 + 2^f bits an index, f the fraction of log₂(d/k) that was cut off, within 0.61 of the entropy
log₂ C(d, k)/k at densities up to 10 %. The size depends on k and d alone, so it is known when compiling.

Low bits lie in planes: word w of plane j has bit j of 32 neighbours. That takes no scatter, and no bit
offset that could outgrow an int32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax._positions import GROUP, Positions


def _low_bits(k: int, d: int) -> int:
  return max(0, math.floor(math.log2(d / k)))


def _sizes(k: int, d: int) -> tuple[int, int]:
  """Words of all planes, and words of the unary part."""
  low = _low_bits(k, d)
  return low * -(-k // 32), -(-(k + ((d - 1) >> low)) // 32)


def words(k: int, d: int) -> int:
  """How many 32-bit words k of d indices take."""
  return sum(_sizes(k, d))


def encode(indices: jax.Array, d: int) -> jax.Array:
  """The words of some indices.

  Args:
    indices: shape (k,), int32, strictly ascending, from 0 to d − 1.
    d: entries that they point into.

  Returns:
    uint32, shape (words(k, d),).
  """
  (k,) = indices.shape
  low = _low_bits(k, d)
  _, unary = _sizes(k, d)
  bit = (indices >> low) + lax.iota(jnp.int32, k)
  # No two indices share a bit, so adding is setting.
  rest = (
    jnp.zeros(unary, jnp.uint32)
    .at[bit >> 5]
    .add(np.uint32(1) << (bit & 31).astype(jnp.uint32), indices_are_sorted=True)
  )
  neighbours = jnp.pad(indices, (0, -k % 32)).astype(jnp.uint32).reshape(1, -1, 32)
  plane = lax.iota(jnp.uint32, low).reshape(-1, 1, 1)
  place = lax.iota(jnp.uint32, 32).reshape(1, 1, -1)
  bits = (neighbours >> plane) & np.uint32(1)
  planes = jnp.sum(bits << place, axis=2, dtype=jnp.uint32)
  return jnp.concatenate([planes.reshape(-1), rest])


def decode(code: jax.Array, k: int, d: int) -> jax.Array:
  """The indices of some words.

  Args:
    code: what ``encode`` returned.
    k: how many indices.
    d: entries that they point into.

  Returns:
    int32, shape (k,), ascending.
  """
  low = _low_bits(k, d)
  in_planes, unary = _sizes(k, d)
  planes = code[:in_planes].reshape(low, -(-k // 32), 1)
  place = lax.iota(jnp.uint32, 32).reshape(1, 1, -1)
  plane = lax.iota(jnp.uint32, low).reshape(-1, 1, 1)
  bits = ((planes >> place) & np.uint32(1)) << plane
  lows = jnp.sum(bits, axis=0, dtype=jnp.uint32).reshape(-1)[:k].astype(jnp.int32)
  number = lax.iota(jnp.int32, k)
  rest = Positions(jnp.pad(code[in_planes:], (0, -unary % GROUP)), width=1).locate(number) - number
  return (rest << low) | lows
