"""Data sets on disk, as TensorFlow Datasets lays them out in ``array_record`` files; TensorFlow is not needed."""

import pathlib
from typing import Any

DEFAULT_DIR = "~/tensorflow_datasets"


def find(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
  """The folder of a data set's latest version, or None where there is none."""
  versions = sorted((data_dir / name).glob("[0-9]*/dataset_info.json"))
  return versions[-1].parent if versions else None


def source(name: str, split: str, data_dir: str | None = None, encoded: bool = False) -> Any:
  """A split, read by index.

  Args:
    name: of the data set.
    split: of it.
    data_dir: where data sets are kept; None is ``~/tensorflow_datasets``.
    encoded: whether images stay the bytes of their file.

  Returns:
    A sequence of examples, which several threads may read.

  Raises:
    FileNotFoundError: when the data set is not there; the message says how to make it.
  """
  import tensorflow_datasets as tfds

  where = pathlib.Path(data_dir or DEFAULT_DIR).expanduser()
  folder = find(name, where)
  if folder is None:
    short = name.removesuffix("2012")
    raise FileNotFoundError(
      f"{name} is not in {where}. Make it with\n\n  python -m data.prepare {short} --data_dir={where}\n\n"
      "or set config.data_dir to the folder that has it."
    )
  builder = tfds.builder_from_directory(folder)
  if split not in builder.info.splits:
    raise FileNotFoundError(
      f"{name} in {where} has no split {split!r}, only {', '.join(builder.info.splits)}."
    )
  decoders: Any = {"image": tfds.decode.SkipDecoding()} if encoded else None
  return builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]
