r"""A numbering of the subsets of {0, …, d − 1} with at most m elements.

Smaller subsets come first, and subsets of one size in the order of the combinatorial number system: the
subset :math:`c_1 < \dots < c_i` has number

.. math::
  \sum_{j<i} \binom{d}{j} + \sum_{t=1}^{i} \binom{c_t}{t}

Numbers are Python integers, hence exact at any size.
"""

import itertools
import math
from collections.abc import Iterator, Sequence


def sizes(dimension: int) -> Iterator[int]:
  """How many subsets have at most 0, 1, 2, …, d elements."""
  total = binomial = 1
  yield total
  for i in range(1, dimension + 1):
    binomial = binomial * (dimension - i + 1) // i
    total += binomial
    yield total


def size(dimension: int, most: int) -> int:
  """How many subsets have at most ``most`` elements; none has fewer than 0."""
  return next(itertools.islice(sizes(dimension), most, None)) if most >= 0 else 0


def rank(positions: Sequence[int], dimension: int) -> int:
  """The number of a subset.

  Args:
    positions: its elements, ascending.
    dimension: d.

  Returns:
    An integer from 0.

  Examples:
    >>> [rank(subset, 3) for subset in ([], [0], [1], [2], [0, 1], [0, 2], [1, 2])]
    [0, 1, 2, 3, 4, 5, 6]
  """
  smaller = size(dimension, len(positions) - 1)
  return smaller + sum(math.comb(c, t) for t, c in enumerate(positions, 1))


def unrank(number: int, dimension: int) -> list[int]:
  """The subset that has a number, its elements ascending: the inverse of ``rank``."""
  count = next(i for i, total in enumerate(sizes(dimension)) if number < total)
  rest, stop = number - size(dimension, count - 1), dimension
  positions = []
  for t in range(count, 0, -1):
    stop = _largest(t, rest, stop)
    positions.append(stop)
    rest -= math.comb(stop, t)
  return positions[::-1]


def _largest(t: int, number: int, stop: int) -> int:
  """The largest c < stop with C(c, t) <= number: a guess in floating point, then exact steps."""
  if number == 0:
    return t - 1
  target = math.log(number) + math.lgamma(t + 1)
  low, high = t, stop
  while high - low > 1:
    middle = (low + high) // 2
    if math.lgamma(middle + 1) - math.lgamma(middle - t + 1) <= target:
      low = middle
    else:
      high = middle
  while math.comb(low, t) > number:
    low -= 1
  while low + 1 < stop and math.comb(low + 1, t) <= number:
    low += 1
  return low
