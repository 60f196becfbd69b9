"""The tables of the paper as printed: their rows, and the figure that stands in each.

All are of five nodes with r/k = 5 (Section III-A). The paper states no number of seeds and no spread.
"""

import dataclasses
from collections.abc import Mapping

from configs.rows import Row
from train.tasks.task import Score


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of the paper, and the figure that shows the same runs.

  Attributes:
    number: 1 to 5.
    figure: the number of its figure.
    title: data set and setting.
    config: the file in ``configs`` that its rows are configs of.
    score: what it compares.
    figures: its rows by their text, the baseline first, then in the order of the paper; each with what is printed
      there, accuracies in percent.
  """

  number: int
  figure: int
  title: str
  config: str
  score: Score
  figures: Mapping[str, float]

  @property
  def setting(self) -> str:
    """Of all its rows: distributed or federated."""
    return self.rows[0].setting

  @property
  def rows(self) -> tuple[Row, ...]:
    """Its rows, in their order."""
    return tuple(Row(*text.split(",")) for text in self.figures)

  def printed(self, row: Row) -> str:
    """The paper's figure of a row, as the measured ones are shown."""
    value = self.figures[row.text]
    return self.score.shown(value / 100 if self.score.percent else value)


_ACCURACY = Score("test_accuracy", "test accuracy", percent=True)
_PERPLEXITY = Score("test_perplexity", "test perplexity")

TABLES = {
  table.number: table
  for table in (
    Table(
      1,
      2,
      "ResNet-18 on CIFAR-10, distributed",
      "cifar10",
      _ACCURACY,
      {
        "distributed,none": 92.40,
        "distributed,rtopk,0.99": 93.25,
        "distributed,rtopk,0.999": 89.34,
        "distributed,topk,0.99": 92.46,
        "distributed,topk,0.999": 86.12,
        "distributed,randomk,0.99": 66.81,
      },
    ),
    Table(
      2,
      3,
      "ResNet-18 on CIFAR-10, federated",
      "cifar10",
      _ACCURACY,
      {
        "federated,none": 91.16,
        "federated,rtopk,0.99": 92.02,
        "federated,rtopk,0.999": 88.51,
        "federated,topk,0.99": 85.62,
        "federated,topk,0.999": 81.00,
        "federated,randomk,0.99": 61.07,
      },
    ),
    Table(
      3,
      4,
      "ResNet-34 on ImageNet, federated",
      "imagenet",
      _ACCURACY,
      {
        "federated,none": 69.70,
        "federated,rtopk,0.99": 70.63,
        "federated,rtopk,0.999": 65.37,
        "federated,topk,0.99": 63.06,
        "federated,topk,0.999": 57.80,
        "federated,randomk,0.99": 29.19,
      },
    ),
    Table(
      4,
      5,
      "LSTM on Penn Treebank, distributed",
      "ptb",
      _PERPLEXITY,
      {
        "distributed,none": 84.63,
        "distributed,rtopk,0.999": 82.49,
        "distributed,topk,0.999": 91.84,
        "distributed,topk,0.99": 84.31,
        "distributed,randomk,0.99": 281.61,
      },
    ),
    Table(
      5,
      6,
      "LSTM on Penn Treebank, federated",
      "ptb",
      _PERPLEXITY,
      {
        "federated,none": 82.14,
        "federated,rtopk,0.95": 82.02,
        "federated,topk,0.95": 97.05,
        "federated,topk,0.75": 81.97,
        "federated,randomk,0.95": 130.91,
      },
    ),
  )
}

ROMAN = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V"}
