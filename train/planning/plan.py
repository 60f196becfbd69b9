"""How long a run is, and how often workers exchange."""

import dataclasses
from typing import Any

from configs.schema import ConfigError


@dataclasses.dataclass(frozen=True)
class Plan:
  """How long a run is.

  Attributes:
    batches: a worker's batches between two exchanges.
    per_epoch: exchanges an epoch.
    exchanges: of the run.
  """

  batches: int
  per_epoch: int
  exchanges: int


def make_plan(config: Any, batches_per_epoch: int) -> Plan:
  """How many batches and exchanges a run of a config has.

  Args:
    config: the experiment.
    batches_per_epoch: of one worker.

  Returns:
    The plan.

  Raises:
    ConfigError: when an epoch has no batch, or fewer than are asked for between two exchanges.
  """
  if batches_per_epoch < 1:
    raise ConfigError(
      f"config.batch_size={config.batch_size} with config.num_workers={config.num_workers} leaves no batch for an "
      "epoch; a smaller one does."
    )
  if config.setting == "federated":
    name, batches = "local_steps", config.local_steps or batches_per_epoch
  else:
    name, batches = "micro_batches", config.micro_batches
  if batches > batches_per_epoch:
    raise ConfigError(
      f"config.{name} must be at most {batches_per_epoch}, the batches of a worker in an epoch, got {batches}."
    )
  per_epoch = batches_per_epoch // batches
  ends = [config.epochs * per_epoch]
  if config.max_steps is not None:
    ends.append(config.max_steps)
  if config.max_batches is not None:
    ends.append(max(1, config.max_batches // batches))
  return Plan(batches, per_epoch, min(ends))
