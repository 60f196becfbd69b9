"""Where the metrics of a run go: JSON lines and TensorBoard's event files, from process 0 alone."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from train.checkpointing.folder import dumps, replace
from train.reporting.events import EventFile

LINES = "steps.jsonl"


class Writer:
  """Writes the metrics of the steps of one run.

  Args:
    folder: of the run; ``steps.jsonl`` and event files are made in it.
    step: where the run stands.
    lines: how many there are up to there; later ones, written before it was interrupted, are dropped.
    say: what is told about a file that is damaged.

  Attributes:
    lines: how many there are.
  """

  def __init__(self, folder: pathlib.Path, step: int, lines: int, say: Callable[[str], None]):
    self.lines = lines
    self._lines = self._events = None
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      path = folder / LINES
      kept = _whole(path.read_bytes(), lines) if path.exists() else []
      if len(kept) < lines:
        say(
          f"{path} is damaged: {len(kept)} of {lines} lines are whole, and stay. The weights are not concerned."
        )
        if path.exists():
          path.replace(path.with_name(LINES + ".damaged"))
      self.lines = len(kept)
      replace(path, "".join(line + "\n" for line in kept))
      self._lines = open(path, "a")  # noqa: SIM115
      self._events = EventFile(folder, step)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Metrics of a step: numbers by name."""
    self.lines += 1
    if self._lines and self._events:
      self._lines.write(dumps({"step": step, **values}) + "\n")
      self._events.scalars(step, values)

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Numbers for TensorBoard alone, which are in another file already."""
    if self._events:
      self._events.scalars(step, {name: x for name, x in values.items() if x is not None})

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


def _whole(content: bytes, lines: int) -> list[str]:
  """The first lines of JSON, up to one that is damaged."""
  whole: list[str] = []
  for line in content.split(b"\n")[:lines]:
    try:
      if not isinstance(json.loads(line), dict):
        break
    except ValueError:
      break
    whole.append(line.decode())
  return whole
