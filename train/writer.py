"""Where the metrics of a run go: JSON lines and TensorBoard's event files, from process 0 alone."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from train.events import EventFile

LINES = "steps.jsonl"


class Writer:
  """Writes the metrics of the steps of one run.

  Args:
    folder: of the run; ``steps.jsonl`` and event files are made in it.
    step: where the run stands.
    lines: how many there are up to there; later ones, written before it was interrupted, are dropped.

  Attributes:
    lines: how many there are.
  """

  def __init__(self, folder: pathlib.Path, step: int, lines: int):
    self.lines = lines
    self._lines = self._events = None
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      path = folder / LINES
      before = path.read_text().splitlines(keepends=True) if path.exists() else []
      replace(path, "".join(before[:lines]))
      self._lines = open(path, "a")  # noqa: SIM115
      self._events = EventFile(folder, step)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Metrics of a step: numbers by name."""
    self.lines += 1
    if self._lines and self._events:
      self._lines.write(json.dumps({"step": step, **values}) + "\n")
      self._events.scalars(step, values)

  def sync(self) -> None:
    """All that was written is on disk: a checkpoint that follows may count on it."""
    if self._lines and self._events:
      self._lines.flush()
      os.fsync(self._lines.fileno())
      self._events.flush()

  def close(self) -> None:
    """Nothing more is written."""
    if self._lines and self._events:
      self._lines.close()
      self._events.close()


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a file in whole or not at all."""
  new = path.with_name(path.name + ".new")
  with open(new, "w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  new.replace(path)
