"""A vector that is never put together: pieces that lie where they are, worked out where they are read.

What a worker selects from is gradient, momentum and residual added up, of all leaves of a model. Writing
that down would take a vector's worth of memory, and on CPUs more time than the selection itself. So a piece
names its arrays and a rule by which they make an entry; whoever reads the piece reads the arrays.

An entry's *position* counts through the pieces in order, each of which begins at a multiple of ``ALIGN``.
Positions between the end of one piece and the beginning of the next name nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels._gpu_loops import on_gpus

# The most entries of a word of the search; no word belongs to two pieces.
ALIGN = 32
# Positions are int32.
MAX_SIZE = 2**31 - 1
# Entries of a piece that is read a stretch at a time.
_LONG = 1 << 17
# Entries that are taken from a piece at a time.
_STRETCH = 2048


class Run(NamedTuple):
  """Entries of a leaf that take part in one selection.

  Attributes:
    begin: the number of the first of them in the leaf, a multiple of ``ALIGN``.
    size: how many.
    group: the number of the selection.
  """

  begin: int
  size: int
  group: int


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a leaf lies in a vector.

  Attributes:
    first: the position of its first entry.
    shape: of the leaf, of one axis at least.
    runs: what of it is selected from, in order; the rest are zeros that fill it up.
  """

  first: int
  shape: tuple[int, ...]
  runs: tuple[Run, ...]

  @property
  def size(self) -> int:
    """All that it holds."""
    return math.prod(self.shape)

  @property
  def entries(self) -> int:
    """How many are selected from."""
    return sum(run.size for run in self.runs)

  def flat(self) -> "Place":
    """The same of a flat array."""
    return dataclasses.replace(self, shape=(self.size,))

  def index(self, positions: jax.Array) -> tuple[jax.Array, ...]:
    """The places of some positions in the leaf, axis by axis; outside of it, out of bounds.

    A leaf that were flattened to be indexed could not be updated in place.
    """
    rest = positions - self.first
    inside = (rest >= 0) & (rest < self.size)
    index = []
    for length in self.shape[:0:-1]:
      index.append(lax.rem(rest, np.int32(length)))
      rest = lax.div(rest, np.int32(length))
    index.append(jnp.where(inside, rest, np.int32(self.shape[0])))
    return tuple(index[::-1])


def places(
  shapes: Sequence[tuple[int, ...]], runs: Sequence[Sequence[Run]] | None = None
) -> tuple[Place, ...]:
  """Places of leaves one after another; without ``runs`` all of their entries are one group."""
  found, first = [], 0
  for i, shape in enumerate(shapes):
    size = math.prod(shape)
    found.append(Place(first, tuple(shape), tuple(runs[i]) if runs else (Run(0, size, 0),)))
    first += aligned(size)
  return tuple(found)


def aligned(size: int) -> int:
  """So many entries and what they need to end with a word."""
  return -(-size // ALIGN) * ALIGN


def begins(positions: jax.Array, firsts: jax.Array) -> jax.Array:
  """How many of some ascending positions are before each of some others: int32."""
  # A GPU compares all with all before it would have started a few turns of a loop.
  return on_gpus(positions, firsts, gpu=_begins_by_comparing, default=_begins_by_halving)


def _begins_by_comparing(positions: jax.Array, firsts: jax.Array) -> jax.Array:
  return (positions[None] < firsts[:, None]).sum(axis=1, dtype=jnp.int32)


def _begins_by_halving(positions: jax.Array, firsts: jax.Array) -> jax.Array:
  # Not jnp.searchsorted, which fails in a shard_map that leaves an axis of the mesh to the compiler.
  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    is_before = positions[jnp.minimum(middle, positions.size - 1)] < firsts
    is_open = low < high
    return jnp.where(is_open & is_before, middle + 1, low), jnp.where(is_before, high, middle)

  like = lambda x: _axis.varying_like(_axis.varying_like(x, positions), firsts)
  none = jnp.zeros(firsts.shape, jnp.int32)
  bounds = like(none), like(jnp.full_like(none, positions.size))
  return fori_loop(0, positions.size.bit_length(), halve, bounds)[0]


def span(where: Sequence[Place]) -> int:
  """How many positions there are."""
  return where[-1].first + where[-1].size


@dataclasses.dataclass(frozen=True)
class Vector:
  """Pieces in order.

  Attributes:
    where: a place each.
    arrays: the arrays of each, of its shape.
    rule: makes entries of them, one by one.
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
    """The same vector of flat arrays.

    Flattened outside of a loop they are flat inside. There a compiler would rather work out for each entry
    where in its leaf it lies, which takes ten times as long if the leaf's last axes are short.
    """
    where = tuple(place.flat() for place in self.where)
    arrays = tuple(tuple(x.reshape(-1) for x in arrays) for arrays in self.arrays)
    return Vector(where, arrays, self.rule)

  def tied_to(self, turn: jax.Array) -> "Vector":
    """The same vector, as a loop's turn sees it: nothing worked out of it can be moved out of the loop."""
    arrays, _ = lax.optimization_barrier((self.arrays, turn))
    return dataclasses.replace(self, arrays=arrays)

  def read(self, piece: int, begin: int | jax.Array = 0, length: int | None = None) -> jax.Array:
    """The entries of a piece, flat: all, or so many from one on."""
    if length is None:
      place = self.where[piece]
      if place.size < _LONG or len(place.shape) == 1 or place.shape[-1] % ALIGN == 0:
        return self._read_at_once(piece)
      return lax.platform_dependent(
        cpu=lambda: self.flat()._read_by_stretches(piece),
        default=lambda: self._read_at_once(piece),
      )
    return self.rule(*self._cut(piece, begin, length))

  def _cut(self, piece: int, begin: int | jax.Array, length: int) -> list[jax.Array]:
    """So many entries of each of a piece's arrays, flat, from one on."""
    if isinstance(begin, int):
      return [x.reshape(-1)[begin : begin + length] for x in self.arrays[piece]]
    cut = lambda x, begin: lax.dynamic_slice(x.reshape(-1), (begin,), (length,))
    return [_as_bits(cut, x, begin) for x in self.arrays[piece]]

  def read_abreast(
    self, piece: int, begin: int | jax.Array, length: int, abreast: int, width: int
  ) -> list[jax.Array]:
    """So many entries of a piece, from one on, in equal parts.

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
    cuts = (self._cut(piece, begin + size * i, size) for i in range(abreast))
    # The rule is applied to parts: compilers for CPUs would write down what is cut to many.
    return [self.rule(*(x.reshape(-1, width) for x in cut)) for cut in cuts]

  def read_column(
    self, piece: int, begin: int | jax.Array, length: int, width: int, number: jax.Array
  ) -> jax.Array:
    """A column of so many entries of a piece, from one on, in rows of ``width``; shape (rows, 1)."""
    rows = [x.reshape(-1, width) for x in self._cut(piece, begin, length)]
    # The rule is applied to columns: compilers for GPUs would write down what is cut to many.
    return self.rule(*(lax.dynamic_slice_in_dim(x, number, 1, axis=1) for x in rows))

  def _read_at_once(self, piece: int) -> jax.Array:
    return self.rule(*self.arrays[piece]).reshape(-1)

  def _read_by_stretches(self, piece: int) -> jax.Array:
    """All entries of a piece of flat arrays, which ``flat`` says why."""
    size, like = self.where[piece].size, self.arrays[piece][0]
    stretch = _LONG // 2
    dtype = jax.eval_shape(lambda: self.read(piece, jnp.int32(0), stretch)).dtype
    turn = lambda number, entries: lax.dynamic_update_slice(
      entries, self.read(piece, number * stretch, stretch), (number * stretch,)
    )
    entries = _axis.varying_like(jnp.zeros(size, dtype), like)
    entries = fori_loop(0, size // stretch, turn, entries)
    last = self.read(piece, jnp.int32(size - stretch), stretch)
    return lax.dynamic_update_slice(entries, last, (size - stretch,))

  def read_every(
    self, piece: int, step: int, offset: jax.Array, begin: int | jax.Array, count: int
  ) -> jax.Array:
    """So many runs of ``ALIGN`` entries of a piece, of every ``step`` one, as rows; zeros after its end.

    Args:
      piece: its number.
      step: how many runs there are for one that is read.
      offset: which of every so many.
      begin: how many to pass over; only a number that is known may reach beyond the end.
      count: how many.
    """
    width = step * ALIGN

    def pick(flat):
      if isinstance(begin, int):
        runs = flat[begin * width : (begin + count) * width]
        runs = jnp.pad(runs, (0, count * width - runs.size))
      else:
        runs = lax.dynamic_slice(flat, (begin * width,), (count * width,))
      return lax.dynamic_index_in_dim(
        runs.reshape(count, step, ALIGN), offset, axis=1, keepdims=False
      )

    # The rule is applied to what was picked, so that the other runs are not even read.
    return self.rule(*(pick(x.reshape(-1)) for x in self.arrays[piece]))

  def take_from(self, piece: int, index: jax.Array) -> jax.Array:
    """Some entries of a piece, by their number in it."""
    options = {"mode": "promise_in_bounds", "unique_indices": True}
    get = lambda x, index: x.reshape(-1).at[index].get(**options)
    return self.rule(*(_as_bits(get, x, index) for x in self.arrays[piece]))

  def take(self, positions: jax.Array, shares: Sequence[int] | None = None) -> jax.Array:
    """The entries at positions; for one that names nothing, some entry.

    Args:
      positions: ascending, or as many of each piece as ``shares`` says.
      shares: how many there are of each piece, in order, if that is known; positions among them that are of no
        entry of that piece stand for any.
    """
    if len(self.where) == 1:
      return lax.platform_dependent(positions, tpu=self.take_in_place, default=self._take_all)
    on_cpus = self._take_by_piece
    if shares is not None:
      on_cpus = functools.partial(self._take_shares, shares)
    return lax.platform_dependent(
      positions, cpu=on_cpus, tpu=self.take_in_place, default=self._take_all
    )

  def _take_all(self, positions: jax.Array) -> jax.Array:
    values = self.take_from(0, jnp.clip(positions, 0, self.where[0].size - 1))
    for i, place in enumerate(self.where[1:], start=1):
      here = self.take_from(i, jnp.clip(positions - place.first, 0, place.size - 1))
      values = jnp.where(positions >= place.first, here, values)
    return values

  def _take_shares(self, shares: Sequence[int], positions: jax.Array) -> jax.Array:
    """Piece by piece, all pieces at the same time if there are cores for them."""
    # What they are worked out of would be worked out for each piece anew.
    positions = lax.optimization_barrier(positions)
    begins = np.cumsum(shares) - shares
    taken = []
    for i, (place, begin, share) in enumerate(zip(self.where, begins, shares, strict=True)):
      index = positions[begin : begin + share] - place.first
      taken.append(self.take_from(i, jnp.clip(index, 0, place.size - 1)))
    return jnp.concatenate(taken)

  def take_from_in_place(self, piece: int, index: jax.Array) -> jax.Array:
    """As ``take_from``, of arrays that lie in tiles, which flattened would be copies."""
    place = dataclasses.replace(self.where[piece], first=0)
    at = place.index(index)
    options = {"mode": "promise_in_bounds", "unique_indices": True}
    return self.rule(*(x.at[at].get(**options) for x in self.arrays[piece]))

  def take_in_place(self, positions: jax.Array) -> jax.Array:
    """As ``take``, likewise."""
    return self._take_by_piece(positions, in_place=True)

  def _take_by_piece(self, positions: jax.Array, in_place: bool = False) -> jax.Array:
    """Piece by piece a stretch of positions at a time, for what can't look at all pieces at once."""
    take_from = self.take_from_in_place if in_place else self.take_from
    flat = positions.reshape(-1)
    stretch = min(_STRETCH, flat.size)
    firsts = jnp.array([*(place.first for place in self.where), self.span], jnp.int32)
    first = begins(flat, firsts).at[-1].set(flat.size)
    values = take_from(0, jnp.zeros_like(flat))
    for i, place in enumerate(self.where):

      def step(turn, values, i=i, place=place):
        begin = jnp.minimum(first[i] + turn * stretch, flat.size - stretch)
        index = lax.dynamic_slice(flat, (begin,), (stretch,)) - place.first
        old = lax.dynamic_slice(values, (begin,), (stretch,))
        new = take_from(i, jnp.clip(index, 0, place.size - 1))
        new = jnp.where(index >= 0, new, old)
        return lax.dynamic_update_slice(values, new, (begin,))

      turns = (first[i + 1] - first[i] + stretch - 1) // stretch
      values = fori_loop(0, turns, step, values)
    return values.reshape(positions.shape)

  def spread(self, numbers: jax.Array) -> jax.Array:
    """The positions of entries by number, counted through the pieces without gaps."""
    counted, positions = 0, numbers
    for place in self.where:
      for run in place.runs:
        gap = place.first + run.begin - counted
        if gap:
          positions = jnp.where(numbers >= counted, numbers + gap, positions)
        counted += run.size
    return positions


def _as_bits(
  pick: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, where: jax.Array
) -> jax.Array:
  """What is picked of an array somewhere; of bfloat16 as bits.

  Compilers for CPUs would make float32 of all of it, and of its bits a copy outside of the loop that looks.
  """
  if x.dtype != jnp.bfloat16:
    return pick(x, where)
  x, where = lax.optimization_barrier((x, where))
  bits = pick(lax.bitcast_convert_type(x, jnp.uint16), where)
  return lax.bitcast_convert_type(bits, jnp.bfloat16)
