"""What is trained on what: the part of an experiment that does not know how gradients are exchanged."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

import data
from configs.schema import Field

# By the section of the config, "model" or "task_options", the fields that a task takes from it.
Fields = Mapping[str, Mapping[str, Field]]


class Score(NamedTuple):
  """The figure by which runs are compared.

  Attributes:
    key: its name in the records.
    name: what it is called in tables.
    percent: whether it is a share, shown in percent.
  """

  key: str
  name: str
  percent: bool = False

  def shown(self, value: float | None) -> str:
    """The figure as a table has it; small ones keep their digits."""
    if value is None or not math.isfinite(value):
      return "not finite"
    if self.percent:
      return f"{100 * value:.2f} %"
    return f"{value:.2f}" if 10 <= abs(value) < 1e6 else f"{value:.4g}"


class Task(Protocol):
  """A network, a training set and a test set.

  A class may have ``fields`` too, such as ``{"task_options": {"noise": number(0.1, "of the data")}}``
  (``configs/schema.py``): then those sections of a config are checked before the task is made.

  Attributes:
    score: what evaluations are compared by.
    unit: what examples are: "images", "words" or "characters".
    examples: how many of them a worker's batch has.
  """

  score: Score
  unit: str
  examples: int

  def source(self, seed: int) -> data.Source:
    """The training batches."""
    ...

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    """Initial weights, and the state of one worker's model: statistics, or what is carried over."""
    ...

  def loss(
    self, params: Any, model_state: Any, batch: Any
  ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """What one worker minimises; beside it the new state of its model, and metrics ``train_…``."""
    ...

  def statistics(self, model_state: Any) -> Any:
    """What of the model's state an evaluation needs, averaged over workers; ``()``: nothing."""
    ...

  def evaluate(self, params: Any, statistics: Any) -> dict[str, float]:
    """Figures on data that is not trained on, with the mean of the workers' statistics."""
    ...
