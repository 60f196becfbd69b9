"""From a config to a collective: how messages travel between workers, and from the chips of one."""

from typing import Any

import rtopk_jax
from configs.schema import ConfigError
from train.steps.layout import CHIPS

_HIERARCHICAL = "hierarchical"
_BETWEEN = ("all_gather", "reduce_scatter", "auto")


def name_between(config: Any) -> str:
  """The name of what goes on between workers: "all_gather", "reduce_scatter" or "auto"."""
  kind, _, name = config.collective.partition(":")
  return (name or "all_gather") if kind == _HIERARCHICAL else config.collective


def check(config: Any) -> None:
  """Refuses a collective that does not fit the rest of a config.

  Args:
    config: the experiment.

  Raises:
    ConfigError: naming the field.
  """
  name, between = config.collective, name_between(config)
  if between not in _BETWEEN:
    raise ConfigError(
      f"config.collective must be one of {', '.join(_BETWEEN)}, hierarchical or hierarchical:NAME of them, got "
      f"{name!r}."
    )
  if name.partition(":")[0] == _HIERARCHICAL and config.mesh.chips == 1:
    raise ConfigError(
      f"config.collective must be {between!r} with config.mesh.chips=1, got {name!r}: one chip sends all."
    )
  if config.delay and between == "reduce_scatter":
    raise ConfigError(
      f"config.collective must hand every message to everybody with config.delay={config.delay}, as all_gather does, "
      f"got {name!r}."
    )
  if config.delay and config.mesh.shards > 1:
    raise ConfigError(
      f"config.mesh.shards must be 1 with config.delay={config.delay}, which needs parameters that are whole, got "
      f"{config.mesh.shards}."
    )
  if between == "auto" and config.bandwidth is None:
    raise ConfigError(
      f"config.bandwidth must be that of a worker's link, such as '1Gbit/s', with config.collective={name!r}, "
      "got None."
    )
  if between != "auto" and config.bandwidth is not None:
    raise ConfigError(
      f"config.bandwidth must be None with config.collective={name!r}, where it has no effect, got "
      f"{config.bandwidth!r}."
    )


def between_workers(config: Any) -> str | rtopk_jax.Collective:
  """What goes on between workers: a collective, or the name of one in ``rtopk_jax``."""
  name = name_between(config)
  return rtopk_jax.Auto(bandwidth=config.bandwidth) if name == "auto" else name


def collective(config: Any) -> str | rtopk_jax.Collective:
  """The collective of a config, or its name in ``rtopk_jax``.

  With several chips a worker each sends a part of what they all have.
  """
  between = between_workers(config)
  if config.mesh.chips == 1:
    return between
  return rtopk_jax.Hierarchical(CHIPS, between, averaged=True)
