"""What a config must satisfy before anything is compiled."""

from typing import Any

from train.methods import METHODS, SCHEDULES


def check(config: Any) -> None:
  """Refuses a config that cannot run, naming the numbers that don't fit.

  Args:
    config: the experiment.

  Raises:
    ValueError: for an unknown method, and where numbers don't fit together.
  """
  for method in config.methods:
    if method not in METHODS:
      raise ValueError(f"methods may name {', '.join(METHODS)}, got {method!r}.")
  for name in ("methods", "seeds"):
    if not len(config[name]):
      raise ValueError(f"{name} is empty; name at least one.")
  for name in ("num_workers", "batch_size", "eval_batch_size", "unroll", "epochs"):
    if config[name] < 1:
      raise ValueError(f"{name} must be at least 1, got {config[name]}.")
  if config.schedule not in SCHEDULES:
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {config.schedule!r}.")
  if config.warmup_epochs >= config.epochs:
    raise ValueError(
      f"warmup_epochs={config.warmup_epochs} leaves nothing of epochs={config.epochs} for the density "
      f"{config.density}; give more epochs, or warmup_epochs=0."
    )
  if config.max_steps is not None and config.max_steps < 1:
    raise ValueError(f"max_steps must be at least 1, or None, got {config.max_steps}.")
