"""From a config to its task: a model and a data set, each by its name, or a task of the user's own."""

import inspect
from collections.abc import Callable
from typing import Any, cast

import data
from configs import schema
from configs.schema import ConfigError
from train import models
from train.errors import UserError
from train.tasks import named
from train.tasks.classification import Classification
from train.tasks.language import Language
from train.tasks.task import Task

_METHODS = ("source", "init", "loss", "statistics", "evaluate")
_PARTS = ("score", "unit", "examples", *_METHODS)


def make_task(config: Any) -> Task:
  """The task of a config.

  Args:
    config: the experiment. Its ``task`` may name a class or function, "package.module:name", that takes
      the config and returns a ``train.Task``; otherwise ``dataset`` and ``model.name`` decide.

  Returns:
    The task.

  Raises:
    ConfigError: for a name of nothing, a model that is not for such data, and fields that it cannot have.
    UserError: when the data set is not there; the message says how to get it.
  """
  if config.task is not None:
    return _own(config)
  name = config.dataset
  load = named.find("config.dataset", name, data.IMAGES | data.TEXTS)
  if name in data.IMAGES or name in data.TEXTS:
    _check_model(config, name in data.TEXTS)
  loaded = _loaded(load, config)
  if not isinstance(loaded, data.Images | data.Text):
    raise ConfigError(
      f"config.dataset={name!r} must return data.Images or data.Text, got {type(loaded).__name__}."
    )
  _check_model(config, isinstance(loaded, data.Text))
  if isinstance(loaded, data.Images):
    _check_count(config, loaded.train.size, "images")
    return Classification(config, loaded.first(config.train_examples))
  unit = loaded.unit
  _check_count(config, len(loaded.train), unit)
  for part, words in (("validation", loaded.valid), ("test", loaded.test)):
    if config.eval_batch_size > len(words) // 2:
      raise ConfigError(
        f"config.eval_batch_size must be at most {len(words) // 2}, so that each stream of the {part} text "
        f"has two of its {len(words)} {unit}, got {config.eval_batch_size}."
      )
  return Language(config, loaded.first(config.train_examples))


def _check_model(config: Any, of_text: bool) -> None:
  """Refuses a model that is not for such data, and fields that it cannot have."""
  known = models.LANGUAGE_MODELS if of_text else models.IMAGE_MODELS
  name = config.model.get("name")
  model = named.find("config.model.name", name, models.IMAGE_MODELS | models.LANGUAGE_MODELS)
  fields = getattr(model, "fields", None)
  if fields is None:
    raise ConfigError(
      f"config.model.name={name!r} is no model: it has no fields (train/models/protocol.py)."
    )
  if hasattr(model, "start") != of_text:
    raise ConfigError(
      f'config.model.name must be one of {", ".join(known)}, or "package.module:name" of one\'s own, with '
      f"config.dataset={config.dataset!r}, got {name!r}."
    )
  schema.check(config.model, {"name": schema.text(name, "of the model"), **fields}, "config.model")


def _check(config: Any, task: Any) -> None:
  """Checks what of a config only the task knows: ``fields`` says it, beside the class."""
  for section, fields in getattr(task, "fields", {}).items():
    schema.check(config[section], fields, f"config.{section}")


def _loaded(load: Callable[[str | None], Any], config: Any) -> Any:
  try:
    return load(config.data_dir)
  except FileNotFoundError as error:
    raise UserError(" ".join(str(error).split())) from error


def _check_count(config: Any, count: int, what: str) -> None:
  if config.train_examples is not None and config.train_examples > count:
    raise ConfigError(
      f"config.train_examples must be at most {count}, the {what} there are, got {config.train_examples}."
    )


def _own(config: Any) -> Task:
  path = config.task
  form = f'config.task must be "package.module:name", got {path!r}'
  make = named.imported("config.task", path)
  lacks = [part for part in _METHODS if inspect.isclass(make) and not hasattr(make, part)]
  if not callable(make) or len(lacks) == len(_METHODS):
    raise ConfigError(f"{form}, which is not a task: no class or function that makes one.")
  _check(config, make)
  build = cast(Callable[[Any], Any], make)
  try:
    task: Any = build(config)
  except ConfigError:
    raise
  except (TypeError, ValueError, AttributeError) as error:
    if inspect.isclass(make):
      raise  # a bug of a task's author
    raise ConfigError(
      f"{form}, which makes no task: {type(error).__name__}: {error}. --traceback shows where."
    ) from error
  lacks = [part for part in _PARTS if not hasattr(task, part)]
  if lacks:
    raise ConfigError(f"{form}, whose task lacks {', '.join(lacks)} (train/tasks/task.py).")
  return task
