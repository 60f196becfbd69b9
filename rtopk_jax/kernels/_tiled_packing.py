"""A vector whose words are columns of its rows, for TPUs: ``_flat_packing`` for entries that lie in tiles.

Unlike elsewhere the vector is materialised. A TPU looks up single entries in its own memory: XLA brings in there the
whole of what entries are taken from, and that is done three times, for the sample, for the doubtful and for what is
sent. Of one array that takes less than of gradient, momentum and residual, and a vector that is small enough
stays where it is.

A leaf that a TPU keeps by columns is materialised and read by columns. Only its words are turned to be of rows, a
sixteenth of what the leaf takes.
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
from rtopk_jax.kernels import _gather
from rtopk_jax.kernels._flat_packing import EVEN_BITS, WIDTH
from rtopk_jax.kernels._statistics import Statistics, Tally, ToKeys, square
from rtopk_jax.kernels._threshold import Threshold
from rtopk_jax.kernels._tiles import (
  FOLD,
  LANES,
  Part,
  Parts,
  Sheet,
  TiledBitSet,
  TiledPlace,
  lies_by_columns,
  to_slabs,
)
from rtopk_jax.vector._vector import Place, Vector


class _Read(NamedTuple):
  """What of a piece is read at once.

  Attributes:
    entries: shape (folds, rows of a fold, …).
    first: the position of its first entry; or of each fold's, shape (folds,).
    ends: beyond which position there is nothing in a fold, likewise; None where all entries are there.
    run_of: which run of the piece each fold is of; None for one.
    slab: the first slab of its words.
    turned: the shape of the piece, where rows are its columns.
  """

  entries: jax.Array
  first: int | np.ndarray
  ends: int | np.ndarray | None
  run_of: np.ndarray | None
  slab: int
  turned: tuple[int, ...] | None = None


class TiledPacking:
  """Words of entries that lie below one another.

  Args:
    vector: d entries.
    exact: as of ``FlatPacking``.
  """

  width = WIDTH

  def __init__(self, vector: Vector, exact: bool = False):
    self.exact = exact
    where, entries = [], []
    for place, arrays in zip(vector.where, vector.arrays, strict=True):
      sheet = Sheet.laid_out(place.shape)
      even = sheet.rows * sheet.width == place.size
      shape = (sheet.rows, *sheet.inner) if even and len(place.runs) == 1 else (place.size,)
      x = vector.rule(*arrays)
      if sheet.turned:
        where.append(TiledPlace(place.first, shape, place.runs, place.shape))
        x = jnp.swapaxes(x, -1, -2)
      else:
        shape = place.shape if lies_by_columns(place.shape) else shape
        where.append(dataclasses.replace(place, shape=shape))
      entries.append((x.reshape(shape),))
    # Materialised, or whoever looks up an entry would look it up in each of the arrays that it is made of.
    entries = lax.optimization_barrier(tuple(entries))
    self.vector = Vector(tuple(where), entries, lambda x: x)
    self.parts = Parts.of(vector.where)
    self._reads = []
    for place, (x,), parts in zip(vector.where, entries, self.parts.by_piece, strict=True):
      one = len(parts) == 1
      self._reads.append(_reads(place, x, parts[0]) if one else [_read_runs(place, x, parts)])

  def flat(self) -> Vector:
    """The vector as it is materialised, of flat arrays in the order of positions."""
    in_order = lambda place, x: jnp.swapaxes(x, -1, -2) if isinstance(place, TiledPlace) else x
    pieces = zip(self.vector.where, self.vector.arrays, strict=True)
    arrays = tuple((in_order(place, x),) for place, (x,) in pieces)
    return dataclasses.replace(self.vector, arrays=arrays).flat()

  def start(self) -> jax.Array:
    """As ``FlatPacking.start``."""
    return jnp.zeros((self.parts.slabs, LANES), jnp.uint32)

  def members(self, words: jax.Array) -> TiledBitSet:
    """As ``FlatPacking.members``."""
    return TiledBitSet(words, self.parts)

  def between(self, words: jax.Array) -> TiledBitSet:
    """As ``FlatPacking.between``."""
    return self.members(words & ~(words >> 1) & EVEN_BITS)

  def numbers(self, members: jax.Array, count: int) -> jax.Array:
    """As ``FlatPacking.numbers``."""
    return TiledBitSet.of(members).locate(lax.iota(jnp.int32, count))

  def strike(self, words: jax.Array, positions: jax.Array, lost: jax.Array) -> jax.Array:
    """As ``FlatPacking.strike``."""
    number, bits = self.parts.bits(positions)
    at = jnp.where(lost, number, words.size)
    flat = words.reshape(-1).at[at].add(jnp.uint32(0) - bits, mode="drop")
    return flat.reshape(words.shape)

  def take(self, positions: jax.Array, shares: Sequence[int] | None = None) -> jax.Array:
    """As ``FlatPacking.take``; the shares do not matter here."""
    return _gather.take_by_piece(self.vector, positions, in_place=True)

  def take_from(self, piece: int, index: jax.Array) -> jax.Array:
    """As ``Vector.take_from``."""
    return self.vector.take_from_in_place(piece, index)

  def pack(
    self, turn: jax.Array, words: jax.Array, low: Threshold, high: Threshold, to_keys: ToKeys
  ) -> tuple[jax.Array, Tally]:
    """As ``FlatPacking.pack``."""
    parts = []
    for place, reads in zip(self.vector.where, self._reads, strict=True):
      low_here, high_here = low[place.groups], high[place.groups]
      found = []
      for read in reads:
        # Nothing read can be moved out of the loop. In this shape, too: reshaped after it, an array would be
        # read apart from what is made of it.
        entries, _ = lax.optimization_barrier((read.entries, turn))
        new, of_read = _fold(read._replace(entries=entries), low_here, high_here, to_keys)
        words = lax.dynamic_update_slice(words, new, (read.slab, 0))
        found.append(of_read)
      parts.append(functools.reduce(Tally.with_, found))
    return words, Tally.of_groups(parts, low.value.size)


def _reads(place: Place, entries: jax.Array, part: Part) -> list[_Read]:
  """A piece that is one run: its whole folds, and the rest."""
  sheet = Sheet.laid_out(place.shape)
  if sheet.turned:
    # Rows that are folded to one lie far apart, for the sake of the words as they are turned.
    folded = entries.reshape(1, sheet.fold, sheet.folds, *sheet.inner)
    return [_Read(folded, place.first, None, None, int(part.slab), place.shape)]
  fold = sheet.fold * sheet.width
  whole = place.size // fold
  begin, first_slab = whole * fold, int(part.slab)
  slab = first_slab + whole * int(part.across)
  even = sheet.rows * sheet.width == place.size
  entries = entries.reshape(sheet.rows, *sheet.inner) if even else entries.reshape(-1)
  cut = whole * sheet.fold if even else begin
  reads = []
  if whole:
    folded = (entries if begin == place.size else entries[:cut]).reshape(
      whole, sheet.fold, *sheet.inner
    )
    reads.append(_Read(folded, place.first, None, None, first_slab))
  if begin < place.size:
    rest, end = entries[cut:], None
    if not even:
      rest = jnp.pad(rest, (0, fold - rest.size)).reshape(sheet.fold, *sheet.inner)
      end = place.first + place.size
    reads.append(_Read(rest[None], place.first + begin, end, None, slab))
  return reads


def _read_runs(place: Place, entries: jax.Array, parts: list[Part]) -> _Read:
  """A flat piece of several runs, each filled up to whole folds."""
  fold, filled, folds = FOLD * LANES, [], []
  for run in place.runs:
    filled.append(entries[run.begin : run.begin + run.size])
    folds.append(-(-run.size // fold))
    if run.size % fold:
      filled.append(jnp.zeros_like(entries, shape=(-run.size % fold,)))
  run_of = np.repeat(np.arange(len(folds)), folds)
  firsts = [
    place.first + run.begin + fold * i
    for run, count in zip(place.runs, folds, strict=True)
    for i in range(count)
  ]
  ends = np.array([place.first + run.begin + run.size for run in place.runs], np.int32)
  folded = jnp.concatenate(filled).reshape(-1, FOLD, LANES)
  return _Read(folded, np.array(firsts, np.int32), ends[run_of], run_of, int(parts[0].slab))


def _fold(read: _Read, low: Threshold, high: Threshold, to_keys: ToKeys) -> tuple[jax.Array, Tally]:
  """The slabs of some entries, and what they add up to."""
  entries = read.entries
  shape = entries.shape
  folds = shape[0]
  each = lambda x: jnp.asarray(x).reshape(-1, *(1,) * (len(shape) - 1))
  of_fold = lambda c: [
    each(x[0] if read.run_of is None else x[read.run_of]) for x in (c.value, c.index)
  ]
  axis = functools.partial(lax.broadcasted_iota, jnp.int32, shape)

  position = axis(len(shape) - 1)
  width = shape[-1]
  if read.turned:
    position = position * np.int32(read.turned[-1]) + axis(1) * np.int32(shape[2]) + axis(2)
  for i in range(len(shape) - 2, 0, -1):
    if shape[i] > 1 and not read.turned:
      position += axis(i) * np.int32(width)
    width *= shape[i]
  if isinstance(read.first, int):
    position += axis(0) * np.int32(width) + np.int32(read.first)
  else:
    position += each(read.first)
  keys = to_keys(entries)
  if read.ends is not None:
    # Below all bounds, of which -1 is the least.
    keys = jnp.where(position < each(np.asarray(read.ends, np.int32)), keys, -1)
  code = jnp.zeros(shape, jnp.uint32)
  for value, index in (of_fold(low), of_fold(high)):
    code += (keys > value - (position < index).astype(jnp.int32)).astype(jnp.uint32)
  code <<= WIDTH * axis(1).astype(jnp.uint32)
  zeros = (jnp.uint32(0), jnp.float32(0), jnp.int32(0))
  words, squares, most = lax.reduce(
    (code, square(entries), keys),
    tuple(_axis.varying_like(x, entries) for x in zeros),
    lambda a, b: (a[0] + b[0], a[1] + b[1], jnp.maximum(a[2], b[2])),
    (1,),
  )
  statistics = Statistics(squares.sum(), most.max())

  def count(bits):
    in_words = lax.population_count(bits).astype(jnp.int32)
    if read.run_of is None:
      return in_words.sum()[None]
    by_fold = in_words.reshape(folds, -1).sum(axis=1)
    runs = int(read.run_of[-1]) + 1
    return jax.ops.segment_sum(by_fold, read.run_of, runs, indices_are_sorted=True)

  upper = words >> np.uint32(1) & EVEN_BITS
  rows = _turn(words, read.turned) if read.turned else words
  return to_slabs(rows), Tally(statistics, count(words), count(upper))


def _turn(words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Words of columns as those of rows, shape (folds, columns); they are few, unlike what they are of.

  Args:
    words: shape (1, n, …, rows), of every n-th column.
    shape: of the piece.
  """
  apart, fold = words.shape[1], shape[-1] // words.shape[1]
  sheet = Sheet.of(shape)
  words = words.reshape(apart, shape[-2]).T
  words = jnp.pad(words, ((0, sheet.folds * sheet.fold - shape[-2]), (0, 0)))
  words = words.reshape(sheet.folds, sheet.fold, 1, apart)
  of = functools.partial(lax.broadcasted_iota, jnp.uint32, (sheet.folds, sheet.fold, fold, apart))
  bits = (words >> (WIDTH * of(2)) & np.uint32(3)) << (WIDTH * of(1))
  return jnp.sum(bits, axis=1, dtype=jnp.uint32).reshape(sheet.folds, shape[-1])
