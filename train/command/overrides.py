"""From a command line to a config: ``--config=FILE[:ROW]`` and then ``--config.FIELD=VALUE``, the last one counts."""

import importlib.util
import inspect
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from configs import schema
from configs.fields import FIELDS, FREE
from configs.schema import ConfigError
from train.errors import UserError

Override = tuple[str, str | None]

_FORM = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def split(arguments: Iterable[str]) -> tuple[list[str], list[Override]]:
  """Takes what changes a field out of a command line.

  Args:
    arguments: of the program.

  Returns:
    The other arguments; fields by their path with what they are set to, None where nothing was said.
  """
  rest: list[str] = []
  overrides: list[Override] = []
  words = list(arguments)
  while words:
    word = words.pop(0)
    form = _FORM.fullmatch(word)
    if form is None:
      rest.append(word)
      continue
    no, path, text = form.groups()
    if no:
      text = "false"
    elif text is None and words and not re.match(r"-(?![.\d])", words[0]):
      text = words.pop(0)
    overrides.append((path, text))
  return rest, overrides


def load(name: str, overrides: Iterable[Override] = ()) -> Any:
  """The config that a file makes, changed by overrides.

  Args:
    name: the file; after a colon what its ``get_config`` is told, such as a row of a table.
    overrides: as ``split`` returns them.

  Returns:
    The config.

  Raises:
    UserError: for a file that makes none.
    ConfigError: for fields that there are not, and texts that are no values of theirs.
  """
  config = _made(name)
  for path, text in overrides:
    _set(config, path, text)
  return config


def _made(name: str) -> Any:
  path, colon, row = name.partition(":")
  where = f"--config={name}"
  if not pathlib.Path(path).is_file():
    raise UserError(f"{where}: there is no such file; configs/ has those of the project.")
  spec = importlib.util.spec_from_file_location("_config", path)
  if spec is None or spec.loader is None:
    raise UserError(f"{where}: a config is a Python file with a function get_config.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  make = getattr(module, "get_config", None)
  if make is None:
    raise UserError(f"{where}: the file has no function get_config.")
  if colon and not inspect.signature(make).parameters:
    raise UserError(f"{where}: {path} has no rows, so that nothing may follow a colon.")
  try:
    config = make(row) if colon else make()
  except ValueError as error:
    # Of a row that is none; what else goes wrong in a file is its author's to see whole.
    if not colon:
      raise
    raise UserError(f"{where}: {error}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"{where}: get_config must return a ConfigDict, got {type(config).__name__}.")
  return config


def _set(config: Any, path: str, text: str | None) -> None:
  *outer, name = path.split(".")
  where, section = "config", config
  for part in outer:
    section = _within(section, where, part)
    where = f"{where}.{part}"
  if (outer or [name])[0] == "variants":
    raise ConfigError("config.variants is the config's own; config.variant chooses one of them.")
  own_model = config.task or ":" in str(config.model.get("name"))
  free = bool(outer) and (outer[0] == "task_options" or (outer[0] == "model" and own_model))
  if name not in section and not free:
    raise ConfigError(schema.unknown(where, name, section))
  field = schema.at(FIELDS, (*outer, name))
  if field is not None and (name in FREE or field.fields):
    _set_all(section, where, name, text, field)
    return
  kind = section.get_type(name) if name in section else object
  if text is None:
    if kind is not bool:
      raise ConfigError(f"{where}.{name} needs a value, as in --{where}.{name}=VALUE.")
    text = "true"
  value = field.parse(text) if field else schema.read(kind, text)
  if field is None and text == "None":
    value = None
  _assign(section, where, name, value, field)


def _assign(section: Any, where: str, name: str, value: Any, field: schema.Field | None) -> None:
  kind = section.get_type(name) if name in section else object
  if wrong := _wrong(field, kind, value):
    raise ConfigError(f"{where}.{name} must be {wrong}, got {value!r}.")
  with section.unlocked():
    # A number may be given as an integer; other types were refused.
    section[name] = float(value) if kind is float and value is not None else value


def _wrong(field: schema.Field | None, kind: type, value: Any) -> str | None:
  if field is not None:
    return field.wrong(value)
  # A field of the model or the task: they say more about it, its type is known here.
  return None if value is None or kind is object else schema.Field(None, "", kind).wrong(value)


def _within(section: Any, where: str, name: str) -> Any:
  if name not in section:
    raise ConfigError(schema.unknown(where, name, section))
  inner = section[name]
  if not isinstance(inner, ConfigDict):
    raise ConfigError(f"{where}.{name} has no fields, got one of it.")
  return inner


def _set_all(section: Any, where: str, name: str, text: str | None, field: schema.Field) -> None:
  """A whole dictionary: its fields are changed, others stay."""
  value = schema.read(dict, text or "")
  if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
    raise ConfigError(f"{where}.{name} must be a dictionary, got {text!r}.")
  for key, inner in value.items():
    fields = field.fields
    if fields is not None and key not in fields:
      raise ConfigError(schema.unknown(f"{where}.{name}", key, fields))
    _assign(section[name], f"{where}.{name}", key, inner, fields[key] if fields else None)
