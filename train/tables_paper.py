"""The tables of the paper: which rows they have here, and what the paper prints beside them.

The paper's own figures are not at hand, and neither is the list of its rows: which compressions it
tabulates is assumed, as docs/paper.md says. ``FIGURES`` is where its figures go, one line each.
"""

import dataclasses

from configs.rows import Row
from train.task import Score


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of the paper, and the figure that shows the same runs.

  Attributes:
    number: 1 to 5.
    figure: the number of its figure.
    title: data set and setting.
    config: the file in ``configs`` that its rows are configs of.
    rows: its rows, in their order.
    score: what it compares.
  """

  number: int
  figure: int
  title: str
  config: str
  rows: tuple[Row, ...]
  score: Score


def _rows(setting: str, compressions: tuple[str, ...]) -> tuple[Row, ...]:
  """The baseline, then every method at every compression."""
  return (
    Row(setting, "none"),
    *(
      Row(setting, method, compression)
      for compression in compressions
      for method in ("rtopk", "topk", "randomk")
    ),
  )


_ACCURACY = Score("test_accuracy", "test accuracy", percent=True)
_PERPLEXITY = Score("test_perplexity", "test perplexity")

TABLES = {
  table.number: table
  for table in (
    Table(
      1, 2, "CIFAR-10, distributed", "cifar10", _rows("distributed", ("0.99", "0.999")), _ACCURACY
    ),
    Table(2, 3, "CIFAR-10, federated", "cifar10", _rows("federated", ("0.95", "0.99")), _ACCURACY),
    Table(
      3, 4, "ImageNet, distributed", "imagenet", _rows("distributed", ("0.99", "0.999")), _ACCURACY
    ),
    Table(4, 5, "PTB, distributed", "ptb", _rows("distributed", ("0.99", "0.999")), _PERPLEXITY),
    Table(5, 6, "PTB, federated", "ptb", _rows("federated", ("0.95", "0.99")), _PERPLEXITY),
  )
}

ROMAN = {1: "I", 2: "II", 3: "III", 4: "IV", 5: "V"}

# What the paper prints, as (table, row's text): figure. Nothing that was not read there.
FIGURES: dict[tuple[int, str], float] = {}


def printed(table: Table, row: Row) -> str:
  """The paper's figure of a row, or that it is not at hand."""
  value = FIGURES.get((table.number, row.text))
  return "not at hand" if value is None else table.score.shown(value)
