"""Two cuts of every group as two bits an entry, 16 entries to a word, in one read of the vector.

The bits are 2 above the higher cut, 1 between the cuts and 0 below the lower one. How many entries are above
each cut, the sum of all squares and the largest key come out of the same read.

Where few entries are looked for, one bit an entry will do, above the lower cut or not: then all that are above it
are between the cuts, and the words take half the memory.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels._bitset import GROUP, Positions
from rtopk_jax.kernels._gpu_loops import in_turn, on_gpus
from rtopk_jax.kernels._statistics import Found, Survey, View, of_runs, square, with_next
from rtopk_jax.kernels._threshold import Cut
from rtopk_jax.vector._vector import Place, Vector, aligned

# Bits of an entry, at most.
WIDTH = 2
EVEN_BITS = np.uint32(0x5555_5555)
_HALF = np.uint32(0xFFFF)
# Entries that are made words of at once on CPUs.
_TOGETHER = 128
# Entries of a piece that are read at a time, at most, and at most one in so many of it; shorter ones are read at once.
_STRETCH = 1 << 20
_TURNS = 8
_SHORT = 1 << 12
# Parts of a piece that GPUs read one after another.
_PARTS = 4


@dataclasses.dataclass(frozen=True)
class Linear:
  """Words of entries that lie one after another; their bits are in the order of positions.

  Attributes:
    vector: d entries, in flat arrays.
    width: bits of an entry.
    exact: whether there is one cut, between single entries, or two, between words: then all entries of a word
      have their ties broken alike.
  """

  vector: Vector
  width: int = WIDTH
  exact: bool = False
  # Whether a bit for each of very many things is made and read without a copy of more than that.
  has_bits = True

  def start(self) -> jax.Array:
    """Words of nothing."""
    group = GROUP * (32 // self.width)
    return jnp.zeros(-(-self.vector.span // group) * GROUP, jnp.uint32)

  def pack(
    self, turn: jax.Array, words: jax.Array, low: Cut, high: Cut, view: View
  ) -> tuple[jax.Array, "Found"]:
    """The words of two cuts of each group, and what was found.

    Args:
      turn: of the loop that this is in.
      words: to write over.
      low: the lower cut of each group.
      high: the higher one; with one bit an entry nothing is above it.
      view: from entries to keys.
    """
    form = dataclasses.replace(self, vector=self.vector.tied_to(turn))
    pieces = [
      _Piece(form, i, of_runs(place, low), of_runs(place, high), view)
      for i, place in enumerate(self.vector.where)
    ]
    groups = low.value.size
    return on_gpus(
      words,
      gpu=lambda words: _by_threads(pieces, words, groups),
      default=lambda words: _by_rows(pieces, words, groups),
    )

  def members(self, words: jax.Array) -> Positions:
    """The set of positions that have a bit in some words."""
    return Positions(words, self.width)

  def between(self, words: jax.Array) -> Positions:
    """The set of positions between the cuts of some words."""
    return self.members(words if self.width == 1 else words & ~(words >> 1) & EVEN_BITS)

  def numbers(self, members: jax.Array, count: int) -> jax.Array:
    """Where an array of rows is true, which it is so many times: numbers counted row by row, ascending."""
    return Positions.of(members.reshape(-1)).first(count)

  def strike(self, words: jax.Array, positions: jax.Array, lost: jax.Array) -> jax.Array:
    """The words without the lower bits of some positions, no two of them the same."""
    entries = 32 // self.width
    bits = np.uint32(1) << (self.width * (positions % entries)).astype(jnp.uint32)
    at = jnp.where(lost, positions // entries, words.size)
    return words.at[at].add(jnp.uint32(0) - bits, mode="drop")

  def take(self, positions: jax.Array, shares: Sequence[int] | None = None) -> jax.Array:
    """As ``Vector.take``."""
    return self.vector.take(positions, shares)

  def take_from(self, piece: int, index: jax.Array) -> jax.Array:
    """As ``Vector.take_from``."""
    return self.vector.take_from(piece, index)


class _Piece(NamedTuple):
  """A piece of a vector that is packed, and the cuts of each of its runs."""

  form: Linear
  number: int
  low: Cut
  high: Cut
  view: View

  @property
  def place(self) -> Place:
    return self.form.vector.where[self.number]

  @property
  def word(self) -> int:
    """Entries of a word."""
    return 32 // self.form.width

  def after(self, survey: Survey) -> "_Piece":
    """The same piece, to be read when something was surveyed, and not before."""
    vector = self.form.vector
    # Which is always so, but compilers do not know, and what is theirs to order they put together.
    is_there = survey.largest >= 0

    def rule(*arrays):
      entries = vector.rule(*arrays)
      return jnp.where(is_there, entries, jnp.zeros_like(entries))

    form = dataclasses.replace(self.form, vector=dataclasses.replace(vector, rule=rule))
    return self._replace(form=form)

  def put(self, packed: jax.Array, words: jax.Array, begin: int | jax.Array) -> jax.Array:
    """Words of entries from one on at their place among all."""
    return lax.dynamic_update_slice(packed, words, ((self.place.first + begin) // self.word,))

  def words(
    self, begin: int | jax.Array, length: int, abreast: int | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The words of so many entries from one on, and sums of squares and largest keys of rows.

    They are read from so many places at once, a vector of each; or for None by threads, each of which has a word.
    """
    vector, first, word = self.form.vector, self.place.first + begin, min(self.word, length)
    # With one bit an entry the higher cut is above all.
    cuts = (self.low, self.high)[: self.form.width]
    runs, ends = self.place.runs, None
    if len(runs) == 1:
      cuts = [Cut(*(x[0] for x in c)) for c in cuts]
    else:
      run_of = self._runs(begin, -(-length // self.word))
      cuts = [Cut(*(x[run_of] for x in c)) for c in cuts]
      ends = np.array([self.place.first + run.begin + run.size for run in runs], np.int32)
      ends = jnp.asarray(ends)[run_of]
    rule = _Coding(cuts, ends, self.view, self.form.exact)
    if abreast is None:
      column = functools.partial(vector.read_column, self.number, begin, length, word)
      return _words_by_threads(column, length // word, word, first, rule)
    return _words_by_rows(
      vector.read_abreast(self.number, begin, length, abreast, word), first, rule
    )

  def _runs(self, begin: int | jax.Array, words: int) -> np.ndarray:
    """Which run each of some words is of; runs end with whole words."""
    runs = self.place.runs
    run_of = np.repeat(np.arange(len(runs)), [aligned(run.size) // self.word for run in runs])
    # Nothing of places of several runs is read in a loop.
    return run_of[begin // self.word :][:words]

  def count(self, words: jax.Array, begin: int | jax.Array = 0) -> tuple[jax.Array, jax.Array]:
    """How many entries of each run are above the lower cut in some words, and above the higher one."""
    if len(self.place.runs) == 1:
      return count(words, self.form.width)
    run_of = jnp.asarray(self._runs(begin, words.size))
    add_up = functools.partial(jax.ops.segment_sum, indices_are_sorted=True)
    lower, upper = (
      add_up(bits, run_of, len(self.place.runs)) for bits in _bits_of(words, self.form.width)
    )
    return _of_cuts(lower, upper, self.form.width)


def count(words: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
  """How many entries are above the lower cut in some words, and above the higher one; shape (1,) each."""
  # As one reduction of two numbers, which compilers for CPUs vectorise.
  zero = _axis.varying_like(jnp.int32(0), words)
  both = lambda a, b: (a[0] + b[0], a[1] + b[1])
  lower, upper = lax.reduce(_bits_of(words, width), (zero, zero), both, (0,))
  return _of_cuts(lower[None], upper[None], width)


def _bits_of(words: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
  """How many bits of both cuts each word has, or of two halves with those of one."""
  kinds = (words, words >> 1 & EVEN_BITS) if width == 2 else (words & _HALF, words >> 16)
  lower, upper = (lax.population_count(x).astype(jnp.int32) for x in kinds)
  return lower, upper


def _of_cuts(lower: jax.Array, upper: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
  return (lower, upper) if width == 2 else (lower + upper, jnp.zeros_like(upper))


def _by_rows(pieces: Sequence[_Piece], packed: jax.Array, groups: int) -> tuple[jax.Array, Found]:
  """Words on CPUs, piece by piece.

  A CPU is the faster the more places it reads from at once, for each of which it fetches ahead. And compilers
  for CPUs vectorise the reduction of a row to one number, whose parts are put together in the end: of words in
  several places, there is one sum of squares and one largest key to put together for all.
  """
  parts = []
  for piece in pieces:
    if len(piece.form.vector.arrays[piece.number]) == 1:
      packed, new = _by_stretches(piece, packed)
    else:
      # An array that a loop reads is not updated in place after it, as memory is.
      packed, new = _from(piece, packed, 0)
    parts.append(new)
  return packed, Found.of_groups(parts, groups)


def _by_stretches(piece: _Piece, packed: jax.Array) -> tuple[jax.Array, Found]:
  """A piece, so that what a read yields beside the words takes little memory."""
  size = piece.place.size
  if size < _SHORT or len(piece.place.runs) > 1:
    return _from(piece, packed, 0)
  stretch = min(_STRETCH, size // _TURNS // _TOGETHER * _TOGETHER)
  turns = size // stretch

  def turn(number, state):
    packed, found = state
    packed, new = _stretch(piece, packed, number * stretch, stretch, _TOGETHER)
    return packed, found.with_(new)

  start = jax.tree.map(lambda x: _axis.varying_like(x, packed), Found.nothing(1))
  packed, found = fori_loop(0, turns, turn, (packed, start))
  packed, rest = _from(piece, packed, turns * stretch)
  return packed, found.with_(rest)


def _from(piece: _Piece, packed: jax.Array, begin: int) -> tuple[jax.Array, Found]:
  """All of a piece from an entry on: what is read together, the words left over, the entries left over."""
  found = Found.nothing(len(piece.place.runs))
  # The places that are read from are of all arrays together, and beyond some they do harm.
  arrays = len(piece.form.vector.arrays[piece.number])
  for unit in (_TOGETHER if arrays == 1 else _TOGETHER // 2, piece.word, 1):
    length = (piece.place.size - begin) // unit * unit
    if length:
      packed, new = _stretch(piece, packed, begin, length, unit)
      found, begin = found.with_(new), begin + length
  return packed, found


def _stretch(
  piece: _Piece, packed: jax.Array, begin: int | jax.Array, length: int, together: int
) -> tuple[jax.Array, Found]:
  """So many entries from one on: a multiple of those that are read together, or less than a word."""
  abreast = max(1, together // min(piece.word, length))
  words, squares, keys = piece.words(begin, length, abreast)
  found = Found(Survey(squares.sum(), keys.max()), *piece.count(words, begin))
  return piece.put(packed, words, begin), found


def _by_threads(
  pieces: Sequence[_Piece], packed: jax.Array, groups: int
) -> tuple[jax.Array, Found]:
  """Words on GPUs, as few kernels as possible: what is found of pieces is added up for all of them at once."""
  surveys, rows, counts = [], [], []
  for piece in pieces:
    place, arrays = piece.place, piece.form.vector.arrays[piece.number]
    # What is found of a long vector, as long as its words each, is added up part by part.
    is_alone = len(pieces) == len(arrays) == len(place.runs) == 1
    parts = _PARTS if is_alone and place.size >= _SHORT else 1
    for begin, length in _spans(place.size, piece.word, parts):
      # One after another, so that they have the same memory.
      part = piece.after(surveys[-1]) if begin and parts > 1 else piece
      words, *found = part.words(begin, length, None)
      packed = piece.put(packed, words, begin)
      if parts > 1:
        surveys.append(Survey.of_rows([found]))
      else:
        rows.append(found)
    if groups > 1:
      first = place.first // piece.word
      counts.append(piece.count(packed[first : first + -(-place.size // piece.word)]))
  if rows:
    surveys.append(Survey.of_rows(rows))
  counts = counts or [count(packed, pieces[0].form.width)]
  in_low, in_high = (jnp.concatenate(x) for x in zip(*counts, strict=True))
  return packed, Found(functools.reduce(Survey.with_, surveys), in_low, in_high)


def _spans(size: int, word: int, parts: int) -> list[tuple[int, int]]:
  """Beginnings and lengths of equal parts of whole words, of the words left over and of the entries left over."""
  part = size // (word * parts) * word
  ends = [part * (i + 1) for i in range(parts)] + [size // word * word, size]
  return [(begin, end - begin) for begin, end in itertools.pairwise([0, *ends]) if end > begin]


class _Coding(NamedTuple):
  """How entries become bits of words.

  Attributes:
    cuts: the lower one, or both; of one group, or with an entry for each word.
    ends: beyond the last position of each word's group, from which on an entry is in no word; None for one group.
    view: from entries to keys.
    exact: whether ties are broken entry by entry.
  """

  cuts: Sequence[Cut]
  ends: jax.Array | None
  view: View
  exact: bool

  def part(self, number: int, parts: int) -> "_Coding":
    """That of the words of one of some equal parts, which stand below one another."""
    of_part = lambda x: x.reshape(parts, -1)[number][:, None] if x.ndim else x
    cuts = [Cut(*(of_part(x) for x in c)) for c in self.cuts]
    return self._replace(cuts=cuts, ends=None if self.ends is None else of_part(self.ends))

  def codes(
    self, entries: jax.Array, begins: jax.Array, number: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A bit for each cut, at its place in the word, for entries that are so far in words; squares and keys."""
    keys = self.view(entries)
    places = begins + number if self.exact else begins
    bounds = [c.value - (places < c.index).astype(jnp.int32) for c in self.cuts]
    if self.ends is not None:
      # Below all bounds, of which -1 is the least.
      keys = jnp.where(number < self.ends - begins, keys, -1)
    code = sum(((keys > bound).astype(jnp.uint32) for bound in bounds), np.uint32(0))
    return code << (len(self.cuts) * number.astype(jnp.uint32)), square(entries), keys


def _words_by_rows(
  parts: Sequence[jax.Array], first: int | jax.Array, rule: _Coding
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The words of some entries, and for each row of all parts together its sum of squares and its largest key.

  Args:
    parts: equal parts of the entries in order, with a row for each word, shape (rows, length).
    first: the position of the first entry.
    rule: how they become words.

  Returns:
    The words in order, squares and keys.
  """
  rows, length = parts[0].shape
  number = lax.iota(jnp.int32, length)[None]
  starts = first + length * lax.iota(jnp.int32, rows)[:, None]
  codes, squares, largest = zip(
    *(
      rule.part(i, len(parts)).codes(entries, starts + length * rows * i, number)
      for i, entries in enumerate(parts)
    ),
    strict=True,
  )
  operands = (*codes, functools.reduce(jnp.add, squares), functools.reduce(jnp.maximum, largest))
  zeros = tuple(_axis.varying_like(jnp.zeros((), x.dtype), parts[0]) for x in operands)
  # As one reduction, whose rows compilers for CPUs make vectors of.
  *words, squares, keys = lax.reduce(operands, zeros, with_next, (1,))
  return jnp.concatenate(words), squares, keys


def _words_by_threads(
  column: Callable[[jax.Array], jax.Array],
  rows: int,
  length: int,
  first: int | jax.Array,
  rule: _Coding,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The same of entries in columns, shape (rows, 1): a GPU has a thread for each word, and reduces short rows slowly."""
  begins = first + length * lax.iota(jnp.int32, rows)[:, None]
  rule = rule.part(0, 1)
  codes = lambda i: rule.codes(column(i), begins, i)
  words, squares, keys = in_turn(with_next, codes, length)
  return words, squares, keys
