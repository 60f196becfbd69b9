"""Two cuts of every group as two bits an entry, 16 entries to a word, in one read of the vector.

The bits are 2 above the higher cut, 1 between the cuts and 0 below the lower one. How many entries are above
each cut, the sum of all squares and the largest key come out of the same read.

Where few entries are looked for, one bit an entry will do, above the lower cut or not: then all that are above it
are between the cuts, and the words take half the memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._positions import GROUP, Positions
from rtopk_jax._rows import Cut
from rtopk_jax._vector import Place, Vector, aligned

# Bits of an entry, at most.
WIDTH = 2
EVEN_BITS = np.uint32(0x5555_5555)
_HALF = np.uint32(0xFFFF)
# Entries of a row of what is added up, and those that are made words of at once on CPUs.
_ROW = 512
_TOGETHER = 128
# Entries of a piece that are read at a time, at most, and at most one in so many of it.
_STRETCH = 1 << 20
_TURNS = 8

View = Callable[[jax.Array], jax.Array]


class Survey(NamedTuple):
  """What a read of a whole vector tells besides.

  Attributes:
    square: the sum of its entries' squares.
    largest: its largest key.
  """

  square: jax.Array
  largest: jax.Array

  @classmethod
  def of(cls, entries: jax.Array, view: View) -> "Survey":
    return cls(jnp.sum(square(entries)), jnp.max(view(entries)))

  @classmethod
  def by_rows(cls, entries: jax.Array, view: View) -> "Survey":
    """Of flat entries: compilers for CPUs vectorise what makes several numbers of a row."""
    whole = entries.size // _ROW * _ROW
    found = []
    for part in (entries[:whole].reshape(-1, _ROW), entries[whole:].reshape(1, -1)):
      zeros = (_axis.varying_like(zero, entries) for zero in (jnp.float32(0), jnp.int32(0)))
      squares, keys = lax.reduce(
        (square(part), view(part)),
        tuple(zeros),
        lambda a, b: (a[0] + b[0], jnp.maximum(a[1], b[1])),
        (1,),
      )
      found.append(cls(jnp.sum(squares), jnp.max(keys, initial=0)))
    return found[0].with_(found[1])

  def with_(self, other: "Survey") -> "Survey":
    """Of the entries of both."""
    return Survey(self.square + other.square, jnp.maximum(self.largest, other.largest))


def square(entries: jax.Array) -> jax.Array:
  """The squares of some entries, in float32."""
  return jnp.square(entries.astype(jnp.float32))


class Found(NamedTuple):
  """What some entries add up to.

  Attributes:
    survey: of all.
    in_low: how many of each group are above its lower cut.
    in_high: and above its higher one.
  """

  survey: Survey
  in_low: jax.Array
  in_high: jax.Array

  @classmethod
  def nothing(cls, groups: int) -> "Found":
    zero = jnp.zeros(groups, jnp.int32)
    return cls(Survey(jnp.float32(0), jnp.int32(0)), zero, zero)

  def with_(self, other: "Found") -> "Found":
    """Of the entries of both, which are of the same groups."""
    survey = self.survey.with_(other.survey)
    return Found(survey, self.in_low + other.in_low, self.in_high + other.in_high)

  @classmethod
  def of_groups(cls, parts: Sequence["Found"], groups: int) -> "Found":
    """Of all pieces, whose runs are of one group or each of one of its own."""
    survey = functools.reduce(Survey.with_, [part.survey for part in parts])
    counts = (jnp.concatenate(x) for x in zip(*(part[1:] for part in parts), strict=True))
    return cls(survey, *(x.reshape(groups, -1).sum(axis=1) for x in counts))


def of_runs(place: Place, c: Cut) -> Cut:
  """The cuts of a piece's runs, out of those of all groups."""
  groups = np.array([run.group for run in place.runs])
  return Cut(*(x[groups] for x in c))


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
    parts = []
    for i, place in enumerate(self.vector.where):
      piece = _Piece(form, i, of_runs(place, low), of_runs(place, high), view)
      if len(self.vector.arrays[i]) == 1:
        words, new = piece.pack_by_stretches(words)
      else:
        # An array that a loop reads is not updated in place after it, as memory is.
        words, new = piece.pack(words)
      parts.append(new)
    return words, Found.of_groups(parts, low.value.size)

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

  def take(self, positions: jax.Array) -> jax.Array:
    """As ``Vector.take``."""
    return self.vector.take(positions)

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

  def pack(self, packed: jax.Array, start: int = 0) -> tuple[jax.Array, Found]:
    """All of it, or what follows an entry: what is read together, the words left over, the entries left over."""
    return self._on_platform(packed, self._pack_all, start)

  def _pack_all(self, packed: jax.Array, start: int, together: int) -> tuple[jax.Array, Found]:
    size, begin, found = self.place.size, start, []
    for unit in (together, self._word, 1):
      length = (size - begin) // unit * unit
      if length:
        packed, new = self._pack(packed, begin, length, unit)
        found.append(new)
        begin += length
    return packed, functools.reduce(Found.with_, found, Found.nothing(len(self.place.runs)))

  def pack_by_stretches(self, packed: jax.Array) -> tuple[jax.Array, Found]:
    """All of it, so that what a read yields beside the words takes little memory."""
    size = self.place.size
    if size < _TURNS * _ROW or len(self.place.runs) > 1:
      return self.pack(packed)
    stretch = min(_STRETCH, size // _TURNS // _TOGETHER * _TOGETHER)
    turns = size // stretch

    def turn(number, state):
      packed, found = state
      one = lambda packed, together: self._pack(packed, number * stretch, stretch, together)
      packed, new = self._on_platform(packed, one)
      return packed, found.with_(new)

    start = jax.tree.map(lambda x: _axis.varying_like(x, packed), Found.nothing(1))
    packed, found = lax.fori_loop(0, turns, turn, (packed, start))
    packed, rest = self.pack(packed, turns * stretch)
    return packed, found.with_(rest)

  @property
  def _word(self) -> int:
    """Entries of a word."""
    return 32 // self.form.width

  def _on_platform(self, packed: jax.Array, pack: Callable[..., Any], *start: int) -> Any:
    """Packs so many entries together as suit the platform.

    A CPU is the faster the more places it reads from at once, for each of which it fetches ahead. And compilers
    for CPUs vectorise the reduction of a row to one number, whose parts are put together in the end: of words in
    several places, there is one sum of squares and one largest key to put together for all.
    """
    # The places are of all arrays together, and beyond some they do harm.
    together = _TOGETHER if len(self.form.vector.arrays[self.number]) == 1 else _TOGETHER // 2
    return lax.platform_dependent(
      packed,
      cpu=lambda packed: pack(packed, *start, together=together),
      default=lambda packed: pack(packed, *start, together=self._word),
    )

  def _pack(
    self, packed: jax.Array, begin: int | jax.Array, length: int, together: int
  ) -> tuple[jax.Array, Found]:
    """So many entries from one on: a multiple of those that are read together, or less than a word."""
    first, word = self.place.first + begin, min(self._word, length)
    abreast = max(1, together // word)
    parts = self.form.vector.read_abreast(self.number, begin, length, abreast, word)
    runs = self.place.runs
    # With one bit an entry the higher cut is above all.
    cuts = (self.low, self.high)[: self.form.width]
    if len(runs) == 1:
      cuts = [Cut(*(x[0] for x in c)) for c in cuts]
      words, survey = _words(parts, first, cuts, self.view, self.form.exact)
      # As one reduction of two numbers, which compilers for CPUs vectorise.
      zero = _axis.varying_like(jnp.int32(0), words)
      count = lambda *kinds: [total[None] for total in lax.reduce(kinds, (zero, zero), _both, (0,))]
    else:
      # Runs end with whole words, and nothing of places of several is read in a loop.
      lengths = [aligned(run.size) // word for run in runs]
      run_of = np.repeat(np.arange(len(runs)), lengths)[begin // word : (begin + length) // word]
      cuts = [Cut(*(x[run_of] for x in c)) for c in cuts]
      ends = np.array([self.place.first + run.begin + run.size for run in runs], np.int32)
      words, survey = _words(
        parts, first, cuts, self.view, self.form.exact, jnp.asarray(ends)[run_of]
      )
      count = lambda *kinds: [
        jax.ops.segment_sum(bits, jnp.asarray(run_of), len(runs), indices_are_sorted=True)
        for bits in kinds
      ]
    # The bits of both cuts, or two halves of those of one.
    lower, upper = (
      (words, words >> 1 & EVEN_BITS) if self.form.width == 2 else (words & _HALF, words >> 16)
    )
    in_low, in_high = count(*(lax.population_count(x).astype(jnp.int32) for x in (lower, upper)))
    if self.form.width == 1:
      in_low, in_high = in_low + in_high, jnp.zeros_like(in_high)
    found = Found(survey, in_low, in_high)
    return lax.dynamic_update_slice(packed, words, (first // self._word,)), found


def _both(a, b):
  return a[0] + b[0], a[1] + b[1]


def _words(
  parts: Sequence[jax.Array],
  first: int | jax.Array,
  cuts: Sequence[Cut],
  view: View,
  exact: bool,
  ends: jax.Array | None = None,
) -> tuple[jax.Array, Survey]:
  """The words of some entries, a bit for each cut, and their survey; from its end on, an entry is in no word.

  Args:
    parts: equal parts of the entries in order, with a row for each word, shape (rows, length).
    first: the position of the first entry.
    cuts: the lower one, or both; of one group, or with an entry for each word.
    view: from entries to keys.
    exact: whether ties are broken entry by entry.
    ends: beyond the last position of each word's group.

  Returns:
    The words in order.
  """
  width = len(cuts)
  rows, length = parts[0].shape
  number = lax.iota(jnp.int32, length)[None]
  starts = first + length * lax.iota(jnp.int32, rows)[:, None]
  codes, squares, largest = [], [], []
  for i, entries in enumerate(parts):
    of_part = lambda x, i=i: x.reshape(-1, rows)[i][:, None] if x.ndim else x
    keys = view(entries)
    begins = starts + length * rows * i
    places = begins + number if exact else begins
    bounds = [of_part(c.value) - (places < of_part(c.index)).astype(jnp.int32) for c in cuts]
    if ends is not None:
      # Below all bounds, of which -1 is the least.
      keys = jnp.where(number < of_part(ends) - begins, keys, -1)
    code = sum(((keys > bound).astype(jnp.uint32) for bound in bounds), np.uint32(0))
    codes.append(code << (width * number.astype(jnp.uint32)))
    squares.append(square(entries))
    largest.append(keys)
  operands = (*codes, functools.reduce(jnp.add, squares), functools.reduce(jnp.maximum, largest))
  zeros = [_axis.varying_like(jnp.zeros((), x.dtype), parts[0]) for x in operands]
  *words, squares, keys = lax.reduce(
    operands,
    tuple(zeros),
    lambda a, b: (*(x + y for x, y in zip(a[:-1], b[:-1], strict=True)), jnp.maximum(a[-1], b[-1])),
    (1,),
  )
  return jnp.concatenate(words), Survey(squares.sum(), keys.max())
