"""CPUs: few cores, each of which does one thing after another, with caches and memory that fetches ahead."""

from rtopk_jax.kernels import _gather, _offsets, _prefix_sum
from rtopk_jax.kernels._portable import Portable
from rtopk_jax.kernels._statistics import Statistics


class CPU(Portable):
  """What is done otherwise on CPUs."""

  makes_zeros_late = True

  def offsets(self, numbers, count):
    """Hidden, so that kernels of leaves of one shape are compiled once."""
    return _offsets.hide(numbers, count)

  def running_total(self, counts, most):
    """A scan is a kernel for each power of two; a matrix product is a call."""
    return _prefix_sum.by_products(counts, most)

  def statistics(self, vector, piece, to_keys):
    """By rows, of which compilers for CPUs make vector instructions."""
    return Statistics.by_rows(self.read_all(vector, piece), to_keys)

  def read_all(self, vector, piece):
    """A chunk at a time, where what is flat would be worked out of many axes."""
    return _gather.read_in_chunks(vector, piece)

  def take(self, vector, positions, shares):
    """No piece is asked for what lies in another."""
    if len(vector.where) == 1:
      return _gather.take_from_all(vector, positions)
    if shares is not None:
      return _gather.take_shares(vector, positions, shares)
    return _gather.take_by_piece(vector, positions)
