"""From a config to its task: one of the data sets here, or one of the user's own."""

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, cast

import data
from configs import schema
from configs.schema import ConfigError
from train.errors import UserError
from train.tasks.classification import Classification
from train.tasks.language import Language
from train.tasks.task import Task

_METHODS = ("source", "init", "loss", "statistics", "evaluate")
_PARTS = ("score", "unit", "examples", *_METHODS)


def make_task(config: Any) -> Task:
  """The task of a config.

  Args:
    config: the experiment. Its ``task`` may name a class or function, "package.module:name", that takes
      the config and returns a ``train.Task``; otherwise ``dataset`` decides.

  Returns:
    The task.

  Raises:
    ConfigError: for an unknown data set, a name that is not a task's, and fields that its model cannot have.
    UserError: when the data set is not there; the message says how to get it.
  """
  if config.task is not None:
    return _own(config)
  name = config.dataset
  if name in data.IMAGES:
    _check(config, Classification)
    images = _loaded(data.IMAGES[name], config)
    _check_count(config, images.train.size, "images")
    return Classification(config, images.first(config.train_examples))
  if name in data.TEXTS:
    _check(config, Language)
    text = _loaded(data.TEXTS[name], config)
    _check_count(config, len(text.train), "words")
    for part, words in (("validation", text.valid), ("test", text.test)):
      if config.eval_batch_size > len(words) // 2:
        raise ConfigError(
          f"config.eval_batch_size must be at most {len(words) // 2}, so that each stream of the {part} text "
          f"has two of its {len(words)} words, got {config.eval_batch_size}."
        )
    return Language(config, text.first(config.train_examples))
  known = (*data.IMAGES, *data.TEXTS)
  near = difflib.get_close_matches(str(name), known, 1)
  raise ConfigError(
    f"config.dataset must be one of {', '.join(known)}, got {name!r}"
    f"{f'; did you mean {near[0]!r}?' if near else '.'}"
  )


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
  module, _, name = path.partition(":")
  form = f'config.task must be "package.module:name", got {path!r}'
  if not module or not name:
    raise ConfigError(f"{form}.")
  try:
    make: Any = getattr(importlib.import_module(module), name)
  except (ModuleNotFoundError, AttributeError) as error:
    # A module that the user's own one lacks is theirs to see whole.
    if isinstance(error, ModuleNotFoundError) and not module.startswith(str(error.name)):
      raise
    raise ConfigError(f"{form}, which cannot be imported: {error}.") from error
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
