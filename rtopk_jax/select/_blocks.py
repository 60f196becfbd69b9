"""Selection within blocks of a leaf: each run of so many entries has r and k of its own.

Blocks lie as rows below one another, and the exact thresholds of all rows are found together by counting, a chunk of
rows at a time, so that their keys stay in a processor's cache. What is above the thresholds are bits of words; which k of
the r are sent is found in the same way, of random keys. Nothing is sorted, and no more than a chunk is put together.

Passes over d: one, in which entries become keys, and one for the statistics. What is counted is in the cache.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels import _bitpack, here
from rtopk_jax.kernels._bitset import GROUP, BitSet
from rtopk_jax.kernels._threshold import UniformRows, above, exact_threshold
from rtopk_jax.select._keys import (
  LARGEST_KEY,
  RANDOM_BELOW,
  SORT_BELOW,
  magnitude_keys,
  random_keys,
  top_k_of_keys,
)
from rtopk_jax.select._selection import Selection
from rtopk_jax.select._slices import Blocks
from rtopk_jax.vector._vector import MAX_SIZE, Vector

# Bits of a word.
_WORD = 32
# Words for one bit that is looked for.
_FEW = 2
# So many keys more than wanted are let through at first, give or take as many.
_SLACK = 8
# Keys of a row that are compared with each other.
_SHORT = 64

# Keys of so many rows from one on, some turn of a loop: shape (count, width), -1 for what is not there.
Read = Callable[[jax.Array, int], jax.Array]


@dataclasses.dataclass(frozen=True)
class _Set:
  """Blocks of a piece that are selected from together, a row each.

  Attributes:
    piece: its number.
    begins: the number in the piece of the entry in each row's first column.
    skipped: entries of the row before the block, which belong to another.
    lengths: entries of each block.
    width: entries of a row.
  """

  piece: int
  begins: np.ndarray
  skipped: np.ndarray
  lengths: np.ndarray
  width: int

  @classmethod
  def all_of(cls, vector: Vector, size: int) -> list["_Set"]:
    """All blocks of a vector, in order."""
    sets = []
    for i, place in enumerate(vector.where):
      whole = place.runs[0].size // size
      if len(place.runs) == 1 and whole:
        begins = size * np.arange(whole)
        # Words of a row are its own, and bits are counted in int32.
        together = MAX_SIZE // (size + _WORD)
        for part in np.split(begins, range(together, whole, together)):
          sets.append(cls(i, part, np.zeros_like(part), np.full_like(part, size), size))
        rest = place.size - whole * size
        starts, lengths = ([whole * size], [rest]) if rest else ([], [])
      else:
        pieces = [np.arange(run.begin, run.begin + run.size, size) for run in place.runs]
        ends = [run.begin + run.size for run in place.runs]
        starts = np.concatenate(pieces)
        lengths = np.concatenate(
          [np.minimum(x + size, end) - x for x, end in zip(pieces, ends, strict=True)]
        )
      if len(starts):
        starts, lengths = np.array(starts), np.array(lengths)
        # A row must not reach beyond the end of the piece.
        begins = np.minimum(starts, place.size - max(lengths))
        sets.append(cls(i, begins, starts - begins, lengths, int(max(lengths))))
    return sets

  @property
  def is_regular(self) -> bool:
    """Whether all that the rows hold, one after another, is what the piece holds."""
    return bool(np.all(self.lengths == self.width)) and bool(
      np.all(np.diff(self.begins) == self.width)
    )

  def read(self, vector: Vector, key: jax.Array | None) -> Read:
    """Keys by magnitude, of a vector of flat arrays, or random ones under a key."""

    def drawn(first: jax.Array, count: int) -> jax.Array:
      keys = random_keys(jax.random.fold_in(key, first), count * self.width)  # pyright: ignore[reportArgumentType]
      return jnp.where(rows(first, count) >= 0, keys.reshape(count, self.width), -1)

    def rows(first: jax.Array, count: int) -> jax.Array:
      if self.is_regular:
        begin = first * self.width + np.int32(self.begins[0])
        entries = vector.read(self.piece, begin, count * self.width)
        return magnitude_keys(entries).reshape(count, self.width)
      begins, skipped, lengths = (
        lax.dynamic_slice(jnp.asarray(x, jnp.int32), (first,), (count,))
        for x in (self.begins, self.skipped, self.lengths)
      )
      entries = jax.vmap(lambda begin: vector.read(self.piece, begin, self.width))(begins)
      number = lax.iota(jnp.int32, self.width)[None] - skipped[:, None]
      there = (number >= 0) & (number < lengths[:, None])
      return jnp.where(there, magnitude_keys(entries), -1)

    return rows if key is None else drawn


class Ranked(Protocol):
  """What is asked of a selector: k of the r largest of a block."""

  @property
  def method(self) -> str:
    """How they are found."""
    ...

  def counts(self, size: int, num_workers: int | None = None) -> tuple[int, int]:
    """K and r of a block of some size."""
    ...

  def scales(self, sizes: Sequence[int], num_workers: int | None = None) -> jax.Array | None:
    """The factor of every value sent of blocks of some sizes."""
    ...


class _Listed(NamedTuple):
  """A few entries of each block, the largest among them.

  Attributes:
    positions: theirs, ascending in a row, shape (blocks, m); anything for what is not there.
    keys: theirs, -1 for what is not there.
  """

  positions: jax.Array
  keys: jax.Array


def select(
  selector: Ranked,
  vector: Vector,
  size: int,
  key_of: Callable[[int], jax.Array],
  num_workers: int | None,
) -> tuple[Selection, Blocks, jax.Array | None]:
  """Selects in every block of a vector in pieces; the last block of a run may be shorter.

  Args:
    selector: of one density.
    vector: d entries.
    size: entries of a block.
    key_of: PRNG keys by number.
    num_workers: stands in for r/k.

  Returns:
    The selection, each entry's block, and the factor of each value, if any.
  """
  flat = vector.flat()
  sets = _Set.all_of(flat, size)
  listed, sent, large, begins = [], [], [], []
  for number, blocks in enumerate(sets):
    k, r = _counts(selector, blocks.lengths, num_workers)
    is_random = bool(np.all(r == blocks.lengths))
    # Where magnitudes do not matter, keys are random and the k largest of them are the draw.
    wanted = k if is_random else r
    read = blocks.read(flat, key_of(number) if is_random else None)
    is_short = blocks.lengths.size * blocks.width <= SORT_BELOW
    if is_short or selector.method == "sort":
      listed.append(_by_sorting(blocks, flat, read, wanted))
    else:
      listed.append(_by_counting(blocks, flat, read, wanted, is_random))
    sent.append(k)
    large.append(wanted)
    begins.append(np.repeat(blocks.begins + blocks.skipped + flat.where[blocks.piece].first, k))
  k, r = np.concatenate(sent), np.concatenate(large)
  width = max(part.keys.shape[1] for part in listed)
  wide = lambda x, fill: jnp.pad(
    x, ((0, 0), (0, width - x.shape[1])), constant_values=np.int32(fill)
  )
  positions = jnp.concatenate([wide(part.positions, 0) for part in listed])
  keys = jnp.concatenate([wide(part.keys, -1) for part in listed])
  chosen = _largest_of(keys, r, LARGEST_KEY)
  if not np.array_equal(k, r):
    drawn = random_keys(key_of(len(sets)), keys.size).reshape(keys.shape)
    chosen = _largest_of(jnp.where(chosen, drawn, -1), k, RANDOM_BELOW)
  row, column = _places(_bitpack.of_members(chosen), int(sum(k)))
  selection = Selection.of(vector, positions.at[row, column].get(mode="promise_in_bounds"))
  lengths = np.concatenate([blocks.lengths for blocks in sets]).tolist()
  of_entries = Blocks(np.concatenate(begins).astype(np.int32), size)
  return selection, of_entries, selector.scales(lengths, num_workers)


def _counts(
  selector: Ranked, lengths: np.ndarray, num_workers: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """K and r of blocks of some lengths."""
  different, which = np.unique(lengths, return_inverse=True)
  counts = np.array([selector.counts(int(x), num_workers) for x in different])[which]
  return counts[:, 0], counts[:, 1]


def _largest_of(keys: jax.Array, counts: np.ndarray, highest: int) -> jax.Array:
  """Which keys are so many largest of their row, which is not long."""
  wanted, lists = jnp.asarray(counts, jnp.int32), UniformRows(keys.shape)
  if keys.shape[1] <= _SHORT:
    # How many are above each: of a few keys the bits of a threshold would take longer to find.
    number = lists.position()
    ranks = jnp.zeros_like(keys)
    for i in range(keys.shape[1]):
      one = keys[:, i : i + 1]
      ranks += ((one > keys) | ((one == keys) & (i < number))).astype(jnp.int32)
    return ranks < wanted[:, None]
  there = _count(keys >= 0)
  zero = jnp.zeros_like(wanted)
  return above(keys, lists, exact_threshold(keys, lists, wanted, there, zero, zero + highest))


def _by_sorting(blocks: _Set, vector: Vector, read: Read, counts: np.ndarray) -> _Listed:
  """The largest keys of each row, by ``jax.lax.top_k`` of all rows."""
  keys = read(jnp.int32(0), counts.size)
  columns = top_k_of_keys(keys, int(max(counts)))
  there = np.arange(columns.shape[1]) < counts[:, None]
  columns = jnp.sort(jnp.where(there, columns, np.int32(blocks.width)), axis=1)
  at = jnp.minimum(columns, np.int32(blocks.width - 1))
  keys = jnp.take_along_axis(keys, at, axis=1)
  return _Listed(_positions(blocks, vector, columns), jnp.where(there, keys, -1))


def _by_counting(
  blocks: _Set, vector: Vector, read: Read, counts: np.ndarray, is_random: bool
) -> _Listed:
  """The largest keys of each row and a few more, of which words tell."""
  like = vector.arrays[blocks.piece][0]
  # Random keys can't be looked up again.
  slack = 0 if is_random else _SLACK
  highest = RANDOM_BELOW if is_random else LARGEST_KEY
  words, found = _above_thresholds(read, like, counts, blocks.width, highest, slack)
  room = np.minimum(counts + 2 * slack, blocks.lengths)
  _, columns = _places(words, int(sum(room)))
  number = lax.iota(jnp.int32, int(max(room)))[None]
  ranks = (jnp.cumsum(found) - found)[:, None] + jnp.minimum(number, found[:, None] - 1)
  columns = columns.at[ranks].get(mode="promise_in_bounds")
  at = jnp.asarray(blocks.begins, jnp.int32)[:, None] + columns
  keys = magnitude_keys(vector.take_from(blocks.piece, at.reshape(-1))).reshape(at.shape)
  return _Listed(_positions(blocks, vector, columns), jnp.where(number < found[:, None], keys, -1))


def _positions(blocks: _Set, vector: Vector, columns: jax.Array) -> jax.Array:
  first = vector.where[blocks.piece].first
  return jnp.asarray(blocks.begins + first, jnp.int32)[:, None] + columns


def _places(words: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """RaggedRows and columns of so many bits, row by row; something in range for those that are not there."""
  flat = words.reshape(-1)
  found = BitSet(jnp.pad(flat, (0, -flat.size % GROUP)), 1)
  # Of few bits it is less work to look for each, and of many to go through all words.
  is_few = _FEW * count < flat.size
  places = found.locate(lax.iota(jnp.int32, count)) if is_few else found.first(count)
  row, column = jnp.divmod(places, np.int32(_WORD * words.shape[1]))
  return jnp.minimum(row, np.int32(words.shape[0] - 1)), column


def _above_thresholds(
  read: Read, like: jax.Array, counts: np.ndarray, width: int, highest: int, slack: int = 0
) -> tuple[jax.Array, jax.Array]:
  """The largest keys of each row as bits of words.

  Args:
    read: the keys.
    like: what they are made of.
    counts: how many of each row, from 1 to those that are there.
    width: of a row.
    highest: no key is above.
    slack: up to twice as many more of each row will do.

  Returns:
    The words, a row each, and how many bits they have.
  """
  rows, words_of_row = counts.size, -(-width // _WORD)

  def turn(number, state, together):
    words, listed = state
    # The last chunk begins where it ends with the last row.
    first = jnp.minimum(number * together, rows - together)
    keys = read(first, together)
    least = lax.dynamic_slice(jnp.asarray(counts, jnp.int32), (first,), (together,))
    there, low, high = _bounds(keys, least, int(max(counts)), highest)
    lists, wanted = UniformRows(keys.shape), jnp.minimum(least + slack, there)
    threshold = exact_threshold(keys, lists, wanted, there, low, high, wanted - least)
    made = _bitpack.of_members(above(keys, lists, threshold))
    return (
      lax.dynamic_update_slice(words, made, (first, 0)),
      lax.dynamic_update_slice(listed, threshold.count, (first,)),
    )

  start = (jnp.zeros((rows, words_of_row), jnp.uint32), jnp.zeros(rows, jnp.int32))
  start = jax.tree.map(lambda x: _axis.varying_like(x, like), start)

  together = min(rows, max(1, here().keys_at_once // (_WORD * words_of_row)))
  one = functools.partial(turn, together=together)
  return fori_loop(0, -(-rows // together), one, start)


def _bounds(
  keys: jax.Array, least: jax.Array, most: int, highest: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """How many keys of each row are not below a bound, that bound, and one that none is above.

  Of the largest key of several columns each, as many are not below the bound as are wanted, so that at least as many
  of all keys are not, and not many more.
  """
  rows, width = keys.shape
  columns = width
  while columns % 2 == 0 and columns >= 3 * most and width < 64 * columns:
    columns //= 2
  low, high = jnp.zeros_like(least), jnp.full_like(least, highest)
  if columns == width:
    return _count(keys >= 0), low, high
  largest = keys.reshape(rows, -1, columns).max(axis=1)
  there, high = _count(largest >= 0), _bitpack.by_halves(lax.max, largest, axis=1)
  # Any bound will do that is not far below.
  wanted = jnp.minimum(least + jnp.maximum(least // 4, _SLACK), there)
  lists = UniformRows(largest.shape)
  low = exact_threshold(largest, lists, wanted, there, low, high, wanted - least).value
  low = jnp.where(there >= least, low, 0)
  return _count(keys >= low[:, None]), low, high


def _count(members: jax.Array) -> jax.Array:
  """How many of each row are true."""
  return _bitpack.by_halves(lax.add, members.astype(jnp.int32), axis=1)
