"""What a config must satisfy before anything is compiled."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import default
from train.methods import METHODS, SETTINGS
from train.schedules import SCHEDULES

# Dictionaries whose fields are the task's.
_OF_THE_TASK = ("model", "task_options")

# Fields that may be None although their default is not.
_OPTIONAL = ("dense", "data_dir", "compilation_cache")

_AT_LEAST = {
  "num_workers": 1,
  "batch_size": 1,
  "global_batch_size": 1,
  "micro_batches": 1,
  "eval_batch_size": 1,
  "unroll": 1,
  "data_threads": 0,
  "train_examples": 1,
  "epochs": 1,
  "max_steps": 1,
  "local_steps": 1,
  "warmup_epochs": 0,
  "log_every": 1,
  "checkpoint_every": 0,
  "keep_checkpoints": 2,
  "check_every": 0,
  "max_skipped": 1,
  "profile_from": 1,
  "profile_steps": 0,
}

# What a setting has no use for, and the value that says so.
_UNUSED = {
  "distributed": {
    "local_steps": None,
    "participation": 1.0,
    "keep_local_optimizer": False,
    "outer_learning_rate": 1.0,
    "outer_momentum": 0.0,
    "outer_nesterov": False,
  },
  "federated": {"micro_batches": 1},
}


def check(config: Any) -> None:
  """Refuses a config that cannot run, naming the numbers that don't fit.

  Args:
    config: the experiment.

  Raises:
    TypeError: for a value of another type than the field's.
    ValueError: for unknown fields and methods, and where numbers don't fit together.
  """
  check_fields("config", config, default.get_config())
  for method in config.methods:
    if method not in METHODS:
      raise ValueError(f"methods may name {', '.join(METHODS)}, got {method!r}.")
  for name in ("methods", "seeds"):
    if not len(config[name]):
      raise ValueError(f"{name} is empty; name at least one.")
  for name, least in _AT_LEAST.items():
    if config[name] is not None and config[name] < least:
      raise ValueError(f"{name} must be at least {least}, got {config[name]}.")
  for name, choices in (("schedule", SCHEDULES), ("setting", SETTINGS)):
    if config[name] not in choices:
      raise ValueError(f"{name} must be one of {', '.join(choices)}, got {config[name]!r}.")
  for name, value in _UNUSED[config.setting].items():
    if config[name] != value:
      raise ValueError(f"{name}={config[name]!r} has no effect with setting={config.setting!r}.")
  if not 0 < config.participation <= 1:
    raise ValueError(f"participation must be above 0 and at most 1, got {config.participation}.")
  if config.participation < 1 and config.collective != "all_gather":
    raise ValueError(
      f"participation={config.participation} needs collective='all_gather', got {config.collective!r}: "
      "a worker that is absent cannot add up what others send it."
    )
  if config.warmup_epochs >= config.epochs:
    raise ValueError(
      f"warmup_epochs={config.warmup_epochs} leaves nothing of epochs={config.epochs} for the density "
      f"{config.density}; give more epochs, or warmup_epochs=0."
    )
  batch_size(config)


def batch_size(config: Any) -> int:
  """The batch of one worker.

  Args:
    config: the experiment.

  Returns:
    ``batch_size``, or its share of ``global_batch_size``.

  Raises:
    ValueError: when workers and micro-batches don't divide that.
  """
  whole = config.global_batch_size
  if whole is None:
    return config.batch_size
  parts = config.num_workers * config.micro_batches
  if whole % parts:
    raise ValueError(
      f"global_batch_size={whole} cannot be dealt to num_workers={config.num_workers} in "
      f"micro_batches={config.micro_batches}: {parts} does not divide it."
    )
  return whole // parts


def check_density(config: Any, size: int) -> None:
  """Refuses a density at which nothing would be sent, or everything.

  Args:
    config: the experiment.
    size: how many parameters there are.

  Raises:
    ValueError: when it is one.
  """
  if all(method == "none" for method in config.methods):
    return
  sent = config.density * size
  if not math.isfinite(sent) or sent < 1:
    raise ValueError(
      f"density={config.density} of {size} parameters is {sent:.3g} of them: nothing would be sent."
    )
  if round(sent) >= size:
    raise ValueError(
      f"density={config.density} of {size} parameters is all of them: nothing would be saved. "
      'Without compression is methods=("none",).'
    )


def check_fields(name: str, given: Mapping[str, Any], known: ConfigDict) -> None:
  """Refuses fields that are not known, and values of another type than the known one's.

  Args:
    name: of the dictionary.
    given: the dictionary.
    known: one with all fields there may be.

  Raises:
    TypeError: for a type.
    ValueError: for a field that is unknown or missing.
  """
  for field in sorted(set(given) ^ set(known)):
    which = "has no field" if field in given else "lacks the field"
    raise ValueError(f"{name} {which} {field!r}; the fields are {', '.join(sorted(known))}.")
  for field, value in given.items():
    kind = known.get_type(field)
    if field in _OF_THE_TASK or (value is None and (known[field] is None or field in _OPTIONAL)):
      continue
    right = (kind, int) if kind is float else (tuple, list) if kind is tuple else kind
    if not isinstance(value, right) or (isinstance(value, bool) and kind is not bool):
      raise TypeError(
        f"{name}.{field} must be of type {kind.__name__}, got {value!r} of type {type(value).__name__}."
      )
    if isinstance(value, float) and math.isnan(value):
      raise ValueError(f"{name}.{field} must be a number, got {value!r}.")
