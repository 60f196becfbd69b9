"""The training system: one loop for every method, task and way of having workers."""

from typing import Any

from train.errors import ConfigError as ConfigError
from train.errors import UserError as UserError


def __getattr__(name: str) -> Any:
  # What needs JAX and all the rest is imported when it is asked for: a mistake on a command line is found
  # without.
  if name == "train_and_evaluate":
    from train.loop import train_and_evaluate

    return train_and_evaluate
  if name == "load_trained":
    from train.trained import load_trained

    return load_trained
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
