"""A config for other hardware: fields that are open until a variant fills them in."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs.schema import ConfigError


def vary(config: Any, **variants: Mapping[str, Any]) -> None:
  """Gives a config variants.

  The fields that they name are open, until ``settle`` fills them in. What a user sets in the meantime, on
  the command line for example, is open no longer and stays.

  Args:
    config: the config, whose ``variant`` names one of them, at first the first.
    **variants: each one's fields and values, nested as in the config. What only a later one names is None
      in the first.
  """
  first = next(iter(variants))
  config.variant, config.variants = first, ConfigDict(dict(variants))
  for variant in variants:
    for (*outer, name), value in _fields(config.variants[variant]):
      where = _within(config, outer)
      if where[name] is not None:
        # A field keeps the type it had, so that it has to be a new one.
        del where[name]
        where[name] = config_dict.placeholder(type(value))


def settle(config: Any) -> Any:
  """The config with every open field as its variant has it, or the first one where that does not say.

  Args:
    config: the config, which stays as it is.

  Returns:
    A copy that is of this variant alone.

  Raises:
    ConfigError: for a variant that it does not have.
  """
  config = copy.deepcopy(config)
  known = tuple(config.variants)
  if config.variant not in known:
    raise ConfigError(f"config.variant must be one of {', '.join(known)}, got {config.variant!r}.")
  for variant in (config.variant, known[0]):
    for (*outer, name), value in _fields(config.variants[variant]):
      where = _within(config, outer)
      if where[name] is None:
        where[name] = value
  config.variants = ConfigDict({config.variant: {}})
  return config


def _fields(values: Any, outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
  """All fields of a nested dictionary, by their path."""
  for name, value in values.items():
    path = (*outer, name)
    if isinstance(value, ConfigDict):
      yield from _fields(value, path)
    else:
      yield path, value


def _within(config: Any, path: list[str]) -> Any:
  for name in path:
    config = config[name]
  return config
