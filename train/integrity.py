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


def _manifest(folder: pathlib.Path, step: int) -> pathlib.Path:
  return folder / DIGESTS / f"{step}.json"


def _steps(folder: pathlib.Path) -> Iterator[int]:
  """Steps that have a checkpoint, the last one first."""
  found = folder.glob(f"{CHECKPOINTS}/*")
  return iter(sorted((int(x.name) for x in found if x.name.isdigit()), reverse=True))


def seal(folder: pathlib.Path, step: int) -> None:
  """Writes down what a complete checkpoint is made of.

  Args:
    folder: of the run.
    step: of the checkpoint.
  """
  checkpoint = folder / CHECKPOINTS / str(step)
  files = {
    path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _digest(path)]
    for path in sorted(checkpoint.rglob("*"))
    if path.is_file()
  }
  manifests = folder / DIGESTS
  manifests.mkdir(exist_ok=True)
  replace(_manifest(folder, step), json.dumps(files, indent=1))
  kept = {f"{step}.json" for step in _steps(folder)}
  for old in manifests.glob("*.json"):
    if old.name not in kept:
      old.unlink()


def damage(folder: pathlib.Path, step: int) -> str | None:
  """What is wrong with a checkpoint.

  Args:
    folder: of the run.
    step: of the checkpoint.

  Returns:
    A clause, or None when nothing is.
  """
  manifest = _manifest(folder, step)
  if not manifest.exists():
    return "was not complete"
  for name, (size, digest) in json.loads(manifest.read_text()).items():
    path = folder / CHECKPOINTS / str(step) / name
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
    Its step, or None when there is none.
  """
  for step in _steps(folder):
    wrong = damage(folder, step)
    if wrong is None:
      return step
    say(
      f"The checkpoint of step {step} {wrong}; it is now in {folder / DAMAGED}. Using the one before."
    )
    (folder / DAMAGED).mkdir(exist_ok=True)
    away = folder / DAMAGED / str(step)
    shutil.rmtree(away, ignore_errors=True)
    (folder / CHECKPOINTS / str(step)).rename(away)
    _manifest(folder, step).unlink(missing_ok=True)
  return None
