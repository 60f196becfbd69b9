"""TPUs: arrays lie in tiles of 8 × 128 entries, and single entries are looked up in the TPU's own memory."""

from rtopk_jax.kernels import _accumulate, _gather, _scatter_tpu
from rtopk_jax.kernels._portable import Portable
from rtopk_jax.kernels._scatter_tpu import InTiles, Tiled
from rtopk_jax.kernels._tiled_packing import TiledPacking


class TPU(Portable):
  """What is done otherwise on TPUs."""

  has_bits = False

  def packing(self, vector, width, exact):
    """Words of columns, always two bits an entry."""
    return TiledPacking(vector, exact)

  def flat(self, vector):
    """Of the vector as it is materialised to select from it: XLA sees that this is the same."""
    return TiledPacking(vector).flat()

  def take(self, vector, positions, shares):
    """Of arrays as they lie: flattened they would be copied."""
    return _gather.take_by_piece(vector, positions, in_place=True)

  def put(self, leaves, where, positions, values, keep, are_zero):
    """While the whole leaf is written anyway."""
    if not Tiled.fits(where):
      return super().put(leaves, where, positions, values, keep, are_zero)
    # Zeros need no array of values.
    return _scatter_tpu.put_in_tiles(leaves, where, positions, values, keep, are_zero)

  def in_folds(self, where, lists, function):
    """With the rows that share words as an axis of their own."""
    if not Tiled.fits(where):
      return super().in_folds(where, lists, function)
    return _scatter_tpu.work_in_folds(where, lists, function)

  def sums(self, where, entries):
    """One array, to which a TPU can write single entries."""
    del entries
    return InTiles(where) if Tiled.fits(where) else _accumulate.InPlace(where)
