"""What a config must satisfy before anything is compiled, beside what each field says of itself."""

import math
import os
import re
from typing import Any

import jax

from configs import schema
from configs.fields import FIELDS, OPTIMIZER
from configs.schema import ConfigError
from train.steps import links

# Of an array that is selected from: its entries are counted by int32.
_MAX_SIZE = 2**31 - 1

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
# Likewise of an optimizer.
_UNUSED_OF = {
  "sgd": ("b1", "b2", "eps", "momentum", "iterations", "rms"),
  "adamw": ("momentum", "iterations", "rms"),
  "muon": (),
}


def check(config: Any) -> None:
  """Refuses a config that cannot run, naming the fields that don't fit.

  Args:
    config: the experiment.

  Raises:
    ConfigError: for unknown fields, values that a field cannot have, and where fields don't fit together.
  """
  schema.check(config, FIELDS)
  for name in ("data_dir", "compilation_cache"):
    where = config[name] or ""
    if re.match(r"[\w+.-]+:/", where) or os.path.isfile(os.path.expanduser(where)):
      raise ConfigError(f"config.{name} must be a folder of this machine, got {where!r}.")
  for name, value in _UNUSED[config.setting].items():
    if config[name] != value:
      raise ConfigError(
        f"config.{name} must be {value!r} with config.setting={config.setting!r}, where it has no effect, "
        f"got {config[name]!r}."
      )
  links.check(config)
  _check_optimizer(config)
  if config.participation < 1 and links.name_between(config) != "all_gather":
    raise ConfigError(
      f"config.collective must be 'all_gather' with config.participation={config.participation}, got "
      f"{config.collective!r}: a worker that is absent cannot add up what others send it."
    )
  if config.warmup_epochs >= config.epochs:
    raise ConfigError(
      f"config.warmup_epochs must be below config.epochs={config.epochs}, got {config.warmup_epochs}: "
      f"nothing would be left for the density {config.density}."
    )
  if not config.eval_at_end and not 0 < config.eval_every <= config.epochs:
    raise ConfigError(
      f"config.eval_every must be from 1 to config.epochs={config.epochs} with config.eval_at_end=False, got "
      f"{config.eval_every}: there would be no score."
    )
  parts = config.mesh.chips * config.mesh.shards
  if (size := batch_size(config)) % parts:
    raise ConfigError(
      f"config.batch_size must be a multiple of {parts}, config.mesh.chips={config.mesh.chips} times "
      f"config.mesh.shards={config.mesh.shards}, over which a worker's batch is dealt, got {size}."
    )


def num_workers(config: Any) -> int:
  """How many workers there are: ``mesh.workers``, or ``num_workers``."""
  return config.mesh.workers or config.num_workers


def _check_optimizer(config: Any) -> None:
  own = config.optimizer
  schema.check(own, OPTIMIZER, "config.optimizer")
  for name in _UNUSED_OF[own.name]:
    if own[name] != OPTIMIZER[name].default:
      raise ConfigError(
        f"config.optimizer.{name} must be {OPTIMIZER[name].default!r} with config.optimizer.name={own.name!r}, "
        f"where it has no effect, got {own[name]!r}."
      )
  if own.name != "sgd" and (config.momentum or config.nesterov):
    name = "momentum" if config.momentum else "nesterov"
    raise ConfigError(
      f"config.{name} must be {type(config[name])()!r} with config.optimizer.name={own.name!r}, which has momentum of "
      f"its own, got {config[name]!r}: each gradient would have both."
    )
  if own.name == "muon" and config.mesh.shards > 1 and config.setting == "distributed":
    raise ConfigError(
      f"config.mesh.shards must be 1 with config.optimizer.name='muon', which needs whole matrices, got "
      f"{config.mesh.shards}; chips, and local steps (config.setting='federated'), are no hindrance."
    )
  if config.learning_rate_end > config.learning_rate:
    raise ConfigError(
      f"config.learning_rate_end must be at most config.learning_rate={config.learning_rate}, got "
      f"{config.learning_rate_end}."
    )


def batch_size(config: Any) -> int:
  """The batch of one worker.

  Args:
    config: the experiment.

  Returns:
    ``batch_size``, or its share of ``global_batch_size``.

  Raises:
    ConfigError: when the global batch cannot be dealt evenly.
  """
  whole = config.global_batch_size
  if whole is None:
    return config.batch_size
  parts = num_workers(config) * config.micro_batches
  if whole % parts:
    raise ConfigError(
      f"config.global_batch_size must be a multiple of {parts}, num_workers={num_workers(config)} times "
      f"micro_batches={config.micro_batches}, got {whole}."
    )
  return whole // parts


def check_sizes(config: Any, params: Any) -> None:
  """Refuses a model with an array of weights that no exchange can select from.

  Args:
    config: the experiment.
    params: shapes of the weights.

  Raises:
    ConfigError: when there is one; it is named.
  """
  if config.dense or all(method == "none" for method in config.methods):
    return
  for path, leaf in jax.tree.leaves_with_path(params):
    if leaf.size > _MAX_SIZE:
      where = jax.tree_util.keystr(path, simple=True, separator=".")
      raise ConfigError(
        f"config.model makes {where} of {leaf.size:,} weights; an array that is compressed has at most "
        f"{_MAX_SIZE:,}."
      )


def check_memory(params: Any) -> None:
  """Refuses weights that a device has no room for, with their gradient.

  Args:
    params: shapes of what a device has of them.

  Raises:
    ConfigError: when they are too many.
  """
  leaves = jax.tree.leaves(params)
  count, needed = sum(x.size for x in leaves), 2 * sum(x.size * x.dtype.itemsize for x in leaves)
  there = _device_memory()
  if there is not None and needed > there:
    raise ConfigError(
      f"config.model makes {count:,} weights a device, {needed / 1e9:,.1f} GB with their gradient, and it has "
      f"{there / 1e9:,.1f} GB."
    )


def _device_memory() -> int | None:
  """Bytes of a device of this process, if they are known; that of a CPU is the machine's."""
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  return (device.memory_stats() or {}).get("bytes_limit")


def check_density(config: Any, size: int) -> None:
  """Refuses a density at which nothing would be sent, or everything, or rTop-k would be random-k.

  Args:
    config: the experiment.
    size: how many parameters there are.

  Raises:
    ConfigError: when it is one.
  """
  if all(method == "none" for method in config.methods):
    return
  sent = config.density * size
  if not math.isfinite(sent) or sent < 1:
    raise ConfigError(
      f"config.density={config.density} of {size} parameters is {sent:.3g} of them: nothing would be sent."
    )
  if round(sent) >= size:
    raise ConfigError(
      f"config.density={config.density} of {size} parameters is all of them: nothing would be saved. "
      'Without compression is config.methods=("none",).'
    )
  # The library would refuse it, in the middle of a trace.
  share = config.density * config.num_workers
  if "rtopk" in config.methods and config.subsample is None and share >= 1:
    raise ConfigError(
      f"config.density={config.density} with config.num_workers={config.num_workers} takes r/k from the number of "
      "workers, so that rtopk would be randomk. Give config.subsample a number, or a lower density."
    )
