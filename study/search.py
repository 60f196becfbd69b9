"""Which runs a setting needs next, from those that are there: first its learning rate, then its seeds.

1. The rates of a grid of steps of √5, with the first seed. While the best, by the score of held-out
   examples, is at an end of what was run, the grid grows there.
2. The best two get a second seed (in long runs the best is taken at once). The better of them, by the mean of
   held-out scores, is the setting's own rate, and gets all seeds.
3. The rate of the setting's baseline gets all seeds as well.

The test score plays no part in it.
"""

import dataclasses
import math

import numpy as np

from study.log import Log
from study.settings import Setting

SEEDS = (0, 1, 2, 3, 4)
# How often a grid may grow.
_GROWTH = 6


@dataclasses.dataclass(frozen=True)
class Cell:
  """A setting and how its learning rate is found.

  Attributes:
    setting: the setting.
    grid: exponents j of the rates 0.1 · √5^j.
    higher: whether more is better.
    shared: whether the baseline's rate is run as well.
    finalists: how many of the best rates get a second seed; 1 or 2.
    seeds: all seeds.
  """

  setting: Setting
  grid: tuple[int, ...]
  higher: bool = True
  shared: bool = True
  finalists: int = 2
  seeds: tuple[int, ...] = SEEDS


def rate(exponent: int) -> float:
  """A rate of the grid. Two steps are a factor of 5."""
  return float(f"{0.1 * math.sqrt(5) ** exponent:.6g}")


def exponent(value: float) -> int:
  """The place of a rate in the grid."""
  return round(math.log(value / 0.1) / math.log(math.sqrt(5)))


def _held_out(log: Log, cell: Cell, j: int, seeds: tuple[int, ...]) -> float | None:
  """Mean score of held-out examples, more being better; None where a run is missing."""
  found = [log.find(cell.setting, rate(j), seed) for seed in seeds]
  scores = [run["valid"] for run in found if run is not None]
  if len(scores) < len(seeds):
    return None
  # What diverged is worse than anything.
  mean = np.mean(
    [s if math.isfinite(s) else -math.inf if cell.higher else math.inf for s in scores]
  )
  return float(mean if cell.higher else -mean)


def _finalists(log: Log, cell: Cell) -> tuple[list[int], list[int]]:
  """The best exponents of the grid by the first seed, and those still to be run with it."""
  low, high = min(cell.grid), max(cell.grid)
  while True:
    span = range(low, high + 1)
    scores = {j: _held_out(log, cell, j, cell.seeds[:1]) for j in span}
    missing = [j for j, score in scores.items() if score is None]
    if missing:
      return [], missing
    ranked = sorted(span, key=lambda j: -(scores[j] or 0.0))
    if ranked[0] == low and low > min(cell.grid) - _GROWTH:
      low -= 1
    elif ranked[0] == high and high < max(cell.grid) + _GROWTH:
      high += 1
    else:
      return ranked[: cell.finalists], []


def _find(log: Log, cell: Cell) -> tuple[float | None, list[tuple[float, int]]]:
  """The own rate, or None and the runs that are still needed to know it."""
  finalists, missing = _finalists(log, cell)
  if missing:
    return None, [(rate(j), cell.seeds[0]) for j in missing]
  if len(finalists) == 1:
    return rate(finalists[0]), []
  pair = cell.seeds[:2]
  scores = {j: _held_out(log, cell, j, pair) for j in finalists}
  missing = [j for j, score in scores.items() if score is None]
  if missing:
    return None, [(rate(j), pair[1]) for j in missing]
  return rate(max(finalists, key=lambda j: scores[j] or 0.0)), []


def own_rate(log: Log, cell: Cell) -> float | None:
  """A setting's own learning rate; None while it is not known."""
  return _find(log, cell)[0]


def missing(log: Log, cell: Cell, shared: float | None) -> list[tuple[float, int]]:
  """The runs to do next; more may follow from them.

  Args:
    log: what is there.
    cell: of which.
    shared: the baseline's rate; None: none is to be run.

  Returns:
    Rates and seeds; empty when the cell is done.
  """
  own, needed = _find(log, cell)
  if own is None:
    return needed
  rates = [own, *([shared] if cell.shared and shared is not None else [])]
  return [
    (value, seed)
    for value in dict.fromkeys(rates)
    for seed in cell.seeds
    if log.find(cell.setting, value, seed) is None
  ]


def tests(log: Log, cell: Cell, value: float | None) -> np.ndarray | None:
  """Test scores of all seeds at a rate, in their order; None where one is missing."""
  if value is None:
    return None
  runs = [log.find(cell.setting, value, seed) for seed in cell.seeds]
  scores = [run["test"] for run in runs if run is not None]
  return np.array(scores) if len(scores) == len(cell.seeds) else None
