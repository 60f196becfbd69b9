"""The words of the search as TPUs can make and read them.

A TPU keeps the last two axes of an array in tiles of 8 × 128 entries. Entries side by side, 16 to a word, would be
padded to eight times their size there. So a word holds a column instead: 16 successive *rows* of a piece (of its last
axis; of 128 entries where it has one axis) are folded to one row of words, which moves nothing within tiles. 128
words side by side are a *slab*; a row of words takes a whole number of them.

The words are in another order than the entries, but positions stay what they are: the members of a set are counted
row by row. For that, each of the 16 bits of a slab's words is counted by itself, and the counts are summed up over
slabs. The n-th member is then found by its fold, its row among the 16, its slab in the row, and its lane.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels._bitset import EVERY_BYTE
from rtopk_jax.kernels._flat_packing import EVEN_BITS, WIDTH
from rtopk_jax.kernels._prefix_sum import count_at_most, running_total
from rtopk_jax.vector._vector import Place

LANES = 128
SUBLANES = 8
# Rows of a fold at most, one for each entry of a word.
FOLD = 16
# Members that are looked for at a time, and those whose slabs are looked at.
_SOUGHT = 1 << 15
_CHUNK = 2048


class Sheet(NamedTuple):
  """A piece as rows, so that it need not be laid out anew.

  Attributes:
    rows: how many; the last may be shorter where the piece has one axis.
    inner: the axes of a row.
    fold: how many rows are folded to one.
    turned: whether the rows are columns of the piece. Their words are in an order in which members cannot be counted.
  """

  rows: int
  inner: tuple[int, ...]
  fold: int = FOLD
  turned: bool = False

  @property
  def width(self) -> int:
    """Entries of a row."""
    return math.prod(self.inner)

  @property
  def folds(self) -> int:
    """Folds that hold all rows."""
    return -(-self.rows // self.fold)

  @classmethod
  def flat(cls, size: int) -> "Sheet":
    """Entries in a row, as rows of lanes."""
    return cls(-(-size // LANES), (LANES,))

  @classmethod
  def of(cls, shape: tuple[int, ...]) -> "Sheet":
    """The sheet of an array."""
    long = [length for length in shape if length > 1]
    if len(long) < 2:
      return cls.flat(math.prod(shape))
    *outer, second, minor = long
    if second % SUBLANES == 0:
      rows = math.prod(outer) * second
      return cls(rows, (minor,), FOLD if rows % FOLD == 0 else SUBLANES)
    # Rows that are no multiple of 8 have an axis of one in their tile instead, where there is such an axis.
    rows, inner = (math.prod(outer), (second, minor)) if outer else (second, (1, minor))
    if len(shape) == 2:
      inner = (minor,)
    # Rows left over would have to be cut off first.
    even = [fold for fold in range(FOLD, FOLD // 2, -1) if rows % fold == 0]
    return cls(rows, inner, even[0] if even else FOLD)

  @classmethod
  def laid_out(cls, shape: tuple[int, ...]) -> "Sheet":
    """The sheet of an array, of its columns if a TPU keeps them as rows and they make whole folds."""
    if not lies_by_columns(shape) or math.prod(shape[:-2]) > 1:
      return cls.of(shape)
    turned = cls.of(_turned(shape))._replace(turned=True)
    return turned if turned.holds(math.prod(shape)) else cls.of(shape)

  def holds(self, size: int) -> bool:
    """Whether so many entries are whole folds."""
    return self.folds * self.fold * self.width == size

  def fold_up(self, x: jax.Array) -> jax.Array:
    """An array that is whole folds, shape (folds, rows of a fold, …)."""
    x = jnp.swapaxes(x, -1, -2) if self.turned else x
    return x.reshape(self.folds, self.fold, *self.inner)

  def unfold(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Folds as an array again."""
    if self.turned:
      return jnp.swapaxes(x.reshape(_turned(shape)), -1, -2)
    return x.reshape(shape)


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
  """A shape with rows and columns in each other's place."""
  return (*shape[:-2], shape[-1], shape[-2])


def lies_by_columns(shape: tuple[int, ...]) -> bool:
  """Whether a TPU fills up less of an array when its last axis is not the one along the lanes."""
  long = [length for length in shape if length > 1]
  if len(long) < 2:
    return False

  def filled(second: int, minor: int) -> int:
    alone = len(long) == 2 and len(shape) > 2
    height = second if alone else -(-second // SUBLANES) * SUBLANES
    return height * -(-minor // LANES) * LANES

  *_, second, minor = long
  return filled(minor, second) < filled(second, minor)


@dataclasses.dataclass(frozen=True)
class TiledPlace(Place):
  """A place whose array has rows as those of the sheet in which a TPU keeps the leaf.

  Attributes:
    leaf: the shape of the leaf itself.
  """

  leaf: tuple[int, ...]

  def index(
    self, positions: jax.Array, first: int | jax.Array | None = None
  ) -> tuple[jax.Array, ...]:
    """As ``Place.index``."""
    sheet = Sheet.laid_out(self.leaf)
    if sheet.turned:
      rest, columns = positions - self.first, np.int32(sheet.rows)
      number = lax.rem(rest, columns) * np.int32(sheet.width) + lax.div(rest, columns)
      inside = (rest >= 0) & (rest < self.size)
      positions = jnp.where(inside, number, np.int32(-1)) + self.first
    return super().index(positions, first)


class Part(NamedTuple):
  """Where the words of a run are.

  Attributes:
    first: its first position.
    width: entries of a row of the piece.
    fold: rows that are folded to one.
    across: slabs of a row of words.
    slab: the first slab.
    turned: 1 where words are of columns.
  """

  first: int | jax.Array
  width: int | jax.Array
  fold: int | jax.Array
  across: int | jax.Array
  slab: int | jax.Array
  turned: int | jax.Array


class Parts:
  """The parts of a vector: one a run.

  Args:
    pieces: of each, the first position and the sheet of its runs, in order.
    end: beyond all positions.
  """

  def __init__(self, pieces: Sequence[Sequence[tuple[int, Sheet]]], end: int):
    self.by_piece: list[list[Part]] = []
    self.end = end
    slab = 0
    for piece in pieces:
      found = []
      for first, sheet in piece:
        across = -(-sheet.width // LANES)
        width = sheet.rows if sheet.turned else sheet.width
        found.append(Part(first, width, sheet.fold, across, slab, int(sheet.turned)))
        slab += sheet.folds * across
      self.by_piece.append(found)
      # The next piece begins with a tile.
      slab = -(-slab // SUBLANES) * SUBLANES
    self.slabs = slab
    self._table = np.array([part for found in self.by_piece for part in found], np.int32).T

  @classmethod
  def of(cls, where: Sequence[Place]) -> "Parts":
    """The parts of leaves."""
    pieces = [
      [
        (
          place.first + run.begin,
          Sheet.flat(run.size) if len(place.runs) > 1 else Sheet.of(place.shape),
        )
        for run in place.runs
      ]
      for place in where
    ]
    return cls(pieces, where[-1].first + where[-1].size)

  def _find(self, field: str, numbers: jax.Array) -> Part:
    """The last parts of which a field is not above some numbers."""
    return Part(*look_up(self._table[Part._fields.index(field)], self._table, numbers))

  def bits(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The number of the word of each position, and the lower one of its bits."""
    part = self._find("first", positions)
    index = positions - part.first
    row, column = index // part.width, index % part.width
    if self._table[Part._fields.index("turned")].any():
      turned = part.turned == 1
      row, column = jnp.where(turned, column, row), jnp.where(turned, row, column)
    slab = part.slab + row // part.fold * part.across + column // LANES
    bit = np.uint32(1) << (WIDTH * (row % part.fold)).astype(jnp.uint32)
    return slab * LANES + column % LANES, bit

  def locate(self, words: jax.Array, ranks: jax.Array) -> jax.Array:
    """The positions of some members of a set.

    Args:
      words: one bit of the lower ones set for a member, uint32, shape (slabs, 128).
      ranks: which, counted from 0 in ascending order of position; int32, shape (m,).

    Returns:
      Their positions, int32; something in range for a rank that is not there.
    """
    before = _counts(words)
    return _in_chunks(lambda x: self._locate(words, before, x), _SOUGHT, words, ranks)

  def _locate(self, words: jax.Array, before: jax.Array, ranks: jax.Array) -> jax.Array:
    slabs = words.shape[0]
    # Members of all slabs before one, by their place in the word: those at places before one, and all.
    at = lambda place, slab: before.at[place * (slabs + 1) + slab].get(mode="promise_in_bounds")
    slab = jnp.minimum(count_at_most(before[-slabs:], ranks), slabs - 1)
    part = self._find("slab", slab)
    first = part.slab + (slab - part.slab) // part.across * part.across
    left = ranks - at(FOLD, first)

    row = jnp.zeros_like(ranks)
    in_rows = lambda row: at(row, first + part.across) - at(row, first)
    for step in (8, 4, 2, 1):
      row = jnp.where(in_rows(row + step) <= left, row + step, row)
    left -= in_rows(row)

    across = jnp.zeros_like(ranks)
    base = at(row + 1, first) - at(row, first)
    in_slabs = lambda across: at(row + 1, first + across) - at(row, first + across) - base
    for step in _halves(int(self._table[Part._fields.index("across")].max())):
      there = across + step < part.across
      passed = in_slabs(jnp.where(there, across + step, 0)) <= left
      across = jnp.where(there & passed, across + step, across)
    left -= in_slabs(across)

    lane = _lanes(words, first + across, row, left)
    column = across * LANES + lane
    fold = (first - part.slab) // part.across
    found = part.first + (fold * part.fold + row) * part.width + column
    return jnp.clip(found, 0, self.end - 1)


def look_up(begins: np.ndarray, table: np.ndarray, numbers: jax.Array) -> list[jax.Array]:
  """Of each row of a table the entry whose begin is the last that is not above a number, or else the first.

  The steps from entry to entry are summed up: of looked up constants XLA makes long chains of choices.
  """
  if begins.size == 1:
    return [jnp.full_like(numbers, row[0]) for row in table]
  passed = numbers[None] >= jnp.asarray(begins[1:])[:, None]
  steps = jnp.asarray(np.diff(table, axis=1))
  zero = jnp.int32(0)
  return [
    row[0] + jnp.sum(jnp.where(passed, step[:, None], zero), axis=0)
    for row, step in zip(table, steps, strict=True)
  ]


def _halves(size: int) -> list[int]:
  """The powers of two below a size, the largest first."""
  return [1 << i for i in reversed(range((size - 1).bit_length()))]


def _counts(words: jax.Array) -> jax.Array:
  """Running totals of members over slabs.

  Returns:
    Flat, (17, slabs + 1): how many members at one of the first so many places of a word there are in the
    first so many slabs.
  """
  # Four of a word's entries are counted at once, a byte each.
  bytes_ = tuple((words >> np.uint32(WIDTH * i)) & EVERY_BYTE for i in range(4))
  # 128 lanes do not overflow a byte.
  sums = lax.reduce(
    bytes_,
    (_axis.varying_like(jnp.uint32(0), words),) * 4,
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    (1,),
  )
  at = [(sums[i % 4] >> np.uint32(8 * (i // 4))) & np.uint32(0xFF) for i in range(FOLD)]
  ends = jax.vmap(lambda counts: running_total(counts, LANES))(jnp.stack(at).astype(jnp.int32))
  ends = jnp.pad(jnp.cumsum(ends, axis=0), ((1, 0), (1, 0)))
  return ends.reshape(-1)


def _lanes(words: jax.Array, slabs: jax.Array, rows: jax.Array, numbers: jax.Array) -> jax.Array:
  """In which lane of a slab the n-th word is that has some row's bit set."""
  upto = np.triu(np.ones((LANES, LANES), np.float32))

  def look(slab, row, number):
    taken = words.at[slab].get(mode="promise_in_bounds")
    bits = (taken >> (WIDTH * row).astype(jnp.uint32)[:, None]) & np.uint32(1)
    # A matrix unit sums up exactly: ones and zeros, 128 of them.
    ends = jnp.dot(bits.astype(jnp.int32).astype(jnp.float32), upto).astype(jnp.int32)
    lane = jnp.sum((ends <= number[:, None]).astype(jnp.int32), axis=1)
    return jnp.minimum(lane, LANES - 1)

  return _in_chunks(look, _CHUNK, words, slabs, rows, numbers)


def _in_chunks(
  function: Callable[..., jax.Array], chunk: int, words: jax.Array, *arrays: jax.Array
) -> jax.Array:
  """What a function of some words makes of int32 arrays, so many entries at a time to take little memory."""
  size = arrays[0].size
  if size <= chunk:
    return function(*arrays)

  def step(turn, found):
    begin = jnp.minimum(turn * chunk, size - chunk)
    new = function(*(lax.dynamic_slice(x, (begin,), (chunk,)) for x in arrays))
    return lax.dynamic_update_slice(found, new, (begin,))

  start = jnp.zeros_like(arrays[0])
  for x in (words, *arrays):
    start = _axis.varying_like(start, x)
  return fori_loop(0, -(-size // chunk), step, start)


class TiledBitSet(NamedTuple):
  """A set of positions.

  Attributes:
    words: of a member one bit of two is set.
    parts: how they lie.
  """

  words: jax.Array
  parts: Parts

  @classmethod
  def of(cls, members: jax.Array) -> "TiledBitSet":
    """The set of positions, counted row by row, where a bool is true; shape (rows, columns)."""
    rows, columns = members.shape
    members = jnp.pad(members, ((0, -rows % FOLD), (0, 0))).reshape(-1, FOLD, columns)
    place = lax.broadcasted_iota(jnp.uint32, members.shape, 1)
    words = jnp.sum(members.astype(jnp.uint32) << (WIDTH * place), axis=1, dtype=jnp.uint32)
    parts = Parts([[(0, Sheet(rows, (columns,)))]], rows * columns)
    words = to_slabs(words)
    return cls(jnp.pad(words, ((0, parts.slabs - words.shape[0]), (0, 0))), parts)

  def locate(self, ranks: jax.Array, most: int | None = None) -> jax.Array:
    """As ``BitSet.locate``; ``most`` does not matter here."""
    return self.parts.locate((self.words | (self.words >> np.uint32(1))) & EVEN_BITS, ranks)


def to_slabs(words: jax.Array) -> jax.Array:
  """Rows of words, shape (folds, …), as slabs."""
  words = words.reshape(words.shape[0], -1)
  return jnp.pad(words, ((0, 0), (0, -words.shape[1] % LANES))).reshape(-1, LANES)
