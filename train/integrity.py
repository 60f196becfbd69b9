"""Which checkpoints are whole: digests of their files, written after each was complete."""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator

from train.writer import replace

CHECKPOINTS, DIGESTS, DAMAGED = "checkpoints", "digests", "damaged"


def _digest(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: pathlib.Path, number: int) -> pathlib.Path:
  return folder / DIGESTS / f"{number}.json"


def _numbers(folder: pathlib.Path) -> Iterator[int]:
  """Checkpoints by number, the last one first."""
  found = folder.glob(f"{CHECKPOINTS}/*")
  return iter(sorted((int(x.name) for x in found if x.name.isdigit()), reverse=True))


def seal(folder: pathlib.Path, number: int) -> None:
  """Writes down what a complete checkpoint is made of.

  Args:
    folder: of the run.
    number: of the checkpoint.
  """
  checkpoint = folder / CHECKPOINTS / str(number)
  files = {
    path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _digest(path)]
    for path in sorted(checkpoint.rglob("*"))
    if path.is_file()
  }
  manifests = folder / DIGESTS
  manifests.mkdir(exist_ok=True)
  replace(_manifest(folder, number), json.dumps(files, indent=1))
  kept = {f"{number}.json" for number in _numbers(folder)}
  for old in manifests.glob("*.json"):
    if old.name not in kept:
      old.unlink()


def damage(folder: pathlib.Path, number: int) -> str | None:
  """What is wrong with a checkpoint.

  Args:
    folder: of the run.
    number: of the checkpoint.

  Returns:
    A clause, or None when nothing is.
  """
  manifest = _manifest(folder, number)
  if not manifest.exists():
    return "was not complete"
  for name, (size, digest) in json.loads(manifest.read_text()).items():
    path = folder / CHECKPOINTS / str(number) / name
    if not path.exists():
      return f"lacks {name}"
    if path.stat().st_size != size:
      return f"has {path.stat().st_size} bytes of {name}, not {size}"
    if _digest(path) != digest:
      return f"has other bytes in {name} than were written"
  return None


def last_whole(folder: pathlib.Path, say: Callable[[str], None]) -> int | None:
  """The last checkpoint that is as it was written; later ones are put away.

  Args:
    folder: of the run.
    say: what is told about them.

  Returns:
    Its number, or None when there is none.
  """
  for number in _numbers(folder):
    wrong = damage(folder, number)
    if wrong is None:
      return number
    say(f"Checkpoint {number} {wrong}; it is now in {folder / DAMAGED}. Using the one before.")
    (folder / DAMAGED).mkdir(exist_ok=True)
    away = folder / DAMAGED / str(number)
    shutil.rmtree(away, ignore_errors=True)
    (folder / CHECKPOINTS / str(number)).rename(away)
    _manifest(folder, number).unlink(missing_ok=True)
  return None
