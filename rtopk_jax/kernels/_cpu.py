"""CPUs: few cores, each of which does one thing after another, with caches and memory that fetches ahead."""

from rtopk_jax.kernels import _accumulate, _bitpack, _gather, _offsets, _prefix_sum, _scatter
from rtopk_jax.kernels._portable import Portable
from rtopk_jax.kernels._statistics import Statistics
from rtopk_jax.vector import _vector

# One entry in so many that is put to a leaf is many.
_MANY = 256


class CPU(Portable):
  """What is done otherwise on CPUs."""

  makes_zeros_late = True
  # A system clears memory as it is first written to in each step, which takes longer than to count.
  counts_are_short = True
  keys_at_once = 1 << 19
  # To compare is what takes time, and not to read.
  bits_at_once = 1

  def offsets(self, numbers, count):
    """Hidden, so that kernels of leaves of one shape are compiled once."""
    return _offsets.hide(numbers, count)

  def made_once(self, make, count):
    """In a branch: what is cheap would be made anew by every kernel that reads it, out of all that it is made of."""
    return _offsets.make_once(make, count)

  def running_total(self, counts, most):
    """A scan is a kernel for each power of two; a matrix product is a call."""
    return _prefix_sum.by_products(counts, most)

  def statistics(self, vector, piece, to_keys):
    """By rows, of which compilers for CPUs make vector instructions, and apart from the update of the memory."""
    return Statistics.by_rows(self.read_all(vector.with_apart(piece), piece), to_keys)

  def read_all(self, vector, piece):
    """A chunk at a time, where what is flat would be worked out of many axes."""
    return _gather.read_in_chunks(vector, piece)

  def put(self, leaves, where, positions, values, keep, are_zero):
    """Many at a time as bits or in turns: each leaf would look at all that it may take."""
    span = _vector.span(where)
    if _MANY * positions.size < span:
      return super().put(leaves, where, positions, values, keep, are_zero)
    if are_zero:
      return _scatter.put_zeros_by_words(leaves, where, positions, keep)
    return _scatter.put_in_turns(leaves, where, positions, values, keep)

  def sums(self, where, entries):
    """Many are counted at the end: what is looked up beforehand takes ten times as long as what is added."""
    if _MANY * entries < _vector.span(where):
      return super().sums(where, entries)
    return _accumulate.InPlace(where, counts_late=True)

  def join(self, parts):
    """Each part by itself."""
    return _bitpack.join(parts)

  def take(self, vector, positions, shares):
    """No piece is asked for what lies in another."""
    if len(vector.where) == 1:
      return _gather.take_from_all(vector, positions)
    if shares is not None:
      return _gather.take_shares(vector, positions, shares)
    return _gather.take_by_piece(vector, positions)
