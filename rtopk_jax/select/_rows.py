"""The largest keys of many rows, exactly so many of each, in one read of what the rows are made of.

What so many keys are not below is a bound, which is found bit by bit, by counting. A key of 31 bits is counted as two
numbers of 16 bits, one after the other:

1. Its upper half. That of the last key to be taken is the first bound.
2. Its lower half, where the upper one is at the first bound. What is above that bound has the largest number, what is
   below it has zero. So the second bound parts those to be taken from all others.
3. Where keys are equal, more than are wanted may be at the second bound. Then the place in the row is a third number.

Short numbers take half the cache, and twice as many of them are compared at once. Rows are dealt with a chunk at a
time, so that numbers stay in a cache while they are counted.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop, seldom
from rtopk_jax.kernels import _bitpack, here
from rtopk_jax.kernels._bitset import BitSet
from rtopk_jax.kernels._offsets import made_once

# Bits of the lower number of a key. Of the upper one there is one bit more.
_LOW_BITS, _BITS = 15, 16
# Above the lower number of every key.
_ABOVE = (1 << _BITS) - 1


class Chunk(NamedTuple):
  """Some rows as they are read.

  Attributes:
    keys: a function that reads their keys, shape (rows, width), int32, -1 for what is not there.
    look_up: a function of the columns that are found, to what else is asked of the rows, arrays with a row each.
  """

  keys: Callable[[], jax.Array]
  look_up: Callable[[jax.Array], Sequence[jax.Array]]


class Rows(NamedTuple):
  """Rows of one width, of which so many of the largest keys are wanted.

  Attributes:
    read: a function of the number of a row and a count, to so many rows from that one on.
    counts: how many keys of each row are wanted, from 1 to those that are there.
    width: entries of a row.
  """

  read: Callable[[jax.Array, int], Chunk]
  counts: np.ndarray
  width: int


def largest(part: Rows, ranks: jax.Array) -> tuple[jax.Array, ...]:
  """Some of the largest keys of rows, which among equal ones are those of the first columns.

  Args:
    part: the rows.
    ranks: which of a row's largest are asked for, counted from the first column on; int32, shape (rows, m).

  Returns:
    Their columns, of the shape of the ranks, and what is looked up besides.
  """
  wanted = jnp.asarray(part.counts, jnp.int32)
  is_all = np.all(part.counts == part.width)

  def chunk(first, count):
    read = part.read(first, count)
    counts, columns = (lax.dynamic_slice_in_dim(x, first, count) for x in (wanted, ranks))
    if not is_all:
      columns = BitSet(_members(read.keys, counts), 1).locate_in_rows(columns)
    return columns, *read.look_up(columns)

  return in_chunks(chunk, part.counts.size, part.width, ranks)


def in_chunks(
  function: Callable[[jax.Array, int], tuple[jax.Array, ...]],
  rows: int,
  width: int,
  like: jax.Array,
) -> tuple[jax.Array, ...]:
  """What a function makes of all rows, of as many at a time as a cache has room for.

  Args:
    function: of the number of a row and a count, to arrays with a row for each of so many rows from that one on.
    rows: how many.
    width: keys of a row.
    like: an array that differs between workers as the results do.

  Returns:
    The arrays of all rows.
  """
  most = max(1, here().keys_at_once // width)
  chunks = -(-rows // most)
  together = -(-rows // chunks)

  def turn(number, found):
    # The last chunk begins where it ends with the last row.
    first = jnp.minimum(number * together, rows - together)
    write = lambda old, new: lax.dynamic_update_slice_in_dim(old, new, first, 0)
    return tuple(write(old, new) for old, new in zip(found, function(first, together), strict=True))

  if chunks == 1:
    return function(jnp.int32(0), together)
  shapes = jax.eval_shape(lambda first: function(first, together), jnp.int32(0))
  zeros = [jnp.zeros((rows, *x.shape[1:]), x.dtype) for x in shapes]
  return fori_loop(0, chunks, turn, tuple(_axis.varying_like(x, like) for x in zeros))


def _members(read: Callable[[], jax.Array], wanted: jax.Array) -> jax.Array:
  """The largest keys of some rows as words, shape (rows, words); keys are read where they are needed."""
  keys = read()
  width = keys.shape[1]
  dtype = jnp.uint16 if width < _ABOVE else jnp.uint32
  upper = _upper(keys)
  first = _bound(upper, wanted, _BITS)[:, None]

  def lower():
    keys = read()
    upper = _upper(keys)
    # What is above all numbers is counted with them, and zero is not.
    number = jnp.where(upper == first, (keys & ((1 << _LOW_BITS) - 1)) + 1, 0)
    return jnp.where(keys < 0, 0, jnp.where(upper > first, _ABOVE, number)).astype(dtype)

  numbers = made_once(lower)
  bound = _bound(numbers, wanted, _BITS)[:, None]

  def break_ties(state):
    # By the distance from the end of the row.
    numbers, *_ = state
    distance = (np.int32(width) - lax.iota(jnp.int32, width)).astype(dtype)[None]
    place = jnp.where(numbers == bound, distance, jnp.zeros_like(distance))
    place = jnp.where(numbers > bound, jnp.full_like(place, width + 1), place)
    return place, *as_words(place >= _bound(place, wanted, (width + 1).bit_length())[:, None])

  too_many = lambda state: jnp.any(state[-1] > wanted)
  return seldom(too_many, break_ties, (numbers, *as_words(numbers >= bound)))[1]


def _upper(keys: jax.Array) -> jax.Array:
  """The upper number of keys, zero for what is not there."""
  return (jnp.maximum(keys, 0) >> _LOW_BITS).astype(jnp.uint16)


def as_words(members: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rows of bools as rows of words, and how many of each row are true, shape (rows,)."""
  words = _bitpack.of_members(members)
  return words, _bitpack.by_halves(lax.add, lax.population_count(words).astype(jnp.int32), axis=1)


def _bound(numbers: jax.Array, wanted: jax.Array, bits: int) -> jax.Array:
  """For each row a bound that at least so many of its numbers are not below, and no more than ties make necessary.

  Args:
    numbers: unsigned, shape (rows, width).
    wanted: how many, shape (rows,).
    bits: of a number.

  Returns:
    Of the dtype of the numbers, shape (rows,).
  """
  each = here().bits_at_once
  turns = -(-bits // each)

  def turn(state):
    number, bound, count = state
    shift = (np.int32(each) * (np.int32(turns - 1) - number)).astype(numbers.dtype)
    bounds = [bound + (jnp.asarray(i, numbers.dtype) << shift) for i in range(1, 1 << each)]
    for new, of_new in zip(bounds, _not_below(numbers, bounds), strict=True):
      enough = of_new >= wanted
      bound, count = jnp.where(enough, new, bound), jnp.where(enough, of_new, count)
    return number + 1, bound, count

  like = lambda x: _axis.varying_like(x, numbers)
  nothing = jnp.zeros(wanted.shape, numbers.dtype)
  start = (jnp.int32(0), nothing, jnp.full(wanted.shape, numbers.shape[1], jnp.int32))
  # Any bound that exactly as many are not below will do.
  is_done = lambda state: (state[0] == turns) | jnp.all(state[2] == wanted)
  return here().up_to(turns, is_done, turn, jax.tree.map(like, start))[1]


def _not_below(numbers: jax.Array, bounds: list[jax.Array]) -> list[jax.Array]:
  """How many numbers of each row are not below each of its bounds, int32, shape (rows,) each."""
  dtype = jnp.uint16 if numbers.shape[1] < 1 << 16 else jnp.int32
  terms = [(numbers >= bound[:, None]).astype(dtype) for bound in bounds]
  if len(terms) == 1:
    return [_bitpack.by_halves(lax.add, terms[0], axis=1).astype(jnp.int32)]
  zero = _axis.varying_like(jnp.zeros((), dtype), numbers)
  both = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
  sums = lax.reduce(tuple(terms), (zero,) * len(terms), both, (1,))
  return [x.astype(jnp.int32) for x in sums]
