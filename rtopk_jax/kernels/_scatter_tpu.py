"""Entries of leaves set and summed up on TPUs, which write single entries only to arrays of one axis.

A leaf would be laid out anew twice. So entries are set while the whole leaf is written anyway: their positions are
bits of words, as in ``_tiles``, and each entry looks at its own. Rows that share words are an axis of their own
for as long as entries are put to a leaf (``in_folds``).

Sums are made in one flat array for all leaves, whose entries are in the order in which TPUs keep those of the
leaves, so that a leaf is cut out of it in one go. An array a leaf would be written to as often as there are leaves,
and XLA would carry those that fit to the TPU's own memory and back for every message.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels._accumulate import Sums
from rtopk_jax.kernels._flat_packing import WIDTH
from rtopk_jax.kernels._scatter import OfLeaves, add_counted, cast
from rtopk_jax.kernels._tiles import (
  LANES,
  SUBLANES,
  Parts,
  Sheet,
  TiledPlace,
  lies_by_columns,
  look_up,
)
from rtopk_jax.vector import _vector
from rtopk_jax.vector._vector import MAX_SIZE, Place

# So that leaves are cut out of the flat array in one go, it may be longer by one in so many entries.
_SPARE = 16


def work_in_folds(
  where: Sequence[Place],
  lists: Sequence[Sequence[jax.Array]],
  function: OfLeaves,
) -> list[list[jax.Array]]:
  """``_scatter.in_folds`` on TPUs."""
  tiled = [_tiled_place(place) for place in where]
  # Whatever is made of one shape must not be moved to the other.
  folded = [
    [
      lax.optimization_barrier(_fold_up(place, x))
      for place, x in zip(tiled, leaves, strict=bool(leaves))
    ]
    for leaves in lists
  ]
  made = function(tiled, folded)
  # All that is made of one leaf at once: one of it is made of another, which is then at hand.
  settled = [
    lax.optimization_barrier([leaves[i : i + 1] for leaves in made]) for i in range(len(tiled))
  ]
  return [
    [_unfold(place, x) for place, of in zip(tiled, settled, strict=True) for x in of[number]]
    for number in range(len(made))
  ]


def _tiled_place(place: Place) -> Place:
  """The place of a leaf in folds, if it is whole folds."""
  sheet = Sheet.laid_out(place.shape)
  if not sheet.holds(place.size):
    return place
  return TiledPlace(place.first, (sheet.folds, sheet.fold, *sheet.inner), place.runs, place.shape)


def _shape(place: Place) -> tuple[int, ...]:
  """Of the leaf itself."""
  return place.leaf if isinstance(place, TiledPlace) else place.shape


def _fold_up(place: Place, leaf: jax.Array) -> jax.Array:
  return Sheet.laid_out(place.leaf).fold_up(leaf) if isinstance(place, TiledPlace) else leaf


def _unfold(place: Place, x: jax.Array) -> jax.Array:
  return Sheet.laid_out(place.leaf).unfold(x, place.leaf) if isinstance(place, TiledPlace) else x


def put_in_tiles(
  leaves: Sequence[jax.Array],
  where: Sequence[Place],
  positions: jax.Array,
  values: jax.Array,
  keep: jax.Array | bool,
  are_zero: bool,
) -> list[jax.Array]:
  """``_scatter.put`` on TPUs."""
  there = _is_there(where, positions) & keep
  marked = _marks(leaves, where, positions, there)
  if values.ndim and not are_zero:
    tiled = Tiled(where)
    sums, _ = tiled.add(jnp.zeros_like(values, shape=(tiled.size,)), positions, values, keep)
    new = [_fold_up(place, x) for place, x in zip(where, tiled.leaves(sums), strict=True)]
  else:
    # One number will do for all.
    new = [jnp.float32(0) if are_zero else values] * len(leaves)
  return [
    jnp.where(here, cast(x, leaf.dtype), leaf)
    for here, x, leaf in zip(marked, new, leaves, strict=True)
  ]


def _is_there(where: Sequence[Place], positions: jax.Array) -> jax.Array:
  """Which positions name an entry."""
  firsts = np.array([place.first for place in where], np.int32)
  ends = np.array([[place.first + place.size for place in where]], np.int32)
  (end,) = look_up(firsts, ends, positions)
  return (positions >= 0) & (positions < end)


def _marks(
  leaves: Sequence[jax.Array], where: Sequence[Place], positions: jax.Array, keep: jax.Array
) -> list[jax.Array]:
  """Which entries of leaves are at some positions."""
  sheets = [Sheet.laid_out(_shape(place)) for place in where]
  pieces = [[(place.first, sheet)] for place, sheet in zip(where, sheets, strict=True)]
  parts = Parts(pieces, _vector.span(where))
  words, bits = parts.bits(jnp.maximum(positions, 0))
  size = parts.slabs * LANES
  none = _axis.varying_like(_axis.varying_like(jnp.zeros(size, jnp.uint32), positions), leaves[0])
  # No two positions share a bit, so adding is setting.
  marks = none.at[jnp.where(keep, words, size)].add(bits, mode="drop").reshape(-1, LANES)
  found = []
  for place, sheet, (part,) in zip(where, sheets, parts.by_piece, strict=True):
    of_piece = marks[part.slab : part.slab + sheet.folds * part.across]
    of_piece = of_piece.reshape(sheet.folds, -1)[:, : sheet.width]
    of_piece = of_piece.reshape(sheet.folds, 1, *sheet.inner)
    shape = (sheet.folds, sheet.fold, *sheet.inner)
    row = lax.broadcasted_iota(jnp.uint32, shape, 1)
    rows = ((of_piece >> (WIDTH * row)) & np.uint32(1)) == 1
    if isinstance(place, TiledPlace):
      found.append(rows)
      continue
    if sheet.holds(place.size):
      found.append(sheet.unfold(rows, place.shape))
      continue
    if sheet.rows * sheet.width == place.size:
      rows = rows.reshape(-1, *sheet.inner)[: sheet.rows]
    else:
      rows = rows.reshape(-1)[: place.size]
    found.append(rows.reshape(place.shape))
  return found


class _TiledPiece(NamedTuple):
  """How a piece lies in the flat array.

  Attributes:
    first: its first position.
    end: beyond its last one.
    width: entries of its last axis.
    turned: whether rows and columns have changed places.
    tall: rows of a tile.
    across: tiles that rows take.
    begin: its first entry in the flat array.
  """

  first: int
  end: int
  width: int
  turned: int
  tall: int
  across: int
  begin: int


class Tiled:
  """Leaves in one flat array, each entry where a TPU keeps it.

  Args:
    where: their places.

  Attributes:
    size: of the flat array.
  """

  def __init__(self, where: Sequence[Place]):
    self.where = tuple(where)
    self._pieces: list[_TiledPiece] = []
    pieces, lengths = [], []
    for place in where:
      shape = _shape(place)
      long = [length for length in shape if length > 1]
      flat = len(long) < 2
      width = LANES if flat else long[-1]
      rows = -(-place.size // width)
      turned = lies_by_columns(shape)
      height, columns = (width, rows) if turned else (rows, width)
      # An axis of one takes the place of a tile's 8 rows, which would have to be filled up.
      alone = len(long) == 2 and len(shape) > 2 and long[-1 if turned else -2] % SUBLANES
      across, tall = -(-columns // LANES), 1 if flat or alone else SUBLANES
      lengths.append(-(-height // SUBLANES) * SUBLANES * across * LANES)
      end = place.first + place.size
      pieces.append(_TiledPiece(place.first, end, width, int(turned), tall, across, 0))
    # The longest leaves are cut out of the whole flat array, looked at as rows like theirs. Cut out as entries first
    # and as rows then, to leave behind what fills up tiles, they would be moved twice.
    self._whole, total, common = set(), sum(lengths), SUBLANES * LANES
    units = [SUBLANES * LANES * piece.across for piece in pieces]
    for i in sorted(range(len(pieces)), key=lambda i: -lengths[i]):
      both = math.lcm(common, units[i])
      if -(-total // both) * both <= total + total // _SPARE:
        self._whole.add(i)
        common = both
    begin = 0
    for i, (piece, length) in enumerate(zip(pieces, lengths, strict=True)):
      begin += -begin % units[i]
      self._pieces.append(piece._replace(begin=begin))
      begin += length
    self.size = -(-begin // common) * common

  @classmethod
  def fits(cls, where: Sequence[Place]) -> bool:
    """Whether the flat array, with what tiles are filled up by, can be indexed."""
    return cls(where).size <= MAX_SIZE

  def add(
    self, sums: jax.Array, positions: jax.Array, values: jax.Array, keep: jax.Array | bool
  ) -> tuple[jax.Array, jax.Array]:
    """The flat array with values added at distinct positions, those to keep alone.

    Also by how many the entries that are not zero have become more.
    """
    table = np.array(self._pieces, np.int32).T
    first, end, width, turned, tall, across, begin = look_up(table[0], table, positions)
    there = (positions >= 0) & (positions < end) & keep
    index = jnp.maximum(positions - first, 0)
    row, column = lax.div(index, width), lax.rem(index, width)
    row, column = jnp.where(turned == 1, column, row), jnp.where(turned == 1, row, column)
    tile = lax.div(row, tall) * across + column // LANES
    place = begin + (tile * tall + lax.rem(row, tall)) * LANES + column % LANES
    return add_counted(sums, place, values, there)

  def leaves(self, sums: jax.Array) -> list[jax.Array]:
    """The flat array as leaves."""
    ends = [*(piece.begin for piece in self._pieces[1:]), self.size]
    found = []
    for i, (place, piece, end) in enumerate(zip(self.where, self._pieces, ends, strict=True)):
      rows, shape = place.size // piece.width, _shape(place)
      if sum(length > 1 for length in shape) < 2:
        found.append(sums[piece.begin : piece.begin + place.size].reshape(shape))
        continue
      x, first = (sums, piece.begin) if i in self._whole else (sums[piece.begin : end], 0)
      width = piece.across * LANES
      first //= width
      height, columns = (piece.width, rows) if piece.turned else (rows, piece.width)
      if piece.tall == 1:
        x = x.reshape(-1, 1, piece.across, LANES).transpose(1, 0, 2, 3)
        x = x.reshape(1, -1, width)[:, first : first + height, :columns]
      else:
        x = x.reshape(-1, piece.across, SUBLANES, LANES).transpose(0, 2, 1, 3)
        x = x.reshape(-1, width)[first : first + height, :columns]
      x = jnp.swapaxes(x, -1, -2) if piece.turned else x
      found.append(x.reshape(shape))
    return found


class InTiles:
  """One array for all leaves, which TPUs can write single entries to."""

  def __init__(self, where: Sequence[Place]):
    self._tiled = Tiled(where)
    self.sizes = [self._tiled.size]

  def add(self, sums: Sums, positions: jax.Array, values: jax.Array, wanted: jax.Array) -> Sums:
    """As ``_accumulate.InPlace.add``."""
    array, change = self._tiled.add(sums.arrays[0], positions, values, wanted)
    return Sums([array], sums.nonzero + change)

  def nonzero(self, sums: Sums) -> jax.Array:
    """As ``_accumulate.InPlace.nonzero``."""
    return sums.nonzero

  def leaves(self, arrays: list[jax.Array]) -> list[jax.Array]:
    """As ``_accumulate.InPlace.leaves``."""
    return self._tiled.leaves(arrays[0])
