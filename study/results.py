"""What the runs of a stage come to: scores of every cell at its own and at its baseline's learning rate."""

import dataclasses

import numpy as np

from study import search
from study.log import Log
from study.plan import Stage
from study.settings import Setting
from study.verdicts import Gain, gain

PROTOCOLS = ("own", "shared")


@dataclasses.dataclass(frozen=True)
class Results:
  """A stage and its log.

  Attributes:
    stage: the stage.
    log: its runs.
  """

  stage: Stage
  log: Log

  def rate(self, setting: Setting, protocol: str) -> float | None:
    """The learning rate of a setting: its "own", or the one of its baseline ("shared"); None: not known."""
    cell = self.stage.cell(setting if protocol == "own" else setting.baseline)
    return None if cell is None else search.own_rate(self.log, cell)

  def scores(self, setting: Setting, protocol: str = "own") -> np.ndarray | None:
    """Test scores of all seeds; None where runs are missing."""
    cell, rate = self.stage.cell(setting), self.rate(setting, protocol)
    return None if cell is None else search.tests(self.log, cell, rate)

  def seen(self, setting: Setting, name: str, protocol: str = "own") -> np.ndarray | None:
    """A figure of the last epoch, of all seeds; None where runs are missing."""
    cell, rate = self.stage.cell(setting), self.rate(setting, protocol)
    if cell is None or rate is None:
      return None
    runs = [self.log.find(setting, rate, seed) for seed in cell.seeds]
    found = [run["seen"][name][-1] for run in runs if run is not None]
    return np.array(found) if len(found) == len(cell.seeds) else None

  def course(self, setting: Setting, name: str, protocol: str = "own") -> list[float] | None:
    """A figure over the epochs of the first seed; None where it is missing."""
    cell, rate = self.stage.cell(setting), self.rate(setting, protocol)
    run = None if cell is None or rate is None else self.log.find(setting, rate, cell.seeds[0])
    return None if run is None else run["seen"].get(name)

  def gain(self, one: Setting, other: Setting, protocol: str = "own") -> Gain | None:
    """How much better the first is; None where runs are missing."""
    scores = [self.scores(setting, protocol) for setting in (one, other)]
    if scores[0] is None or scores[1] is None:
      return None
    return gain(one.task, scores[0], scores[1])

  @property
  def undone(self) -> list[Setting]:
    """Cells whose runs are not all there."""
    protocols = lambda cell: PROTOCOLS if cell.shared else PROTOCOLS[:1]
    return [
      cell.setting
      for cell in self.stage.cells
      if any(self.scores(cell.setting, p) is None for p in protocols(cell))
    ]


def score(scores: np.ndarray | None, rate: float | None = None) -> str:
  """Mean and standard deviation over seeds, and the learning rate in brackets."""
  if scores is None:
    return "not run"
  text = f"{scores.mean():.2f} ± {scores.std(ddof=1):.2f}"
  return text if rate is None else f"{text} [{rate:.2g}]"
