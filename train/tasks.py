"""From a config to its task: one of the data sets here, or one of the user's own."""

import importlib
from typing import Any

import data
from train.classification import Classification
from train.language import Language
from train.task import Task


def make_task(config: Any) -> Task:
  """The task of a config.

  Args:
    config: the experiment. Its ``task`` may name a class or function, "package.module:name", that takes
      the config and returns a ``train.task.Task``; otherwise ``dataset`` decides.

  Returns:
    The task.

  Raises:
    ValueError: for an unknown data set, or a name that cannot be imported.
    FileNotFoundError: when the data set is not there; the message says how to get it.
  """
  if config.task is not None:
    return _import(config.task)(config)
  name = config.dataset
  if name in data.IMAGES:
    images = data.IMAGES[name](config.data_dir)
    return Classification(config, images.first(config.train_examples))
  if name in data.TEXTS:
    text = data.TEXTS[name](config.data_dir)
    return Language(config, text.first(config.train_examples))
  known = ", ".join((*data.IMAGES, *data.TEXTS))
  raise ValueError(f"dataset must be one of {known}, got {name!r}.")


def _import(path: str) -> Any:
  module, _, name = path.partition(":")
  if not module or not name:
    raise ValueError(f'task must be "package.module:name", got {path!r}.')
  try:
    return getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError) as error:
    raise ValueError(f"task={path!r} cannot be imported: {error}.") from error
