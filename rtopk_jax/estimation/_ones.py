r"""The law of :math:`\|X\|_1`, the number of ones of a sparse Bernoulli sample (Poisson binomial)."""

import numpy as np


def pmf(probabilities: np.ndarray, size: int) -> np.ndarray:
  r""":math:`P(\|X\|_1 = m)` for m < size, exactly: all terms are positive, none is subtracted.

  Args:
    probabilities: of the coordinates, shape (d,), float64.
    size: how many values.

  Returns:
    Shape (size,), float64.
  """
  result = np.zeros(size)
  result[:1] = 1
  for probability, count in zip(*np.unique(probabilities, return_counts=True), strict=True):
    result = np.convolve(result, _binomial(probability, int(count), size))[:size]
  return result


def _binomial(probability: float, count: int, size: int) -> np.ndarray:
  """P(m) for m < size of the number of successes in ``count`` trials."""
  if probability in (0, 1):
    return (np.arange(size) == count * probability).astype(np.float64)
  m = np.arange(1, min(size, count + 1))
  logs = np.cumsum(np.log((count - m + 1) / m) + np.log(probability) - np.log1p(-probability))
  logs = np.concatenate([[0.0], logs]) + count * np.log1p(-probability)
  return np.pad(np.exp(logs), (0, max(0, size - logs.size)))[:size]


def prefix_tail(probabilities: np.ndarray, size: int) -> np.ndarray:
  """The chance that fewer than ``size`` ones stand before each coordinate, shape (d,)."""
  counts = np.zeros(size)
  counts[0] = 1
  result = np.empty(probabilities.shape)
  for j, probability in enumerate(probabilities):
    result[j] = counts.sum()
    moved = counts * probability
    counts -= moved
    counts[1:] += moved[:-1]
  return result


def moments(probabilities: np.ndarray) -> tuple[float, float]:
  r""":math:`E\|X\|_1` and :math:`E\|X\|_1^2`."""
  mean = float(probabilities.sum())
  return mean, mean**2 + float((probabilities * (1 - probabilities)).sum())
