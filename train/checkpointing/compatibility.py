"""Whether a config fits the checkpoints that a folder has."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from configs.schema import ConfigError
from train.checkpointing import integrity
from train.checkpointing.folder import replace
from train.errors import UserError

CONFIG = "config.json"

# What may change between two starts of a run: how long it is and who does it, not what is done.
_FREE = frozenset(
  {
    "methods",
    "seeds",
    "epochs",
    "max_steps",
    "max_batches",
    "num_workers",
    "mesh.workers",
    "mesh.chips",
    "mesh.fast",
    "workers",
    "collective",
    "bandwidth",
    "data_dir",
    "data_threads",
    "variant",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "check_every",
    "max_skipped",
    "eval_every",
    "eval_at_end",
    "peer_timeout",
    "profile_from",
    "profile_steps",
    "compilation_cache",
  }
)


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Fields of nested dictionaries by their path."""
  found = {}
  for name, value in fields.items():
    if isinstance(value, dict):
      found |= flat(value, f"{prefix}{name}.")
    else:
      found[prefix + name] = value
  return found


def fields_of(config: Any) -> dict[str, Any]:
  """A config as JSON has it."""
  return json.loads(config.to_json_best_effort())


def check(config: Any, folder: pathlib.Path, say: Callable[[str], None]) -> None:
  """Refuses a config that is another one than that of the checkpoints.

  How long runs are, how many workers there are and where and how they work may change.

  Args:
    config: the experiment.
    folder: where it was trained before, if it was.
    say: what is told about a file that is damaged.

  Raises:
    ConfigError: when fields differ; it names them and both values.
    UserError: when nothing says of which config the checkpoints are.
  """
  if not any(folder.glob("runs/*/checkpoints/*")):
    return
  old, new = flat(_before(folder, say)), flat(fields_of(config))
  free = _FREE | ({"batch_size"} if config.global_batch_size else set())
  missing = "nothing"
  changed = [
    f"config.{name} was {old.get(name, missing)!r} and is {new.get(name, missing)!r}"
    for name in sorted(old.keys() | new.keys())
    if name not in free and old.get(name, missing) != new.get(name, missing)
  ]
  if changed:
    raise ConfigError(
      f"The checkpoints in {folder} are of another config: {'; '.join(changed)}. Change it back, or "
      "train in another folder."
    )


def _before(folder: pathlib.Path, say: Callable[[str], None]) -> dict[str, Any]:
  """The config of the checkpoints: in its file, or beside the digests of the last one."""
  path = folder / CONFIG
  found = read(path)
  if found is None:
    found = integrity.config(folder)
    if found is None:
      raise UserError(
        f"{path} is damaged or gone, and nothing else says of which config the checkpoints are. Put it back, "
        "or begin again with --start_over."
      )
    say(f"{path} is damaged or gone; the copy beside the last checkpoint is used.")
  return found


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """A dictionary in JSON; None where there is none, or a damaged one."""
  try:
    found = json.loads(path.read_bytes())
  except (ValueError, FileNotFoundError):
    return None
  return found if isinstance(found, dict) and found else None


def remember(config: Any, folder: pathlib.Path) -> None:
  """Writes down what the checkpoints of a folder will be of."""
  replace(folder / CONFIG, json.dumps(fields_of(config), indent=2, sort_keys=True) + "\n")
