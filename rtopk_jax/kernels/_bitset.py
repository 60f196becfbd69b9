"""Sets of positions as bits of words, and their members by number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels import _bitpack
from rtopk_jax.kernels._dispatch import here
from rtopk_jax.kernels._prefix_sum import count_at_most, running_total

# Words that share one running count.
GROUP = 8
_BYTES = 4
EVERY_BYTE = np.uint32(0x0101_0101)


@dataclasses.dataclass(frozen=True)
class BitSet:
  """A set of positions, each with some bits of a word, of which one is set for a member.

  Attributes:
    words: uint32; for ``locate``, as many as a whole number of groups.
    width: bits of a position, 1 or 2; the lowest bits of a word are the lowest position.
  """

  words: jax.Array
  width: int

  @classmethod
  def of(cls, members: jax.Array) -> "BitSet":
    """The set of positions where a bool is true; their number is a multiple of a group's bits."""
    return cls(_bitpack.of_members(members.reshape(1, -1))[0], 1)

  def locate(self, ranks: jax.Array, most: int | None = None) -> jax.Array:
    """The positions of some members.

    Args:
      ranks: which, counted from 0 in ascending order of position; int32, shape (m,).
      most: what all ranks are below, if it is known.

    Returns:
      Their positions, int32; something in range for a rank that is not there.
    """
    at = lambda array, index: array.at[index].get(mode="promise_in_bounds")
    in_group, low, high = self._counts()
    ends = running_total(in_group, 32 * GROUP)
    group = jnp.minimum(count_at_most(ends, ranks, most), ends.size - 1)
    return self._in_group(group, ranks - at(ends - in_group, group), low, high)

  def locate_in_rows(self, ranks: jax.Array) -> jax.Array:
    """The columns of some members, of words in rows that each are a set of their own.

    Args:
      ranks: which members of each row, counted from 0; int32, shape (rows, m).

    Returns:
      Their positions in their rows, int32; something in range for a rank that is not there.
    """
    rows, width = self.words.shape
    words = jnp.pad(self.words, ((0, 0), (0, -width % GROUP)))
    groups = words.shape[1] // GROUP
    padded = BitSet(words.reshape(-1), self.width)
    in_group, low, high = padded._counts()
    row = lax.iota(jnp.int32, rows)[:, None]
    group, left = jnp.broadcast_to(row, ranks.shape), ranks
    if groups > 1:
      # A row has few groups: all are compared with all.
      number = lax.iota(jnp.int32, groups)
      in_group = in_group.reshape(rows, groups)
      up_to = (number[:, None] <= number[None])[None]
      ends = _bitpack.by_halves(lax.add, jnp.where(up_to, in_group[:, :, None], 0), axis=1)
      passed = (ends[:, :, None] <= ranks[:, None]).astype(jnp.int32)
      group = jnp.minimum(_bitpack.by_halves(lax.add, passed, axis=1), np.int32(groups - 1))
      group += row * np.int32(groups)
      begins = (ends - in_group).reshape(-1)
      left = ranks - begins.at[group].get(mode="promise_in_bounds")
    found = padded._in_group(group, left, low, high)
    return found - row * np.int32(words.shape[1] * (32 // self.width))

  def _in_group(
    self, group: jax.Array, left: jax.Array, low: jax.Array, high: jax.Array
  ) -> jax.Array:
    """The positions of the members of some groups that have so many before them there; counts as ``_counts``."""
    at = lambda array, index: array.at[index].get(mode="promise_in_bounds")
    # Members up to the end of each word but the last: at most 7 · 32, a byte each.
    low, high = low * EVERY_BYTE, high * EVERY_BYTE + (low * EVERY_BYTE >> 24) * EVERY_BYTE
    low, high = at(low, group), at(high, group)
    byte = lambda packed, bits: ((packed >> bits) & np.uint32(0xFF)).astype(jnp.int32)
    word = jnp.zeros_like(left)
    for i in range(GROUP - 1):
      end = byte(low if i < _BYTES else high, np.uint32(8 * (i % _BYTES)))
      word += (left >= end).astype(jnp.int32)
    last = 8 * ((word - 1) % _BYTES).astype(jnp.uint32)
    passed = byte(jnp.where(word <= _BYTES, low, high), last)
    left -= jnp.where(word > 0, passed, 0)
    word += GROUP * group
    return (32 // self.width) * word + self._in_word(at(self.words, word), left)

  def below(self, positions: jax.Array) -> jax.Array:
    """How many members come before some positions; int32, of their shape."""
    ends = running_total(lax.population_count(self.words).astype(jnp.int32), 32)
    bits = 32 // self.width
    word, bit = positions // bits, self.width * (positions % bits)
    before = ends.at[word - 1].get(mode="promise_in_bounds")
    mask = (np.uint32(1) << bit.astype(jnp.uint32)) - np.uint32(1)
    here = self.words.at[word].get(mode="fill", fill_value=0) & mask
    return jnp.where(word > 0, before, 0) + lax.population_count(here).astype(jnp.int32)

  def first(self, count: int) -> jax.Array:
    """The positions of the first members, of which there are so many at least.

    Each member's word is not searched for but marked: one bit a member, set where those of a word begin.

    Args:
      count: how many.

    Returns:
      Their positions, int32, shape (count,); something in range where there are too few.
    """
    counts = lax.population_count(self.words).astype(jnp.int32)
    begins = running_total(counts, 32) - counts
    blocks = -(-count // 32)
    # Words that begin after the last member that is wanted have no mark.
    block = jnp.where((counts > 0) & (begins < count), begins >> 5, blocks)
    mark = np.uint32(1) << (begins & 31).astype(jnp.uint32)
    marks = _axis.varying_like(jnp.zeros(blocks, jnp.uint32), self.words)
    marks = marks.at[block].add(mark, mode="drop")
    in_block = lax.population_count(marks).astype(jnp.int32)
    before = running_total(in_block, 32) - in_block
    # Words by their number among those that have a mark.
    passed = lambda x: x.at[jnp.minimum(block, blocks - 1)].get(mode="promise_in_bounds")
    number = passed(before) + lax.population_count(passed(marks) & (mark - 1)).astype(jnp.int32)
    marked_words = (
      _axis.varying_like(jnp.zeros_like(counts), self.words)
      .at[jnp.where(block < blocks, number, counts.size)]
      .set(lax.iota(jnp.int32, counts.size), mode="drop", unique_indices=True)
    )
    at = lambda array, index: array.at[index].get(mode="promise_in_bounds")
    bits = at(self.words, marked_words)
    # For each member the number of its word's mark, and which one of its word it is; in one number, which is at
    # most what a position may be.
    width = 32 // self.width
    place = lax.iota(jnp.int32, 32)[None]
    up_to = marks[:, None] & ((np.uint32(2) << place.astype(jnp.uint32)) - np.uint32(1))
    nth = before[:, None] + lax.population_count(up_to).astype(jnp.int32) - 1
    # No word has more members than a block: one that began in an earlier block did so in the last.
    behind = jnp.pad(lax.clz(marks[:-1]).astype(jnp.int32) + 1, (1, 0))[:, None]
    since = place + jnp.where(up_to == 0, behind, lax.clz(up_to).astype(jnp.int32) - 31)
    members = width * jnp.clip(nth, 0, counts.size - 1) + (since & (width - 1))

    def look_up(state):
      pending, member = state
      nth = member >> (width.bit_length() - 1)
      found = width * at(marked_words, nth)
      return jnp.zeros_like(pending), found + self._in_word(at(bits, nth), member & (width - 1))

    is_any = begins[-1] + counts[-1] > 0
    _, found = here().once(look_up, (is_any, members))
    return found.reshape(-1)[:count]

  def _counts(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How many members each group has, and each of its words, four words to a number, in one read."""
    counts = lax.population_count(self.words).reshape(-1, GROUP)
    number = lax.iota(jnp.uint32, GROUP)[None]
    shifted = counts << (8 * (number % _BYTES))
    zero = jnp.uint32(0)
    low, high = jnp.where(number < _BYTES, shifted, zero), jnp.where(number < _BYTES, zero, shifted)
    both = lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    total, low, high = here().reduce_rows(both, (counts, low, high))
    return total.astype(jnp.int32), low, high

  def _in_word(self, words: jax.Array, n: jax.Array) -> jax.Array:
    """Where in its word the n-th member is, by halving the word."""
    position = jnp.zeros_like(n)
    half = 16 // self.width
    while half:
      low = words & np.uint32((1 << self.width * half) - 1)
      below = lax.population_count(low).astype(jnp.int32)
      up = n >= below
      n = jnp.where(up, n - below, n)
      words = jnp.where(up, words >> np.uint32(self.width * half), low)
      position = jnp.where(up, position + half, position)
      half //= 2
    return position
