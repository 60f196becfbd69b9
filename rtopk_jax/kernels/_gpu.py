"""GPUs: very many threads; a kernel takes a microsecond to start, and a loop with a condition asks the host."""

from jax import lax

from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels import (
  _accumulate,
  _flat_packing_gpu,
  _gpu_loops,
  _prefix_sum,
  _threshold_gpu,
)
from rtopk_jax.kernels._portable import Portable


class GPU(Portable):
  """What is done otherwise on GPUs."""

  prefers_tables = False
  unrolls_search = True
  # No cache of that kind, but a wait after each turn.
  keys_at_once = 1 << 24

  def once_or_more(self, is_done, turn, start):
    """The first turn before the loop."""
    return _gpu_loops.once_or_more(is_done, turn, start)

  def once(self, turn, start):
    """Without a loop, which would ask the host."""
    return turn(start)

  def up_to(self, turns, is_done, turn, start):
    """All turns: a loop of a known length does not ask the host. Not unrolled, which takes long to compile."""
    del is_done
    return fori_loop(0, turns, lambda _, state: turn(state), start)

  def settled(self, x, count):
    """Behind a barrier: a branch would ask the host."""
    del count
    return lax.optimization_barrier(x)

  def reduce_rows(self, combine, operands):
    """A thread for each row."""
    return _gpu_loops.by_threads(combine, operands)

  def count_below(self, positions, firsts):
    """All with all at once."""
    return _prefix_sum.count_below_by_comparing(positions, firsts)

  def exact_threshold(self, keys, rows, count, everything, nothing, slack):
    """Digit by digit, in a fixed number of turns."""
    return _threshold_gpu.by_digits(keys, rows, count, everything, nothing, slack)

  def pack_pieces(self, pieces, packed, groups):
    """A thread for each word."""
    return _flat_packing_gpu.pack_by_threads(pieces, packed, groups)

  def sums(self, where, entries):
    """One array for many leaves, each of which would be some kernels more."""
    del entries
    if _accumulate.InOneArray.is_quicker(where):
      return _accumulate.InOneArray(where)
    return _accumulate.InPlace(where)

  def add_part(self, leaf, part):
    """In a window that is long enough for all."""
    return _accumulate.add_at_once(leaf, part)
