"""Entries of leaves set or summed up at positions, as each platform does it best.

On CPUs and GPUs a leaf is written to where it lies. A TPU writes single entries only to arrays of one axis, so that
a leaf would be laid out anew twice. There, entries are set while the whole leaf is written anyway: their positions
are bits of words, as in ``_tiles``, and each entry looks at its own. Rows that share words are an axis of their own
for as long as entries are put to a leaf (``in_folds``). Sums are made in one flat array for all leaves,
whose entries are in the order in which TPUs keep those of the leaves, so that a leaf is
cut out of it in one go. An array a leaf would be written to as often as there are leaves, and XLA would carry
those that fit to the TPU's own memory and back for every message.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels._bitset_tpu import (
  LANES,
  SUBLANES,
  Lying,
  Parts,
  Sheet,
  lies_by_columns,
  look_up,
)
from rtopk_jax.kernels._threshold_bits import WIDTH
from rtopk_jax.memory import _rule
from rtopk_jax.vector import _vector
from rtopk_jax.vector._vector import MAX_SIZE, Place

# So that leaves are cut out of the flat array in one go, it may be longer by one in so many entries.
_SPARE = 16


def put(
  leaves: Sequence[jax.Array],
  where: Sequence[Place],
  positions: jax.Array,
  values: jax.Array,
  *,
  keep: jax.Array | bool = True,
  are_zero: bool = False,
) -> list[jax.Array]:
  """Leaves with new values at some positions, in place where their memory may be used again.

  Args:
    leaves: one a place.
    where: their places.
    positions: shape (m,), int32, strictly ascending.
    values: shape (m,), or a scalar, float32; what is finite stays so in the leaves' dtype.
    keep: which are written at all, shape (m,) or a scalar.
    are_zero: whether all values are known to be zero, which saves TPUs an array of them.

  Returns:
    The leaves.
  """
  if not Tiled.fits(where):
    return put_in_place(leaves, where, positions, values, keep)
  return lax.platform_dependent(
    tpu=lambda: put_in_tiles(
      leaves, where, positions, jnp.float32(0) if are_zero else values, keep
    ),
    default=lambda: put_in_place(leaves, where, positions, values, keep),
  )


def put_in_place(
  leaves: Sequence[jax.Array],
  where: Sequence[Place],
  positions: jax.Array,
  values: jax.Array,
  keep: jax.Array | bool,
) -> list[jax.Array]:
  """``put`` on CPUs and GPUs."""
  (size,) = positions.shape
  keep = jnp.broadcast_to(jnp.asarray(keep), positions.shape)
  values = jnp.broadcast_to(values, positions.shape)
  firsts = jnp.array([place.first for place in where], jnp.int32)
  begins = _vector.begins(positions, firsts)
  written = []
  for i, (leaf, place) in enumerate(zip(leaves, where, strict=True)):
    # No leaf takes more entries than it has: a window of that length, from its first entry on, will do.
    length = min(size, place.size)
    begin = jnp.minimum(begins[i], size - length)
    here, new, kept = (
      lax.dynamic_slice(x, (begin,), (length,)) if length < size else x
      for x in (positions, values, keep)
    )
    index = place.index(jnp.where(kept, here, np.int32(-1)))
    written.append(_set(leaf, index, _rule.cast(new, leaf.dtype)))
  return written


def _set(leaf: jax.Array, index: tuple[jax.Array, ...], values: jax.Array) -> jax.Array:
  """A leaf with values at distinct places; of bfloat16 as bits, or compilers for CPUs would make float32 of it."""
  if leaf.dtype == jnp.bfloat16:
    leaf, values = (lax.bitcast_convert_type(x, jnp.uint16) for x in (leaf, values))
    return lax.bitcast_convert_type(_set(leaf, index, values), jnp.bfloat16)
  return leaf.at[index].set(values, mode="drop", unique_indices=True)


def in_folds(
  where: Sequence[Place],
  lists: Sequence[Sequence[jax.Array]],
  function: Callable[[Sequence[Place], list[list[jax.Array]]], Sequence[Sequence[jax.Array]]],
) -> list[list[jax.Array]]:
  """What a function makes of leaves that puts entries to them.

  On TPUs it works on leaves in a shape in which the rows that share words are an axis of their own. In a leaf's own
  shape, a word would be written down for every entry first if its rows are no whole tiles.

  Args:
    where: the places of leaves.
    lists: leaves, one a place each.
    function: from the places of leaves in some shape, and lists of leaves in it, to such lists.

  Returns:
    The lists that it makes.
  """
  plain = lambda: [list(leaves) for leaves in function(where, [list(leaves) for leaves in lists])]
  if not Tiled.fits(where):
    return plain()
  return lax.platform_dependent(tpu=lambda: work_in_folds(where, lists, function), default=plain)


def work_in_folds(
  where: Sequence[Place],
  lists: Sequence[Sequence[jax.Array]],
  function: Callable[[Sequence[Place], list[list[jax.Array]]], Sequence[Sequence[jax.Array]]],
) -> list[list[jax.Array]]:
  """``in_folds`` on TPUs."""
  lying = [_lying(place) for place in where]
  # Whatever is made of one shape must not be moved to the other.
  folded = [
    [
      lax.optimization_barrier(_fold_up(place, x))
      for place, x in zip(lying, leaves, strict=bool(leaves))
    ]
    for leaves in lists
  ]
  made = function(lying, folded)
  # All that is made of one leaf at once: one of it is made of another, which is then at hand.
  settled = [
    lax.optimization_barrier([leaves[i : i + 1] for leaves in made]) for i in range(len(lying))
  ]
  return [
    [_unfold(place, x) for place, of in zip(lying, settled, strict=True) for x in of[number]]
    for number in range(len(made))
  ]


def _lying(place: Place) -> Place:
  """The place of a leaf in folds, if it is whole folds."""
  sheet = Sheet.lying(place.shape)
  if not sheet.holds(place.size):
    return place
  return Lying(place.first, (sheet.folds, sheet.fold, *sheet.inner), place.runs, place.shape)


def _shape(place: Place) -> tuple[int, ...]:
  """Of the leaf itself."""
  return place.leaf if isinstance(place, Lying) else place.shape


def _fold_up(place: Place, leaf: jax.Array) -> jax.Array:
  return Sheet.lying(place.leaf).fold_up(leaf) if isinstance(place, Lying) else leaf


def _unfold(place: Place, x: jax.Array) -> jax.Array:
  return Sheet.lying(place.leaf).unfold(x, place.leaf) if isinstance(place, Lying) else x


def put_in_tiles(
  leaves: Sequence[jax.Array],
  where: Sequence[Place],
  positions: jax.Array,
  values: jax.Array,
  keep: jax.Array | bool,
) -> list[jax.Array]:
  """``put`` on TPUs."""
  there = _is_there(where, positions) & keep
  marked = _marks(leaves, where, positions, there)
  if values.ndim:
    tiled = Tiled(where)
    sums, _ = tiled.add(jnp.zeros_like(values, shape=(tiled.size,)), positions, values, keep)
    new = [_fold_up(place, x) for place, x in zip(where, tiled.leaves(sums), strict=True)]
  else:
    new = [values] * len(leaves)
  return [
    jnp.where(here, _rule.cast(x, leaf.dtype), leaf)
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
  sheets = [Sheet.lying(_shape(place)) for place in where]
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
    if isinstance(place, Lying):
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


def add_counted(
  array: jax.Array, index: jax.Array, values: jax.Array, keep: jax.Array, unique: bool = False
) -> tuple[jax.Array, jax.Array]:
  """A flat array with values added at distinct places, and by how many its entries that are not zero are more.

  Args:
    array: shape (n,).
    index: shape (m,), int32.
    values: shape (m,).
    keep: which are added, shape (m,).
    unique: whether the compiler is told that places are distinct.
  """
  at = array.at[jnp.where(keep, index, np.int32(array.size))]
  old = at.get(mode="fill", fill_value=0, unique_indices=unique)
  new = old + values
  change = (keep & (new != 0)).astype(jnp.int32) - (keep & (old != 0)).astype(jnp.int32)
  return at.set(new, mode="drop", unique_indices=unique), jnp.sum(change)


class _Piece(NamedTuple):
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
    self._pieces: list[_Piece] = []
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
      pieces.append(_Piece(place.first, end, width, int(turned), tall, across, 0))
    # The longest leaves are cut out of the whole of the flat array, looked at as rows like theirs. Cut out as entries
    # first and as rows then, to leave behind what fills up tiles, they would be moved twice.
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
