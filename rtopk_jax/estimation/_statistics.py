"""Confidence: intervals of a mean and of a slope, and one chi-square statistic for a whole vector."""

import math
import statistics
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
  """A value with the ends of its two-sided confidence interval.

  Attributes:
    value: the estimate.
    low: the lower end.
    high: the upper end.

  Examples:
    >>> from rtopk_jax import estimation
    >>> found = estimation.mean_interval([1.0, 2.0, 3.0])
    >>> found.value, found.low < 2 < found.high
    (2.0, True)
  """

  value: float
  low: float
  high: float


class ChiSquare(NamedTuple):
  """A chi-square statistic.

  Attributes:
    statistic: its value.
    freedom: its degrees of freedom.
    p_value: the chance of a larger one.

  Examples:
    >>> from rtopk_jax import estimation
    >>> estimation.ChiSquare(statistic=3.2, freedom=4, p_value=0.52).freedom
    4
  """

  statistic: float
  freedom: int
  p_value: float


def mean_interval(samples: npt.ArrayLike, confidence: float = 0.998) -> Interval:
  """The mean of independent samples, with a normal confidence interval.

  At the default 99.8 % each end is a one-sided limit of 99.9 %.

  Args:
    samples: shape (m,), m at least 2.
    confidence: in (0, 1).

  Returns:
    ``Interval``.

  Raises:
    ValueError: when there are fewer than two samples or the confidence is out of range.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> estimation.mean_interval(np.array([1.0, 2.0, 3.0] * 100)).value
    2.0
  """
  samples = np.asarray(samples, np.float64)
  if samples.ndim != 1 or samples.size < 2:
    raise ValueError(f"samples must have shape (m,) with m >= 2, got {samples.shape}.")
  return _interval(samples.mean(), samples.std(ddof=1) / math.sqrt(samples.size), confidence)


def slope_interval(x: npt.ArrayLike, errors: npt.ArrayLike, confidence: float = 0.998) -> Interval:
  """The slope of log risk in log x by least squares, with a confidence interval.

  Args:
    x: positive, shape (p,), p at least 2.
    errors: squared errors at each x, shape (p, m); rows are independent.
    confidence: in (0, 1).

  Returns:
    ``Interval``.

  Raises:
    ValueError: when the shapes do not fit or the confidence is out of range.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> x = np.array([1.0, 2.0, 4.0])
    >>> round(estimation.slope_interval(x, np.stack([1 / x, 1 / x], axis=1)).value, 6)
    -1.0
  """
  x, errors = np.asarray(x, np.float64), np.asarray(errors, np.float64)
  if x.ndim != 1 or x.size < 2 or errors.ndim != 2 or errors.shape[0] != x.size:
    raise ValueError(
      f"x must have shape (p,) and errors (p, m) with p >= 2, got {x.shape}, {errors.shape}."
    )
  centred = np.log(x) - np.log(x).mean()
  weights = centred / (centred**2).sum()
  risk = errors.mean(1)
  relative = errors.std(1, ddof=1) / math.sqrt(errors.shape[1]) / risk  # of log risk
  return _interval(weights @ np.log(risk), math.sqrt(weights**2 @ relative**2), confidence)


def _interval(value: float, error: float, confidence: float) -> Interval:
  if not 0 < confidence < 1:
    raise ValueError(f"confidence must be in (0, 1), got {confidence!r}.")
  reach = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * float(error)
  return Interval(float(value), float(value) - reach, float(value) + reach)


def mean_chi_square(samples: npt.ArrayLike, mean: npt.ArrayLike) -> ChiSquare:
  r"""Tests that independent vectors have a given mean, by one statistic for all coordinates.

  .. math::
    T^2 = m\, (\bar Y - \mu)^\top \hat\Sigma^{-1} (\bar Y - \mu)

  (Hotelling), which tends to chi-square with d degrees of freedom. Directions in which the samples do not
  vary are left out of it; a deviation in one of them makes it infinite.

  Args:
    samples: Y, shape (m, d), m much larger than d.
    mean: :math:`\mu`, shape (d,).

  Returns:
    ``ChiSquare``.

  Raises:
    ValueError: when the shapes do not fit or m <= d.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> samples = np.random.default_rng(0).normal(size=(1000, 3))
    >>> estimation.mean_chi_square(samples, np.zeros(3)).p_value > 0.001
    True
    >>> estimation.mean_chi_square(samples, np.full(3, 0.2)).p_value < 0.001
    True
  """
  samples, mean = np.asarray(samples, np.float64), np.asarray(mean, np.float64)
  if samples.ndim != 2 or samples.shape[1:] != mean.shape or len(samples) <= samples.shape[1]:
    raise ValueError(
      f"samples must have shape (m, d) with m > d, and mean (d,), got {samples.shape}, {mean.shape}."
    )
  deviation = samples.mean(0) - mean
  variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(samples, rowvar=False)))
  varies = variances > 1e-9 * variances.max()
  along = directions.T @ deviation
  if np.any(np.abs(along[~varies]) > 1e-5 * (1 + np.abs(mean).max())):
    return ChiSquare(math.inf, int(varies.sum()), 0.0)
  statistic = float((along[varies] ** 2 / variances[varies]).sum()) * len(samples)
  return chi_square(statistic, int(varies.sum()))


def chi_square(statistic: float, freedom: int) -> ChiSquare:
  """The p-value of a chi-square statistic.

  Args:
    statistic: at least 0.
    freedom: degrees of freedom, at least 1.

  Returns:
    ``ChiSquare``.

  Examples:
    >>> from rtopk_jax import estimation
    >>> round(estimation.chi_square(3.841, 1).p_value, 3)
    0.05
  """
  p_value = jax.scipy.special.gammaincc(np.float32(freedom / 2), np.float32(statistic / 2))
  return ChiSquare(float(statistic), freedom, float(p_value))
