"""What a config names: something that is known here, or "package.module:name" of one's own."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from configs.schema import ConfigError


def find(field: str, name: Any, known: Mapping[str, Any]) -> Any:
  """What a field of a config names.

  Args:
    field: its path, such as "config.dataset".
    name: its value.
    known: what has a name without a colon.

  Returns:
    What is known by that name, or lies at that path.

  Raises:
    ConfigError: when there is nothing.
  """
  if name in known:
    return known[name]
  if isinstance(name, str) and ":" in name:
    return imported(field, name)
  near = difflib.get_close_matches(str(name), known, 1)
  raise ConfigError(
    f'{field} must be one of {", ".join(known)}, or "package.module:name" of one\'s own, got {name!r}'
    f"{f'; did you mean {near[0]!r}?' if near else '.'}"
  )


def imported(field: str, path: str) -> Any:
  """What lies at a path.

  Args:
    field: of the config.
    path: "package.module:name".

  Returns:
    It.

  Raises:
    ConfigError: when there is no such module, or no such name in it.
  """
  module, _, name = path.partition(":")
  form = f'{field} must be "package.module:name", got {path!r}'
  if not module or not name:
    raise ConfigError(f"{form}.")
  try:
    return getattr(importlib.import_module(module), name)
  except (ModuleNotFoundError, AttributeError) as error:
    # A module that the user's own one lacks is theirs to see whole.
    if isinstance(error, ModuleNotFoundError) and not module.startswith(str(error.name)):
      raise
    raise ConfigError(f"{form}, which cannot be imported: {error}.") from error


def sizes(config: Any) -> dict[str, Any]:
  """What a model's constructor is given of a config's ``model``: all but the name."""
  given = {name: value for name, value in config.model.items() if name != "name"}
  return {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
