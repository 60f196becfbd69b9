"""Whether a config fits the checkpoints that a folder has."""

import json
import pathlib
from typing import Any

from train.writer import replace

# What may change between two starts of a run: how long it is and who does it, not what is done.
_FREE = frozenset(
  {
    "methods",
    "seeds",
    "epochs",
    "max_steps",
    "num_workers",
    "workers",
    "collective",
    "data_dir",
    "data_threads",
    "variant",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "check_every",
    "max_skipped",
    "profile_from",
    "profile_steps",
    "compilation_cache",
  }
)


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in fields.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _fields(config: Any) -> dict[str, Any]:
  return json.loads(config.to_json_best_effort())


def check(config: Any, folder: pathlib.Path) -> None:
  """Refuses a config that is another one than that of the checkpoints.

  How long runs are, how many workers there are and where and how they work may change.

  Args:
    config: the experiment.
    folder: where it was trained before, if it was.

  Raises:
    ValueError: when fields differ; it names them and both values.
  """
  before = folder / "config.json"
  if not before.exists() or not any(folder.glob("runs/*/checkpoints/*")):
    return
  old, new = _flat(json.loads(before.read_text())), _flat(_fields(config))
  free = _FREE | ({"batch_size"} if config.global_batch_size else set())
  missing = "nothing"
  changed = [
    f"{name} was {old.get(name, missing)!r} and is {new.get(name, missing)!r}"
    for name in sorted(old.keys() | new.keys())
    if name not in free and old.get(name, missing) != new.get(name, missing)
  ]
  if changed:
    raise ValueError(
      f"The checkpoints in {folder} are of another config: {'; '.join(changed)}. Change it back, or "
      "train in another folder."
    )


def remember(config: Any, folder: pathlib.Path) -> None:
  """Writes down what the checkpoints of a folder will be of."""
  replace(folder / "config.json", json.dumps(_fields(config), indent=2, sort_keys=True) + "\n")
