r"""What waiting does to an entry: momentum that nobody asked for.

An entry that stays among the r largest of a worker is sent with probability p = k/r in every step, and with a
memory what is sent is all that has come together since. Over the draws the update of the entry is

    E u_t = Σ_j p (1 − p)^j g_{t−j}

the moving average that momentum 1 − p makes, 0.8 for r/k = 5. With momentum m before or after it (both are
linear and commute) an entry of curvature h, g = h w, follows, with a step size η,

    (z − 1)(z − m)(z − 1 + p) + η h p z² = 0

and its weight converges in the mean where all roots lie within the unit circle. Entries that come and go
among the r largest, and masking, are not in this picture.
"""

import numpy as np


def implicit_momentum(ratio: float) -> float:
  """The momentum that waiting amounts to at r/k = ``ratio``."""
  return 1 - 1 / ratio


def largest_root(step: float, momentum: float, ratio: float) -> float:
  """The largest magnitude of a root at ηh = ``step``: below 1 the entry converges in the mean."""
  p = 1 / ratio
  without = np.poly([1.0, momentum, 1 - p])
  return float(np.abs(np.roots(without + step * p * np.array([0.0, 1.0, 0.0, 0.0]))).max())


def stable_step(momentum: float, ratio: float) -> float:
  """The largest ηh at which an entry converges in the mean.

  Args:
    momentum: m in [0, 1).
    ratio: r/k, at least 1.

  Returns:
    The limit, to a relative 1e-6; without momentum it is 2 (2 − p)/p, with r/k = 1 it is 2 (1 + m).
  """
  low, high = 0.0, 4.0 * ratio
  while high - low > 1e-6 * high:
    middle = (low + high) / 2
    if largest_root(middle, momentum, ratio) < 1:
      low = middle
    else:
      high = middle
  return low
