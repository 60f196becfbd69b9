"""What a config must satisfy before anything is compiled."""

from typing import Any

from train.methods import METHODS


def check(config: Any, num_train: int) -> None:
  """Refuses a config that cannot run, naming the numbers that don't fit.

  Args:
    config: the experiment.
    num_train: examples in the training set.

  Raises:
    ValueError: for an unknown method, and where numbers don't fit together.
  """
  for method in config.methods:
    if method not in METHODS:
      raise ValueError(f"methods may name {', '.join(METHODS)}, got {method!r}.")
  for name in ("methods", "seeds"):
    if not len(config[name]):
      raise ValueError(f"{name} is empty; name at least one.")
  for name in ("num_workers", "batch_size", "epochs"):
    if config[name] < 1:
      raise ValueError(f"{name} must be at least 1, got {config[name]}.")
  share = num_train // config.num_workers
  if config.batch_size > share:
    raise ValueError(
      f"batch_size={config.batch_size} is more than a worker's share of the data, which is {share} "
      f"({num_train} examples, num_workers={config.num_workers})."
    )
  if config.warmup_epochs >= config.epochs:
    raise ValueError(
      f"warmup_epochs={config.warmup_epochs} leaves nothing of epochs={config.epochs} for the density "
      f"{config.density}; give more epochs, or warmup_epochs=0."
    )
  if config.max_steps is not None and config.max_steps < 1:
    raise ValueError(f"max_steps must be at least 1, or None, got {config.max_steps}.")
