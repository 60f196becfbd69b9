"""Two thresholds of every group as two bits an entry, 16 entries to a word, in one read of the vector.

The bits are 2 above the higher threshold, 1 between the two and 0 below the lower one. How many entries are
above each, the sum of all squares and the largest key come out of the same read.

Where few entries are looked for, one bit an entry will do, above the lower threshold or not. Then all that are
above it are between the thresholds, and the words take half the memory.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels import _gather
from rtopk_jax.kernels._bitset import GROUP, BitSet
from rtopk_jax.kernels._dispatch import here
from rtopk_jax.kernels._offsets import Offset
from rtopk_jax.kernels._prefix_sum import compact
from rtopk_jax.kernels._statistics import Statistics, Tally, ToKeys, square, sum_and_max
from rtopk_jax.kernels._threshold import Threshold
from rtopk_jax.vector._vector import Place, Vector, aligned

# Bits of an entry, at most.
WIDTH = 2
EVEN_BITS = np.uint32(0x5555_5555)
# The lower half of a word, whose bits are counted apart from the upper ones.
_HALF = np.uint32(0xFFFF)
# Entries that are made words of at once on CPUs.
_TOGETHER = 128
# Entries of a piece that are read at a time, at most, and at most one in so many of it; shorter ones are read at once.
_CHUNK = 1 << 20
_TURNS = 8
_SHORT = 1 << 12
# Members that are listed one by one in less time than it takes to compile anything better.
_FEW = 1 << 16


@dataclasses.dataclass(frozen=True)
class FlatPacking:
  """Words of entries that lie one after another; their bits are in the order of positions.

  Attributes:
    vector: d entries, in flat arrays.
    width: bits of an entry.
    exact: whether there is one threshold, between single entries, or two, between words: then all entries of a word
      have their ties broken alike.
    firsts: the first position of each piece, where a compiler must not know it.
  """

  vector: Vector
  width: int = WIDTH
  exact: bool = False
  firsts: Sequence[Offset] | None = None

  def start(self) -> jax.Array:
    """Words of nothing."""
    group = GROUP * (32 // self.width)
    return jnp.zeros(-(-self.vector.span // group) * GROUP, jnp.uint32)

  def pack(
    self, turn: jax.Array, words: jax.Array, low: Threshold, high: Threshold, to_keys: ToKeys
  ) -> tuple[jax.Array, "Tally"]:
    """The words of two thresholds of each group, and what was found.

    Args:
      turn: of the loop that this is in.
      words: to write over.
      low: the lower threshold of each group.
      high: the higher one; with one bit an entry nothing is above it.
      to_keys: from entries to keys.
    """
    packing = dataclasses.replace(self, vector=self.vector.tied_to(turn))
    firsts = self.firsts or [place.first for place in self.vector.where]
    pieces = [
      PieceReader(packing, i, first, low[place.groups], high[place.groups], to_keys)
      for i, (place, first) in enumerate(zip(self.vector.where, firsts, strict=True))
    ]
    groups = low.value.size
    return here().pack_pieces(pieces, words, groups)

  def members(self, words: jax.Array) -> BitSet:
    """The set of positions that have a bit in some words."""
    return BitSet(words, self.width)

  def between(self, words: jax.Array) -> BitSet:
    """The set of positions between the thresholds of some words."""
    return self.members(words if self.width == 1 else words & ~(words >> 1) & EVEN_BITS)

  def numbers(self, members: jax.Array, count: int) -> jax.Array:
    """Where an array of rows is true, which it is so many times: numbers counted row by row, ascending."""
    members = members.reshape(-1)
    if members.size <= _FEW:
      return compact(members, count)
    return BitSet.of(members).first(count)

  def strike(self, words: jax.Array, positions: jax.Array, lost: jax.Array) -> jax.Array:
    """The words without the lower bits of some positions, no two of them the same."""
    entries = 32 // self.width
    bits = np.uint32(1) << (self.width * (positions % entries)).astype(jnp.uint32)
    at = jnp.where(lost, positions // entries, words.size)
    return words.at[at].add(jnp.uint32(0) - bits, mode="drop")

  def take(self, positions: jax.Array, shares: Sequence[int] | None = None) -> jax.Array:
    """As ``_gather.take``."""
    return _gather.take(self.vector, positions, shares)

  def take_from(self, piece: int, index: jax.Array) -> jax.Array:
    """As ``Vector.take_from``."""
    return self.vector.take_from(piece, index)


class PieceReader(NamedTuple):
  """A piece of a vector that is packed, and the thresholds of each of its runs."""

  packing: FlatPacking
  number: int
  first: Offset
  low: Threshold
  high: Threshold
  to_keys: ToKeys

  @property
  def place(self) -> Place:
    return self.packing.vector.where[self.number]

  @property
  def word(self) -> int:
    """Entries of a word."""
    return 32 // self.packing.width

  def after(self, statistics: Statistics) -> "PieceReader":
    """The same piece, to be read when some statistics are there, and not before."""
    vector = self.packing.vector
    # Always true, which compilers do not know. Reads that they may order as they like, they fuse.
    is_there = statistics.largest >= 0

    def rule(*arrays):
      entries = vector.rule(*arrays)
      return jnp.where(is_there, entries, jnp.zeros_like(entries))

    packing = dataclasses.replace(self.packing, vector=dataclasses.replace(vector, rule=rule))
    return self._replace(packing=packing)

  def put(self, packed: jax.Array, words: jax.Array, begin: int | jax.Array) -> jax.Array:
    """All words, with those of the entries from entry ``begin`` on written to their place."""
    at = lax.div(jnp.int32(self.first) + begin, np.int32(self.word))
    return lax.dynamic_update_slice(packed, words, (at,))

  def words(
    self, begin: int | jax.Array, length: int, abreast: int
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The words of some entries, and for each row the sum of its squares and its largest key.

    Args:
      begin: the number of the first entry in the piece.
      length: how many entries.
      abreast: from how many places they are read at once.
    """
    parts = self.packing.vector.read_abreast(
      self.number, begin, length, abreast, min(self.word, length)
    )
    return _words_by_rows(parts, self.first + begin, self.coding(begin, length))

  def coding(self, begin: int | jax.Array, length: int) -> "Coding":
    """How ``length`` entries from entry ``begin`` on become words."""
    # With one bit an entry the higher threshold is above all.
    thresholds = (self.low, self.high)[: self.packing.width]
    runs, ends = self.place.runs, None
    if len(runs) == 1:
      thresholds = [c[0] for c in thresholds]
    else:
      run_of = self._runs(begin, -(-length // self.word))
      thresholds = [c[run_of] for c in thresholds]
      ends = np.array([self.place.first + run.begin + run.size for run in runs], np.int32)
      ends = jnp.asarray(ends)[run_of]
    return Coding(thresholds, ends, self.to_keys, self.packing.exact)

  def _runs(self, begin: int | jax.Array, words: int) -> np.ndarray:
    """Which run each of some words is of; runs end with whole words."""
    runs = self.place.runs
    run_of = np.repeat(np.arange(len(runs)), [aligned(run.size) // self.word for run in runs])
    # Nothing of places of several runs is read in a loop.
    return run_of[begin // self.word :][:words]

  def count(self, words: jax.Array, begin: int | jax.Array = 0) -> tuple[jax.Array, jax.Array]:
    """How many entries of each run are above the lower threshold in some words, and above the higher one."""
    if len(self.place.runs) == 1:
      return count(words, self.packing.width)
    run_of = jnp.asarray(self._runs(begin, words.size))
    add_up = functools.partial(jax.ops.segment_sum, indices_are_sorted=True)
    lower, upper = (
      add_up(bits, run_of, len(self.place.runs)) for bits in _bits_of(words, self.packing.width)
    )
    return _of_both_thresholds(lower, upper, self.packing.width)


def count(words: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
  """How many entries are above the lower threshold in some words, and above the higher one; shape (1,) each."""
  # As one reduction of two numbers, which compilers for CPUs vectorise.
  zero = _axis.varying_like(jnp.int32(0), words)
  both = lambda a, b: (a[0] + b[0], a[1] + b[1])
  lower, upper = lax.reduce(_bits_of(words, width), (zero, zero), both, (0,))
  return _of_both_thresholds(lower[None], upper[None], width)


def _bits_of(words: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
  """How many bits of both thresholds each word has, or of two halves with those of one."""
  kinds = (words, words >> 1 & EVEN_BITS) if width == 2 else (words & _HALF, words >> 16)
  lower, upper = (lax.population_count(x).astype(jnp.int32) for x in kinds)
  return lower, upper


def _of_both_thresholds(
  lower: jax.Array, upper: jax.Array, width: int
) -> tuple[jax.Array, jax.Array]:
  """How many entries are above each threshold, from the sums of what ``_bits_of`` counts."""
  return (lower, upper) if width == 2 else (lower + upper, jnp.zeros_like(upper))


def pack_by_rows(
  pieces: Sequence[PieceReader], packed: jax.Array, groups: int
) -> tuple[jax.Array, Tally]:
  """The words of pieces one after another, each by reductions of rows.

  A CPU is the faster the more places it reads from at once, for each of which it fetches ahead. And compilers
  for CPUs vectorise the reduction of a row to one number, whose parts are put together in the end: of words in
  several places, there is one sum of squares and one largest key to put together for all.
  """
  parts = []
  for piece in pieces:
    if len(piece.packing.vector.arrays[piece.number]) == 1:
      packed, new = _pack_in_chunks(piece, packed)
    else:
      # An array that a loop reads is not updated in place after it, as memory is.
      packed, new = _pack_from(piece, packed, 0)
    parts.append(new)
  return packed, Tally.of_groups(parts, groups)


def _pack_in_chunks(piece: PieceReader, packed: jax.Array) -> tuple[jax.Array, Tally]:
  """Packs a piece a chunk at a time, so that what a read yields beside the words takes little memory."""
  size = piece.place.size
  if size < _SHORT or len(piece.place.runs) > 1:
    return _pack_from(piece, packed, 0)
  chunk = min(_CHUNK, size // _TURNS // _TOGETHER * _TOGETHER)
  turns = size // chunk

  def turn(number, state):
    packed, found = state
    packed, new = _pack_chunk(piece, packed, number * chunk, chunk, _TOGETHER)
    return packed, found.with_(new)

  start = jax.tree.map(lambda x: _axis.varying_like(x, packed), Tally.nothing(1))
  packed, found = fori_loop(0, turns, turn, (packed, start))
  packed, rest = _pack_from(piece, packed, turns * chunk)
  return packed, found.with_(rest)


def _pack_from(piece: PieceReader, packed: jax.Array, begin: int) -> tuple[jax.Array, Tally]:
  """Packs a piece from entry ``begin`` to its end: what is read together, words left over, entries left over."""
  found = Tally.nothing(len(piece.place.runs))
  # The places that are read from are of all arrays together, and beyond some they do harm.
  arrays = len(piece.packing.vector.arrays[piece.number])
  for unit in (_TOGETHER if arrays == 1 else _TOGETHER // 2, piece.word, 1):
    length = (piece.place.size - begin) // unit * unit
    if length:
      packed, new = _pack_chunk(piece, packed, begin, length, unit)
      found, begin = found.with_(new), begin + length
  return packed, found


def _pack_chunk(
  piece: PieceReader, packed: jax.Array, begin: int | jax.Array, length: int, together: int
) -> tuple[jax.Array, Tally]:
  """Packs ``length`` entries of a piece from entry ``begin`` on.

  Args:
    piece: what is read.
    packed: all words, to write over.
    begin: the number of the first entry in the piece.
    length: a multiple of ``together``, or less than a word.
    together: entries that are made words of at once.

  Returns:
    All words, and what was found.
  """
  abreast = max(1, together // min(piece.word, length))
  words, squares, keys = piece.words(begin, length, abreast)
  found = Tally(Statistics(squares.sum(), keys.max()), *piece.count(words, begin))
  return piece.put(packed, words, begin), found


class Coding(NamedTuple):
  """How entries become bits of words.

  Attributes:
    thresholds: the lower one, or both; of one group, or with an entry for each word.
    ends: beyond the last position of each word's group, from which on an entry is in no word; None for one group.
    to_keys: from entries to keys.
    exact: whether ties are broken entry by entry.
  """

  thresholds: Sequence[Threshold]
  ends: jax.Array | None
  to_keys: ToKeys
  exact: bool

  def part(self, number: int, parts: int) -> "Coding":
    """That of the words of one of some equal parts, which stand below one another."""
    if self.ends is None:
      return self
    of_part = lambda x: x.reshape(*x.shape[:-1], parts, -1)[..., number, :, None]
    thresholds = [Threshold(of_part(c.packed)) for c in self.thresholds]
    return self._replace(thresholds=thresholds, ends=of_part(self.ends))

  def codes(
    self, entries: jax.Array, begins: jax.Array, number: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A bit for each threshold, at its place in the word, for entries that are so far in words; squares and keys."""
    keys = self.to_keys(entries)
    places = begins + number if self.exact else begins
    bounds = [c.value - (places < c.index).astype(jnp.int32) for c in self.thresholds]
    if self.ends is not None:
      # Below all bounds, of which -1 is the least.
      keys = jnp.where(number < self.ends - begins, keys, -1)
    code = sum(((keys > bound).astype(jnp.uint32) for bound in bounds), np.uint32(0))
    return code << (len(self.thresholds) * number.astype(jnp.uint32)), square(entries), keys


def _words_by_rows(
  parts: Sequence[jax.Array], first: int | jax.Array, coding: Coding
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The words of some entries, and for each row of all parts together its sum of squares and its largest key.

  Args:
    parts: equal parts of the entries in order, with a row for each word, shape (rows, length).
    first: the position of the first entry.
    coding: how they become words.

  Returns:
    The words in order, squares and keys.
  """
  rows, length = parts[0].shape
  number = lax.iota(jnp.int32, length)[None]
  starts = first + length * lax.iota(jnp.int32, rows)[:, None]
  codes, squares, largest = zip(
    *(
      coding.part(i, len(parts)).codes(entries, starts + length * rows * i, number)
      for i, entries in enumerate(parts)
    ),
    strict=True,
  )
  operands = (*codes, functools.reduce(jnp.add, squares), functools.reduce(jnp.maximum, largest))
  zeros = tuple(_axis.varying_like(jnp.zeros((), x.dtype), parts[0]) for x in operands)
  # As one reduction, whose rows compilers for CPUs make vectors of.
  *words, squares, keys = lax.reduce(operands, zeros, sum_and_max, (1,))
  return jnp.concatenate(words), squares, keys
