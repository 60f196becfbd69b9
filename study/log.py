"""Logs: a line of JSON a run, appended as it ends, so that a study that was stopped goes on."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from study.settings import Setting

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "reproduction"
Record = dict[str, Any]
# A run: the setting's text, the learning rate as it is written, and the seed.
Key = tuple[str, str, int]


def key(setting: Setting, rate: float, seed: int) -> Key:
  """What a run is known by."""
  return setting.text, f"{rate:.6g}", seed


class Log:
  """The runs of a stage.

  Args:
    path: the file; it need not exist.

  Attributes:
    runs: what is in the file.
    others: logs where runs are looked for as well, so that what stages share is run once.
  """

  def __init__(self, path: pathlib.Path):
    self.path, self.runs, self.others = path, dict[Key, Record](), list[Log]()
    if path.exists():
      # What a kill cut short is the last line, without its end.
      for line in path.read_text().split("\n")[:-1]:
        self._add(json.loads(line))

  def _add(self, record: Record) -> None:
    self.runs[key(Setting(**record["setting"]), record["rate"], record["seed"])] = record

  def find(self, setting: Setting, rate: float, seed: int) -> Record | None:
    """A run, or None."""
    wanted = key(setting, rate, seed)
    logs = (self, *self.others)
    return next((log.runs[wanted] for log in logs if wanted in log.runs), None)

  def append(self, setting: Setting, rate: float, seed: int, record: Record) -> None:
    """Adds a run, to the file as well."""
    line = {"setting": setting.changed(), "rate": float(f"{rate:.6g}"), "seed": seed} | record
    self.path.parent.mkdir(parents=True, exist_ok=True)
    content = self.path.read_text() if self.path.exists() else ""
    if content and not content.endswith("\n"):
      self.path.write_text(content[: content.rfind("\n") + 1])
    with self.path.open("a") as file:
      file.write(json.dumps(line) + "\n")
    self._add(line)


def open_all(names: Iterable[str], folder: pathlib.Path = FOLDER) -> dict[str, Log]:
  """The logs of stages, by name, each of which finds the runs of all."""
  logs = {name: Log(folder / f"{name}.jsonl") for name in names}
  for log in logs.values():
    log.others = [other for other in logs.values() if other is not log]
  return logs
