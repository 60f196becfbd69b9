"""A vector that is never materialised: its pieces lie where they are, and are computed where they are read.

What a worker selects from is gradient, momentum and residual added up, of all leaves of a model. To materialise it
would take a vector's worth of memory, and on CPUs more time than the selection itself. So a piece has its arrays
and a rule by which they make an entry. Whoever reads the piece reads the arrays.

An entry's *position* counts through the pieces in order, each of which begins at a multiple of ``ALIGN``.
Positions between the end of one piece and the beginning of the next are of no entry.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax._precision import as_bits

# The most entries of a word of the search; no word belongs to two pieces.
ALIGN = 32
# Positions are int32.
MAX_SIZE = 2**31 - 1


class Run(NamedTuple):
  """Entries side by side in a piece that belong to one group.

  Attributes:
    begin: the number of the first of them in the piece, a multiple of ``ALIGN``.
    size: how many.
    group: the number of the group: all entries that one selection, with one k, is made of.
  """

  begin: int
  size: int
  group: int


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a piece lies in a vector, and its shape.

  Attributes:
    first: the position of its first entry.
    shape: of its arrays, of one axis at least.
    runs: what of it is selected from, in order; the rest are zeros that fill it up.
  """

  first: int
  shape: tuple[int, ...]
  runs: tuple[Run, ...]

  @property
  def size(self) -> int:
    """The entries of its arrays."""
    return math.prod(self.shape)

  @property
  def entries(self) -> int:
    """How many are selected from."""
    return sum(run.size for run in self.runs)

  @property
  def groups(self) -> np.ndarray:
    """The group of each run."""
    return np.array([run.group for run in self.runs])

  def flat(self) -> "Place":
    """The same place, of flat arrays."""
    return dataclasses.replace(self, shape=(self.size,))

  def index(
    self, positions: jax.Array, first: int | jax.Array | None = None
  ) -> tuple[jax.Array, ...]:
    """The index of some positions in the leaf, axis by axis; out of bounds for a position outside of it.

    It is not an index of the flattened leaf, which could not be updated in place.

    Args:
      positions: int32, of any shape.
      first: the place's first position as an array, where a compiler must not know it.
    """
    rest = positions - (self.first if first is None else first)
    inside = (rest >= 0) & (rest < self.size)
    # Unsigned: signs and the smallest number would be looked after.
    rest, index = rest.astype(jnp.uint32), []
    for length in self.shape[:0:-1]:
      index.append(lax.rem(rest, np.uint32(length)).astype(jnp.int32))
      rest = lax.div(rest, np.uint32(length))
    index.append(jnp.where(inside, rest.astype(jnp.int32), np.int32(self.shape[0])))
    return tuple(index[::-1])


def places(
  shapes: Sequence[tuple[int, ...]], runs: Sequence[Sequence[Run]] | None = None
) -> tuple[Place, ...]:
  """Places one after another, of some shapes; without ``runs`` all of their entries are one group."""
  found, first = [], 0
  for i, shape in enumerate(shapes):
    size = math.prod(shape)
    found.append(Place(first, tuple(shape), tuple(runs[i]) if runs else (Run(0, size, 0),)))
    first += aligned(size)
  return tuple(found)


def aligned(size: int) -> int:
  """So many entries, rounded up to whole words."""
  return -(-size // ALIGN) * ALIGN


def span(where: Sequence[Place]) -> int:
  """How many positions some places take."""
  return where[-1].first + where[-1].size


@dataclasses.dataclass(frozen=True)
class Vector:
  """Pieces in order: each has some arrays, a place, and the rule that all of them share.

  Attributes:
    where: the place of each piece.
    arrays: the arrays of each piece, of its shape.
    rule: from the entries of a piece's arrays to its own, one by one.
  """

  where: tuple[Place, ...]
  arrays: tuple[tuple[jax.Array, ...], ...]
  rule: Callable[..., jax.Array]

  @property
  def counts(self) -> tuple[int, ...]:
    """The entries of each group."""
    runs = [run for place in self.where for run in place.runs]
    counts = [0] * (runs[-1].group + 1)
    for run in runs:
      counts[run.group] += run.size
    return tuple(counts)

  @property
  def size(self) -> int:
    """d, the entries of all pieces."""
    return sum(place.entries for place in self.where)

  @property
  def span(self) -> int:
    """How many positions there are."""
    return span(self.where)

  def flat(self) -> "Vector":
    """The same vector, of flat arrays.

    Call it outside of a loop. Inside, a compiler would work out for each entry where it lies along the axes, which
    takes ten times as long if the last axes are short.
    """
    where = tuple(place.flat() for place in self.where)
    arrays = tuple(tuple(x.reshape(-1) for x in arrays) for arrays in self.arrays)
    return Vector(where, arrays, self.rule)

  def tied_to(self, turn: jax.Array) -> "Vector":
    """The same vector in a turn of a loop: nothing computed from it can be moved out of the loop."""
    arrays, _ = lax.optimization_barrier((self.arrays, turn))
    return dataclasses.replace(self, arrays=arrays)

  def with_apart(self, piece: int) -> "Vector":
    """The same vector, a piece of which a compiler takes for another: it is not materialised for what reads both."""
    arrays = list(self.arrays)
    arrays[piece] = lax.optimization_barrier(arrays[piece])
    return dataclasses.replace(self, arrays=tuple(arrays))

  def read(self, piece: int, begin: int | jax.Array, length: int) -> jax.Array:
    """``length`` entries of a piece from entry ``begin`` on, flat."""
    return self.rule(*self._slice(piece, begin, length))

  def read_all(self, piece: int) -> jax.Array:
    """All entries of a piece, flat."""
    return self.rule(*self.arrays[piece]).reshape(-1)

  def _slice(self, piece: int, begin: int | jax.Array, length: int) -> list[jax.Array]:
    """``length`` entries of each of a piece's arrays from entry ``begin`` on, flat."""
    if isinstance(begin, int):
      return [x.reshape(-1)[begin : begin + length] for x in self.arrays[piece]]
    of_flat = lambda x, begin: lax.dynamic_slice(x.reshape(-1), (begin,), (length,))
    return [_picked(of_flat, x, begin) for x in self.arrays[piece]]

  def read_abreast(
    self, piece: int, begin: int | jax.Array, length: int, abreast: int, width: int
  ) -> list[jax.Array]:
    """``length`` entries of a piece from entry ``begin`` on, in equal parts.

    Args:
      piece: its number.
      begin: the first entry.
      length: how many, a multiple of ``abreast * width``.
      abreast: how many parts.
      width: entries of a row.

    Returns:
      The parts in order, shape (rows, width).
    """
    size = length // abreast
    parts = (self._slice(piece, begin + size * i, size) for i in range(abreast))
    # The rule is applied to parts: compilers for CPUs would materialise a whole that several parts are made of.
    return [self.rule(*(x.reshape(-1, width) for x in part)) for part in parts]

  def read_column(
    self, piece: int, begin: int | jax.Array, length: int, width: int, number: jax.Array
  ) -> jax.Array:
    """Column ``number`` of ``length`` entries from entry ``begin`` on, in rows of ``width``; shape (rows, 1)."""
    rows = [x.reshape(-1, width) for x in self._slice(piece, begin, length)]
    # The rule is applied to columns: compilers for GPUs would materialise a whole that several are made of.
    return self.rule(*(lax.dynamic_slice_in_dim(x, number, 1, axis=1) for x in rows))

  def read_every(
    self, piece: int, step: int, offset: jax.Array, begin: int | jax.Array, count: int
  ) -> jax.Array:
    """Every ``step``-th cell of ``ALIGN`` entries of a piece, as rows; zeros after its end.

    Args:
      piece: its number.
      step: how many cells there are for one that is read.
      offset: which one of every ``step``.
      begin: how many to pass over; only a Python number may reach beyond the end.
      count: how many to read.
    """
    width = step * ALIGN

    def pick(flat):
      if isinstance(begin, int):
        cells = flat[begin * width : (begin + count) * width]
        cells = jnp.pad(cells, (0, count * width - cells.size))
      else:
        cells = lax.dynamic_slice(flat, (begin * width,), (count * width,))
      return lax.dynamic_index_in_dim(
        cells.reshape(count, step, ALIGN), offset, axis=1, keepdims=False
      )

    # The rule is applied to what was picked, so that the other cells are not even read.
    return self.rule(*(pick(x.reshape(-1)) for x in self.arrays[piece]))

  def take_from(self, piece: int, index: jax.Array) -> jax.Array:
    """Some entries of a piece, by their numbers in it."""
    options = {"mode": "promise_in_bounds", "unique_indices": True}
    get = lambda x, index: x.reshape(-1).at[index].get(**options)
    return self.rule(*(_picked(get, x, index) for x in self.arrays[piece]))

  def take_from_in_place(self, piece: int, index: jax.Array) -> jax.Array:
    """As ``take_from``, without flattening: arrays that lie in tiles would be copied."""
    place = dataclasses.replace(self.where[piece], first=0)
    at = place.index(index)
    options = {"mode": "promise_in_bounds", "unique_indices": True}
    return self.rule(*(x.at[at].get(**options) for x in self.arrays[piece]))

  def spread(self, numbers: jax.Array) -> jax.Array:
    """The positions of entries, by their numbers counted through the runs without gaps."""
    counted, positions = 0, numbers
    for place in self.where:
      for run in place.runs:
        gap = place.first + run.begin - counted
        if gap:
          positions = jnp.where(numbers >= counted, numbers + gap, positions)
        counted += run.size
    return positions


def _picked(
  pick: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, where: jax.Array
) -> jax.Array:
  """``pick(x, where)``, for bfloat16 of its bits, of which compilers for CPUs must not copy all out of a loop."""
  if x.dtype == jnp.bfloat16:
    x, where = lax.optimization_barrier((x, where))
  return as_bits(lambda x: pick(x, where), x)
