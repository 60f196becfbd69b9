"""Which checkpoints are whole: digests of their files, written after each was complete."""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from train.checkpointing.folder import replace

CHECKPOINTS, DIGESTS, DAMAGED = "checkpoints", "digests", "damaged"

# How many damaged checkpoints are kept for a look.
_KEPT = 2


def _digest(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: pathlib.Path, number: int) -> pathlib.Path:
  return folder / DIGESTS / f"{number}.json"


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Digests by file and the config; None where they are damaged themselves."""
  try:
    found = json.loads(path.read_bytes())
  except ValueError:
    return None
  if not isinstance(found, dict) or not found:
    return None
  return found if "files" in found else {"files": found, "config": None}


def _numbers(folder: pathlib.Path) -> Iterator[int]:
  """Checkpoints by number, the last one first."""
  found = folder.glob(f"{CHECKPOINTS}/*")
  return iter(sorted((int(x.name) for x in found if x.name.isdigit()), reverse=True))


def seal(folder: pathlib.Path, number: int, config: dict[str, Any]) -> None:
  """Writes down what a complete checkpoint is made of.

  Args:
    folder: of the run.
    number: of the checkpoint.
    config: that it is of.
  """
  checkpoint = folder / CHECKPOINTS / str(number)
  files = {
    path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _digest(path)]
    for path in sorted(checkpoint.rglob("*"))
    if path.is_file()
  }
  manifests = folder / DIGESTS
  manifests.mkdir(exist_ok=True)
  replace(_manifest(folder, number), json.dumps({"files": files, "config": config}, indent=1))
  kept = {f"{number}.json" for number in _numbers(folder)}
  for old in manifests.glob("*.json"):
    if old.name not in kept:
      old.unlink()


def config(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The config that the last checkpoint of a work directory is of, where its digests say it."""
  seals = sorted(workdir.glob(f"runs/*/{DIGESTS}/*.json"), key=lambda x: x.stat().st_mtime_ns)
  for path in reversed(seals):
    found = _read(path)
    if found and found["config"]:
      return found["config"]
  return None


def damage(folder: pathlib.Path, number: int) -> str | None:
  """What is wrong with a checkpoint that was sealed.

  Args:
    folder: of the run.
    number: of the checkpoint.

  Returns:
    A clause, or None when nothing is.
  """
  found = _read(_manifest(folder, number))
  if found is None:
    return "has damaged digests"
  for name, (size, digest) in found["files"].items():
    path = folder / CHECKPOINTS / str(number) / name
    if not path.exists():
      return f"lacks {name}"
    if path.stat().st_size != size:
      return f"has {path.stat().st_size} bytes of {name}, not {size}"
    if _digest(path) != digest:
      return f"has other bytes in {name} than were written"
  return None


def last_whole(
  folder: pathlib.Path,
  readable: Callable[[int], bool],
  config: dict[str, Any],
  say: Callable[[str], None],
) -> int | None:
  """The last checkpoint that is as it was written; later ones are put away.

  One that was complete when its process was killed before the digests were written is read in whole, and
  sealed if that works.

  Args:
    folder: of the run.
    readable: whether all of a checkpoint can be read.
    config: what the checkpoints are of.
    say: what is told about those that are not whole.

  Returns:
    Its number, or None when there is none.
  """
  for number in _numbers(folder):
    if _manifest(folder, number).exists():
      wrong = damage(folder, number)
    elif readable(number):
      seal(folder, number, config)
      say(f"Checkpoint {number} had no digests yet; all of it can be read, and it is used.")
      wrong = None
    else:
      wrong = "was not complete"
    if wrong is None:
      return number
    _put_away(folder, number)
    say(f"Checkpoint {number} {wrong}; it is now in {folder / DAMAGED}. Using the one before.")
  return None


def _put_away(folder: pathlib.Path, number: int) -> None:
  place = folder / DAMAGED
  place.mkdir(exist_ok=True)
  away = place / str(number)
  shutil.rmtree(away, ignore_errors=True)
  (folder / CHECKPOINTS / str(number)).rename(away)
  away.touch()
  _manifest(folder, number).unlink(missing_ok=True)
  for old in sorted(place.iterdir(), key=lambda x: x.stat().st_mtime_ns)[:-_KEPT]:
    shutil.rmtree(old, ignore_errors=True)


def had_some(folder: pathlib.Path) -> bool:
  """Whether a run has had checkpoints, of which those that were damaged are still there."""
  return any((folder / DAMAGED).glob("*"))
