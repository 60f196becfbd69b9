"""Where a run stands and what was measured so far: the part of it that is numbers, not arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import rtopk_jax
from train.errors import FAILED, UserError


class NotFiniteError(UserError, FloatingPointError):
  """Too many steps in a row were not finite."""

  def __init__(self, text: str):
    super().__init__(text, FAILED)


@dataclasses.dataclass
class Totals:
  """Sums over a run, which a checkpoint keeps as JSON; floats survive that bit for bit.

  Attributes:
    num_workers: n.
    per_epoch: exchanges an epoch.
    step: exchanges so far.
    shift: what is added to it to number checkpoints, which go on upwards when other workers have fewer
      steps an epoch.
    lines: of metrics written.
    sent_bytes: that a worker has handed to the collectives.
    received_bytes: that it needed of the others.
    link_bytes: on its network interface, when collectives run as rings.
    statistics_bytes: sent to average the models' statistics for evaluation, apart from the rest.
    seconds: of training, over all processes it took.
    skipped: exchanges skipped.
    skipped_in_row: of them, those that came last.
    summed: exchanges in ``sums``.
    sums: of the metrics of this epoch.
    records: what was reported of each epoch.
  """

  num_workers: int
  per_epoch: int
  step: int = 0
  shift: int = 0
  lines: int = 0
  sent_bytes: int = 0
  received_bytes: int = 0
  link_bytes: int = 0
  statistics_bytes: int = 0
  seconds: float = 0.0
  skipped: int = 0
  skipped_in_row: int = 0
  summed: int = 0
  sums: dict[str, float] = dataclasses.field(default_factory=dict)
  records: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def bytes(self) -> dict[str, int]:
    """All bytes by name."""
    names = ("sent_bytes", "received_bytes", "link_bytes", "statistics_bytes")
    return {name: getattr(self, name) for name in names}

  def add(self, metrics: Mapping[str, float], cost: rtopk_jax.WireBytes, max_skipped: int) -> None:
    """One more exchange.

    Args:
      metrics: of it.
      cost: of it.
      max_skipped: how many skipped in a row are too many.

    Raises:
      NotFiniteError: when they are.
    """
    self.step += 1
    self.sent_bytes += cost.sent
    self.received_bytes += cost.received
    self.link_bytes += cost.link
    self.summed += 1
    for name, value in metrics.items():
      if name.startswith("train_"):
        self.sums[name] = self.sums.get(name, 0.0) + value
    skipped = int(metrics["skipped_steps"])
    self.skipped_in_row = self.skipped_in_row + 1 if skipped > self.skipped else 0
    self.skipped = skipped
    if self.skipped_in_row >= max_skipped:
      raise NotFiniteError(
        f"Step {self.step} was skipped, and {self.skipped_in_row - 1} before it: each time the gradient "
        f"of a worker was not finite. config.max_skipped={max_skipped}. A smaller learning rate, clip_norm or a "
        "look at the data may help."
      )

  def means(self) -> dict[str, float]:
    """The metrics of the epoch, averaged; the next one begins."""
    means = {name: value / self.summed for name, value in self.sums.items()}
    self.sums, self.summed = {}, 0
    return means
