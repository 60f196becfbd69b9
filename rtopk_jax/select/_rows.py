"""The largest keys of many rows, and a few more of each, in one read of what the rows are made of.

A row is divided into columns of entries that are equally far apart. Of the largest key of each column, as many are
not below a bound as are wanted. So at least as many of all keys are not, and hardly more: those are the *candidates*
of a row, which are listed. What is done with the lists afterwards touches a few percent of the row.

Rows are dealt with a chunk at a time, so that between the steps their keys stay in a processor's cache. Where a row has
more candidates than a list has room for, which takes large keys that share columns or are equal, the bounds of its
chunk become thresholds that are found by counting.
"""

import math
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
from rtopk_jax.kernels._offsets import Offset, offsets
from rtopk_jax.kernels._statistics import square
from rtopk_jax.kernels._threshold import UniformRows, above, exact_threshold
from rtopk_jax.select._keys import (
  LARGEST_KEY,
  RANDOM_BELOW,
  magnitude_keys,
  magnitudes_of,
  top_k_of_keys,
)

# Bits of a word.
_WORD = 32
# So many of the columns' largest keys are more than wanted, at most, or such a share of them.
_SLACK, _SHARE = 8, 8
# Columns for an entry that is wanted, at least, and of entries of a row.
_COLUMNS, _DEEP = 3, 64
# By how many standard deviations there may be more candidates than are expected.
_SIGMAS = 6


class Tile(NamedTuple):
  """Some rows as they are read. Only their keys are materialised: entries are looked up where they lie.

  Attributes:
    magnitudes: keys by magnitude, shape (rows, width), int32, -1 for what is not there.
    drawn: random keys to select by, likewise; None where those are by magnitude.
    take: the entries in some columns, of any number for each row.
    dtype: of the entries.
  """

  magnitudes: jax.Array
  drawn: jax.Array | None
  take: Callable[[jax.Array], jax.Array]
  dtype: jax.typing.DTypeLike

  @property
  def keys(self) -> jax.Array:
    """Those to select by."""
    return self.magnitudes if self.drawn is None else self.drawn

  @property
  def squares(self) -> jax.Array:
    """The squares of the entries; 0 for what is not there."""
    return square(magnitudes_of(jnp.maximum(self.magnitudes, 0), self.dtype))


class Rows(NamedTuple):
  """Rows of one width, of which so many of the largest keys are wanted.

  Attributes:
    read: so many rows from one on.
    counts: how many keys of each row are wanted, from 1 to those that are there.
    width: entries of a row.
    is_random: whether keys are random, or by magnitude.
    by_sorting: whether ``jax.lax.top_k`` finds them.
  """

  read: Callable[[jax.Array, int], Tile]
  counts: np.ndarray
  width: int
  is_random: bool
  by_sorting: bool

  @property
  def highest(self) -> int:
    """No key is above."""
    return RANDOM_BELOW if self.is_random else LARGEST_KEY

  @property
  def wanted(self) -> int:
    """Of a row, at most."""
    return int(max(self.counts))

  @property
  def slack(self) -> int:
    """How many more of the columns' largest keys than are wanted may be above a bound."""
    return max(_SLACK, self.wanted // _SHARE)

  @property
  def columns(self) -> int:
    """How many columns a row is divided into."""
    columns = self.width
    least = 2 * _COLUMNS * self.wanted
    while columns % 2 == 0 and columns >= least and self.width < _DEEP * columns:
      columns //= 2
    return columns

  @property
  def room(self) -> int:
    """How many candidates of a row a list has to have room for."""
    if self.by_sorting:
      return self.wanted
    most, columns = self.wanted + self.slack, self.columns
    if columns == self.width or most >= columns:
      return min(self.width, most + _SLACK)
    # So many are expected where large keys may be anywhere.
    expected = -columns * math.log1p(-most / columns)
    return min(self.width, math.ceil(expected + _SIGMAS * math.sqrt(expected - most)))


class Candidates(NamedTuple):
  """The candidates of rows, and what a read of the rows tells besides.

  Attributes:
    columns: where in its row each is, ascending; anything for what is not there. Shape (rows, room).
    entries: theirs, likewise.
    keys: theirs, likewise; None where all are keys by magnitude.
    count: how many there are, shape (rows,).
    square: the sum of the squares of a row's entries, likewise.
    largest: the largest key by magnitude of a row, likewise.
  """

  columns: jax.Array
  entries: jax.Array
  keys: jax.Array | None
  count: jax.Array
  square: jax.Array
  largest: jax.Array

  @classmethod
  def of(cls, parts: Sequence[Rows], like: jax.Array) -> "Candidates":
    """Those of some rows and others, one below another.

    Args:
      parts: the rows.
      like: an array of the dtype of their entries, which they are made of.
    """
    sizes = [part.counts.size for part in parts]
    rows, room = sum(sizes), max(part.room for part in parts)
    lists = cls(
      jnp.zeros((rows, room), jnp.int32),
      jnp.zeros((rows, room), like.dtype),
      jnp.zeros((rows, room), jnp.int32) if any(part.is_random for part in parts) else None,
      jnp.zeros(rows, jnp.int32),
      jnp.zeros(rows, jnp.float32),
      jnp.zeros(rows, jnp.int32),
    )
    lists = jax.tree.map(lambda x: _axis.varying_like(x, like), lists)
    begins = offsets((np.cumsum(sizes) - sizes).tolist())
    for part, begin in zip(parts, begins, strict=True):
      lists = _add(lists, part, begin)
    return lists

  def with_rows(self, new: "Candidates", begin: Offset) -> "Candidates":
    """The same with other rows from one on, whose lists may be shorter."""
    write = lambda x, y: lax.dynamic_update_slice(x, y, (begin, *(0,) * (x.ndim - 1)))
    if self.keys is None:
      keys = None
    else:
      keys = write(self.keys, magnitude_keys(new.entries) if new.keys is None else new.keys)
    others = [name for name in self._fields if name != "keys"]
    written = {name: write(getattr(self, name), getattr(new, name)) for name in others}
    return Candidates(keys=keys, **written)


def _add(lists: Candidates, part: Rows, begin: Offset) -> Candidates:
  """Lists in which those of some rows are written from a row on."""
  rows, wanted = part.counts.size, jnp.asarray(part.counts, jnp.int32)
  if part.by_sorting:
    return lists.with_rows(_by_sorting(part, part.read(jnp.int32(0), rows), wanted), begin)
  words_of_row = -(-part.width // _WORD)
  together = min(rows, max(1, here().keys_at_once // (_WORD * words_of_row)))

  def turn(number, lists):
    # The last chunk begins where it ends with the last row.
    first = jnp.minimum(number * together, rows - together)
    least = lax.dynamic_slice(wanted, (first,), (together,))
    return lists.with_rows(_by_counting(part, part.read(first, together), least), begin + first)

  return fori_loop(0, -(-rows // together), turn, lists)


def _by_sorting(part: Rows, tile: Tile, counts: jax.Array) -> Candidates:
  """The largest keys of each row, by ``jax.lax.top_k`` of all rows."""
  columns = top_k_of_keys(tile.keys, part.wanted)
  there = lax.iota(jnp.int32, part.wanted)[None] < counts[:, None]
  columns = jnp.sort(jnp.where(there, columns, np.int32(part.width)), axis=1)
  columns = jnp.minimum(columns, np.int32(part.width - 1))
  return _of(tile, columns, counts, tile.squares.sum(axis=1), tile.magnitudes.max(axis=1))


def _of(
  tile: Tile, columns: jax.Array, count: jax.Array, squares: jax.Array, largest: jax.Array
) -> Candidates:
  keys = None
  if tile.drawn is not None:
    rows, width = tile.drawn.shape
    number = lax.iota(jnp.int32, rows)[:, None] * np.int32(width) + columns
    keys = tile.drawn.reshape(-1).at[number].get(mode="promise_in_bounds")
  return Candidates(columns, tile.take(columns), keys, count, squares, largest)


def _by_counting(part: Rows, tile: Tile, least: jax.Array) -> Candidates:
  """The candidates of some rows, of which so many keys at least are wanted."""
  by_column = lambda x: x.reshape(x.shape[0], -1, part.columns)
  operands = [tile.squares, tile.magnitudes] + ([] if tile.drawn is None else [tile.keys])
  start = (jnp.float32(0), jnp.int32(-1), jnp.int32(-1))[: len(operands)]
  squares, *largest = lax.reduce(
    tuple(by_column(x) for x in operands),
    tuple(_axis.varying_like(x, tile.magnitudes) for x in start),
    lambda a, b: (a[0] + b[0], *(jnp.maximum(x, y) for x, y in zip(a[1:], b[1:], strict=True))),
    (1,),
  )
  of_rows = [_bitpack.by_halves(lax.max, x, axis=1) for x in largest]
  low = _bound(part, largest[-1], least, of_rows[-1])
  words, count = _fitting(part, tile, least, low)
  ranks = jnp.minimum(lax.iota(jnp.int32, part.room)[None], count[:, None] - 1)
  columns = BitSet(words, 1).locate_in_rows(ranks)
  return _of(tile, columns, count, _bitpack.by_halves(lax.add, squares, axis=1), of_rows[0])


def _bound(part: Rows, largest: jax.Array, least: jax.Array, high: jax.Array) -> jax.Array:
  """A bound that so many of the columns' largest keys are not below, and not many more; ``high`` is the largest."""
  there = _bitpack.by_halves(lax.add, (largest >= 0).astype(jnp.int32), axis=1)
  below = np.int32(part.highest) - largest
  low = jnp.maximum(np.int32(part.highest) - _bitpack.by_halves(lax.max, below, axis=1), 0)
  wanted = jnp.minimum(least + np.int32(part.slack // 2), there)
  lists = UniformRows(largest.shape)
  low = exact_threshold(largest, lists, wanted, there, low, high, wanted - least).value
  return jnp.where(there >= least, low, 0)


def _fitting(
  part: Rows, tile: Tile, least: jax.Array, low: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Words of candidates, so few of each row that lists have room for them, and how many there are."""
  lists = UniformRows(tile.keys.shape)

  def narrow(state):
    _, there = state
    wanted = jnp.minimum(least + (np.int32(part.room) - least) // 2, there)
    highest = jnp.full_like(low, part.highest)
    threshold = exact_threshold(tile.keys, lists, wanted, there, low, highest, wanted - least)
    return _bitpack.of_members(above(tile.keys, lists, threshold)), threshold.count

  words = _bitpack.of_members(tile.keys >= low[:, None])
  count = _bitpack.by_halves(lax.add, lax.population_count(words).astype(jnp.int32), axis=1)
  return seldom(lambda state: jnp.any(state[1] > part.room), narrow, (words, count))
