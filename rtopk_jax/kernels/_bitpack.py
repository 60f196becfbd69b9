"""Short numbers packed into words, in fields of 16, 8, 4, 2 and 1 bits, as the width is a sum of these.

Of six bits the lowest four are fields of one array of words, eight to a word, and the highest two of another,
sixteen to a word. The fields of a word are as far apart in the numbers as there are words, so that packing is a
few shifts of whole arrays: no scatter, and no bit offset that could outgrow an int32.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._precision import as_bits


def join(parts: Sequence[jax.Array]) -> jax.Array:
  """One array after another.

  Compilers for CPUs give each thread of a concatenation as much of every part as of the longest, and have it pass
  over what is not there, which takes a hundred times as long as the rest. They would do so with what is written
  over zeros too, for which they pad; so it is written over numbers.
  """
  parts = [part for part in parts if part.size] or list(parts[:1])
  if len(parts) == 1:
    return parts[0]
  return as_bits(_written_over_numbers, *parts)


def _written_over_numbers(*parts: jax.Array) -> jax.Array:
  """``join``, of parts that are all there."""
  joined = lax.iota(parts[0].dtype, sum(part.size for part in parts))
  start = 0
  for part in parts:
    joined = lax.dynamic_update_slice(joined, part, (start,))
    start += part.size
  return joined


def by_halves(
  combine: Callable[[jax.Array, jax.Array], jax.Array], numbers: jax.Array, axis: int
) -> jax.Array:
  """All numbers along an axis combined, of which zero changes nothing.

  The halves are two results of one reduction: compilers for CPUs make vector instructions of that, and work it out
  once, where a reduction to one result is worked out anew wherever it is read.
  """
  half = -(-numbers.shape[axis] // 2)
  widths = [(0, 2 * half - length if i == axis else 0) for i, length in enumerate(numbers.shape)]
  numbers = jnp.pad(numbers, widths)
  halves = [lax.slice_in_dim(numbers, begin, begin + half, axis=axis) for begin in (0, half)]
  zero = _axis.varying_like(jnp.zeros((), numbers.dtype), numbers)
  results = lax.reduce(
    tuple(halves),
    (zero, zero),
    lambda a, b: (combine(a[0], b[0]), combine(a[1], b[1])),
    (axis,),
  )
  return combine(*results)


def of_members(members: jax.Array) -> jax.Array:
  """Rows of bools as rows of words, the first in the lowest bit; a row ends with a whole word."""
  rows = members.shape[0]
  members = jnp.pad(members, ((0, 0), (0, -members.shape[1] % 32)))
  bits = members.reshape(-1, 32).astype(jnp.uint32) << lax.iota(jnp.uint32, 32)[None]
  # Two results of one reduction, as in `by_halves`, but of whole words: of halves of each it takes four times as long.
  half = -(-bits.shape[0] // 2)
  bits = jnp.pad(bits, ((0, 2 * half - bits.shape[0]), (0, 0)))
  zero = _axis.varying_like(jnp.uint32(0), bits)
  made = lax.reduce(
    (bits[:half], bits[half:]), (zero, zero), lambda a, b: (a[0] | b[0], a[1] | b[1]), (1,)
  )
  return jnp.concatenate(made)[: rows * (members.shape[1] // 32)].reshape(rows, -1)


def _fields(width: int) -> list[tuple[int, int]]:
  """The first bit of each field and its bits, the widest first."""
  widths = [1 << i for i in reversed(range(width.bit_length())) if width >> i & 1]
  return list(zip(itertools.accumulate(widths, initial=0), widths, strict=False))


def words(count: int, width: int) -> int:
  """How many words ``count`` numbers of ``width`` bits take."""
  return sum(-(-bits * count // 32) for _, bits in _fields(width))


def pack(numbers: jax.Array, width: int) -> list[jax.Array]:
  """The words of some numbers.

  Args:
    numbers: shape (m,), an integer dtype; only the lowest ``width`` bits count.
    width: bits of each, below 32.

  Returns:
    uint32 words, ``words(m, width)`` in all: those of each field, to be joined with what else there is.
  """
  numbers = numbers.astype(jnp.uint32)[None]
  return [pack_rows(numbers >> np.uint32(first), bits)[0] for first, bits in _fields(width)]


def pack_rows(numbers: jax.Array, bits: int) -> jax.Array:
  """The words of rows of numbers, by the lowest bits of each; field i of word j is number i·w + j of w words.

  Args:
    numbers: shape (rows, m), uint32.
    bits: of a field: 1, 2, 4, 8 or 16.

  Returns:
    uint32, shape (rows, words(m, bits)).
  """
  rows, each = numbers.shape[0], 32 // bits
  numbers = jnp.pad(numbers, ((0, 0), (0, -numbers.shape[1] % each)))
  fields = (numbers & np.uint32((1 << bits) - 1)).reshape(rows, each, -1)
  fields <<= (bits * lax.iota(jnp.uint32, each))[None, :, None]
  return by_halves(lax.bitwise_or, fields, axis=1)


def unpack(code: jax.Array, count: int, width: int) -> jax.Array:
  """The numbers of some words.

  Args:
    code: what ``pack`` returned, joined.
    count: how many numbers.
    width: bits of each.

  Returns:
    uint32, shape (count,).
  """
  numbers, start = jnp.zeros(count, jnp.uint32), 0
  for first, bits in _fields(width):
    length = words(count, bits)
    part, mask = code[start : start + length], np.uint32((1 << bits) - 1)
    # Parts of one length, which compilers for CPUs deal out evenly.
    fields = [(part >> np.uint32(shift)) & mask for shift in range(0, 32, bits)]
    numbers |= jnp.concatenate(fields)[:count] << np.uint32(first)
    start += length
  return numbers
