"""Verdicts: a t-interval of paired differences against a margin that was fixed before any run."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

# In points of accuracy; in percent of perplexity, as a logarithm.
MARGINS = {"cifar": 0.3, "digits": 0.3, "ptb": 100 * math.log(1.01)}
CONFIDENCE = 0.95
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"


class Gain(NamedTuple):
  """By how much one is better than another, mean and interval, and the margin that counts.

  Attributes:
    mean: of the paired differences.
    low: end of the interval.
    high: end of the interval.
    margin: of the task.
  """

  mean: float
  low: float
  high: float
  margin: float

  @property
  def text(self) -> str:
    """Mean and interval."""
    return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"

  @property
  def above(self) -> str:
    """Whether the one is better by more than the margin."""
    return self._against(self.margin)

  @property
  def not_below(self) -> str:
    """Whether the one is not worse by more than the margin."""
    return self._against(-self.margin)

  def _against(self, bound: float) -> str:
    if self.low > bound:
      return HOLDS
    return FAILS if self.high < bound else UNDECIDED

  @property
  def who(self) -> str:
    """Which of the two is ahead by more than the margin, if that is decided."""
    if self.low > self.margin:
      return "first"
    if self.high < -self.margin:
      return "second"
    return "alike" if -self.margin < self.low and self.high < self.margin else UNDECIDED


def gain(task: str, one: np.ndarray, other: np.ndarray) -> Gain:
  """How much better ``one`` is, seed by seed.

  Args:
    task: whose scores these are: accuracies in %, or perplexities ("ptb").
    one: scores of all seeds.
    other: scores of the same seeds.

  Returns:
    Points of accuracy, or percent of perplexity (100 times the logarithm of the ratio).
  """
  if len(one) != len(other) or len(one) < 2:
    raise ValueError(
      f"one and other must be of the same 2 seeds or more, got {len(one)} and {len(other)}."
    )
  differences = 100 * np.log(other / one) if task == "ptb" else one - other
  mean, spread = float(differences.mean()), float(differences.std(ddof=1))
  quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(one) - 1))
  half = quantile * spread / math.sqrt(len(one))
  return Gain(mean, mean - half, mean + half, MARGINS[task])
