"""What a run of the study is: everything but its learning rate and its seed."""

import dataclasses
import json
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Setting:
  """A way of training. Defaults are what is left out of a log.

  Attributes:
    task: "cifar", "digits" or "ptb".
    method: "none" (no compression), "rtopk", "topk" or "randomk".
    compression: share of the entries that is not sent, as the paper's tables print it; "" for "none".
    average: "workers", "senders" or "sum".
    memory: what a residual is multiplied by each step: 1 is error feedback, 0 is none, between is decay.
    momentum: "correction": in the exchange, before selection; "after": of the mean; "none".
    m: the momentum, where there is one.
    masking: whether momentum of sent entries starts anew.
    exchange_every: "batch" (distributed) or "epoch" (federated: local epochs).
    epochs: passes over the training data.
    warmup: epochs in which the density falls to its final value; 0 for none.
    workers: n.
    subsample: r/k; 0 stands for n.
    share: "equal": workers have random shares of the data; "same": all have one and the same batch;
      "classes": each has its own classes.
    channel: how messages travel: a name in ``study.exchanges.CHANNELS``.
  """

  task: str = "cifar"
  method: str = "none"
  compression: str = ""
  average: str = "workers"
  memory: float = 1.0
  momentum: str = "correction"
  m: float = 0.9
  masking: bool = True
  exchange_every: str = "batch"
  epochs: int = 10
  warmup: int = 0
  workers: int = 5
  subsample: int = 0
  share: str = "equal"
  channel: str = "plain"

  @property
  def text(self) -> str:
    """The key of a log: fields that differ from the defaults, as JSON."""
    return json.dumps(self.changed(), sort_keys=True)

  def changed(self) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    return {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(self)
      if getattr(self, f.name) != f.default
    }

  def but(self, **fields: Any) -> Self:
    """The setting with other fields."""
    return dataclasses.replace(self, **fields)

  @property
  def baseline(self) -> "Setting":
    """The same training without compression. Where momentum stands makes no difference to it."""
    return Setting(
      task=self.task,
      momentum="none" if self.momentum == "none" else "correction",
      m=self.m,
      exchange_every=self.exchange_every,
      epochs=self.epochs,
      workers=self.workers,
      share=self.share,
    )

  @property
  def heavy(self) -> float:
    """The momentum of steps, local ones if federated; 0 for none."""
    return 0.0 if self.momentum == "none" else self.m

  @property
  def density(self) -> float:
    """The share of the entries that is sent."""
    return round(1 - float(self.compression), 12) if self.compression else 1.0
