"""Selection within blocks of a leaf: each run of so many entries has r and k of its own.

Blocks lie as rows below one another, and the exact cuts of all rows are found together by counting, a stretch of
rows at a time, so that their keys stay in a processor's cache. What is above the cuts are bits of words; which k of
the r are sent is found in the same way, of random keys. Nothing is sorted, and no more than a stretch is put together.

Passes over d: one, in which entries become keys, and one for the survey. What is counted is in the cache.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis, _bits
from rtopk_jax._keys import LARGEST_KEY, RANDOM_BELOW, magnitude_keys, random_keys, top_k_of_keys
from rtopk_jax._positions import GROUP, Positions
from rtopk_jax._rows import EachRow, above, exact_cut
from rtopk_jax._select import SORT_BELOW, Selection, Selector
from rtopk_jax._vector import MAX_SIZE, Vector
from rtopk_jax._wire import Blocks

# So many keys are made and counted at a time.
_STRETCH = 1 << 18
# Bits of a word.
_WORD = 32
# Words for one bit that is looked for.
_FEW = 2
# So many keys more than wanted are let through at first, give or take as many.
_SLACK = 8

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
        cuts = [np.arange(run.begin, run.begin + run.size, size) for run in place.runs]
        ends = [run.begin + run.size for run in place.runs]
        starts = np.concatenate(cuts)
        lengths = np.concatenate(
          [np.minimum(x + size, end) - x for x, end in zip(cuts, ends, strict=True)]
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

  def read(self, vector: Vector) -> Read:
    """Keys by magnitude, of a vector of flat arrays."""

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

    return rows


def select(
  selector: Selector,
  vector: Vector,
  size: int,
  key_of: Callable[[int], jax.Array],
  num_workers: int,
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
  positions, begins, lengths = [], [], []
  for number, blocks in enumerate(_Set.all_of(flat, size)):
    k, r = _counts(selector, blocks.lengths, num_workers)
    first = flat.where[blocks.piece].first
    is_short = blocks.lengths.size * blocks.width <= SORT_BELOW
    choose = _by_sorting if is_short or selector.method == "top_k" else _chosen
    rows, columns = choose(blocks, flat, k, r, key_of(number))
    of_row = jnp.asarray(blocks.begins + first, jnp.int32)
    positions.append(of_row.at[rows].get(mode="promise_in_bounds") + columns)
    begins.append(np.repeat(blocks.begins + blocks.skipped + first, k))
    lengths += blocks.lengths.tolist()
  selection = Selection.of(vector, _bits.join(positions))
  of_entries = Blocks(np.concatenate(begins).astype(np.int32), size)
  return selection, of_entries, selector.scales(lengths, num_workers)


def _counts(
  selector: Selector, lengths: np.ndarray, num_workers: int
) -> tuple[np.ndarray, np.ndarray]:
  """K and r of blocks of some lengths."""
  different, which = np.unique(lengths, return_inverse=True)
  counts = np.array([selector.counts(int(x), num_workers) for x in different])[which]
  return counts[:, 0], counts[:, 1]


def _chosen(
  blocks: _Set, vector: Vector, k: np.ndarray, r: np.ndarray, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Rows and columns of what is sent, k of the r largest of each row, row by row in ascending order."""
  read, width = blocks.read(vector), blocks.width

  def random(first: jax.Array, count: int) -> jax.Array:
    return jnp.where(read(first, count) >= 0, _random_rows(key, first, count, width), -1)

  if np.all(r == blocks.lengths):
    # Magnitudes do not matter.
    return _places(_above_cuts(random, key, k, width, RANDOM_BELOW)[0], k)
  rows, columns = _largest(blocks, vector, r)
  if np.array_equal(k, r):
    return rows, columns
  most = int(max(r))

  def drawn(first: jax.Array, count: int) -> jax.Array:
    there = lax.dynamic_slice(jnp.asarray(r, jnp.int32), (first,), (count,))
    number = lax.iota(jnp.int32, most)[None]
    return jnp.where(number < there[:, None], _random_rows(key, first, count, most), -1)

  row, number = _places(_above_cuts(drawn, key, k, most, RANDOM_BELOW)[0], k)
  ranks = jnp.asarray(np.cumsum(r) - r, jnp.int32).at[row].get(mode="promise_in_bounds") + number
  return row, columns.at[ranks].get(mode="promise_in_bounds")


def _by_sorting(
  blocks: _Set, vector: Vector, k: np.ndarray, r: np.ndarray, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The same by ``jax.lax.top_k`` of all rows."""
  count, most = blocks.lengths.size, int(max(k))
  keys = blocks.read(vector)(jnp.int32(0), count)
  there = np.arange(int(max(r))) < r[:, None]
  if np.all(r == blocks.lengths):
    columns = top_k_of_keys(
      jnp.where(keys >= 0, _random_rows(key, jnp.int32(0), *keys.shape), -1), most
    )
  else:
    columns = top_k_of_keys(keys, there.shape[1])
    if not np.array_equal(k, r):
      draws = jnp.where(there, _random_rows(key, jnp.int32(0), *there.shape), -1)
      columns = jnp.take_along_axis(columns, top_k_of_keys(draws, most), axis=1)
  wanted = np.arange(most) < k[:, None]
  columns = jnp.sort(jnp.where(wanted, columns, blocks.width), axis=1)
  row, number = np.nonzero(wanted)
  return jnp.asarray(row, jnp.int32), columns[row, number]


def _random_rows(key: jax.Array, first: jax.Array, count: int, width: int) -> jax.Array:
  """Random keys of so many rows from one on."""
  return random_keys(jax.random.fold_in(key, first), count * width).reshape(count, width)


def _largest(blocks: _Set, vector: Vector, r: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """Rows and columns of the r largest of each row: of a few more, which are listed, the exact cut is found."""
  read, width = blocks.read(vector), blocks.width
  like = vector.arrays[blocks.piece][0]
  words, listed = _above_cuts(read, like, r, width, LARGEST_KEY, _SLACK)
  room = np.minimum(r + 2 * _SLACK, blocks.lengths)
  _, columns = _places(words, room)
  number = lax.iota(jnp.int32, int(max(room)))[None]
  there = number < listed[:, None]
  begins = jnp.cumsum(listed) - listed
  ranks = begins[:, None] + jnp.minimum(number, listed[:, None] - 1)
  columns = columns.at[ranks].get(mode="promise_in_bounds")
  at = jnp.asarray(blocks.begins, jnp.int32)[:, None] + columns
  entries = vector.take_from(blocks.piece, at.reshape(-1)).reshape(at.shape)
  keys = jnp.where(there, magnitude_keys(entries), -1)
  kept, _ = _above_cuts(_stretch_of(keys), keys, r, keys.shape[1], LARGEST_KEY)
  row, number = _places(kept, r)
  return row, columns.at[row, number].get(mode="promise_in_bounds")


def _stretch_of(keys: jax.Array) -> Read:
  return lambda first, count: lax.dynamic_slice(keys, (first, 0), (count, keys.shape[1]))


def _places(words: jax.Array, counts: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """Rows and columns of so many bits in all, row by row; something in range for those that are not there."""
  count, flat = int(sum(counts)), words.reshape(-1)
  found = Positions(jnp.pad(flat, (0, -flat.size % GROUP)), 1)
  # Of few bits it is less work to look for each, and of many to go through all words.
  is_few = _FEW * count < flat.size
  places = found.locate(lax.iota(jnp.int32, count)) if is_few else found.first(count)
  row, column = jnp.divmod(places, np.int32(_WORD * words.shape[1]))
  return jnp.minimum(row, np.int32(words.shape[0] - 1)), column


def _above_cuts(
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
  together = min(rows, max(1, _STRETCH // (_WORD * words_of_row)))

  def turn(number, state):
    words, listed = state
    # The last stretch begins where it ends with the last row.
    first = jnp.minimum(number * together, rows - together)
    keys = read(first, together)
    least = lax.dynamic_slice(jnp.asarray(counts, jnp.int32), (first,), (together,))
    there, low, high = _bounds(keys, least, int(max(counts)), highest)
    lists, wanted = EachRow(keys.shape), jnp.minimum(least + slack, there)
    cut = exact_cut(keys, lists, wanted, there, low, high, wanted - least)
    made = _words_of(above(keys, lists, cut))
    return (
      lax.dynamic_update_slice(words, made, (first, 0)),
      lax.dynamic_update_slice(listed, cut.count, (first,)),
    )

  start = (jnp.zeros((rows, words_of_row), jnp.uint32), jnp.zeros(rows, jnp.int32))
  start = jax.tree.map(lambda x: _axis.varying_like(x, like), start)
  return lax.fori_loop(0, -(-rows // together), turn, start)


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
    return _in_rows(lax.add, keys >= 0), low, high
  largest = keys.reshape(rows, -1, columns).max(axis=1)
  there, high = _in_rows(lax.add, largest >= 0), _in_rows(lax.max, largest)
  wanted = jnp.minimum(least + _SLACK, there)
  lists = EachRow(largest.shape)
  low = exact_cut(largest, lists, wanted, there, low, high, wanted - least).value
  low = jnp.where(there >= least, low, 0)
  return _in_rows(lax.add, keys >= low[:, None]), low, high


def _words_of(members: jax.Array) -> jax.Array:
  """Bits of words, a row of words each."""
  members = jnp.pad(members, ((0, 0), (0, -members.shape[1] % _WORD)))
  bits = members.reshape(-1, _WORD).astype(jnp.uint32) << lax.iota(jnp.uint32, _WORD)[None]
  return _in_rows(lax.bitwise_or, bits).reshape(members.shape[0], -1)


def _in_rows(join: Callable, numbers: jax.Array) -> jax.Array:
  """What the numbers of each row make together; conditions are counted.

  By halves, since compilers for CPUs vectorise what makes two numbers of a row.
  """
  numbers = numbers.astype(jnp.int32) if numbers.dtype == jnp.bool_ else numbers
  width = numbers.shape[1]
  numbers = jnp.pad(numbers, ((0, 0), (0, width % 2)))
  half = (width + 1) // 2
  zero = _axis.varying_like(jnp.zeros((), numbers.dtype), numbers)
  both = lax.reduce(
    (numbers[:, :half], numbers[:, half:]),
    (zero, zero),
    lambda a, b: (join(a[0], b[0]), join(a[1], b[1])),
    (1,),
  )
  return join(*both)
