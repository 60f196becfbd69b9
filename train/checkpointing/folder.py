"""The work directory: a folder of this machine, held by one run, and what is said when its disk refuses."""

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import pathlib
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

from train.errors import DISK, UserError, of_disk

LOCK = "lock"


def local(workdir: str, flag: str = "--workdir") -> pathlib.Path:
  """The path of a work directory, or of something else that is written.

  Remote folders are refused: that a run survives being killed at any moment rests on renames that are
  atomic, on fsync and on locks, which stores of objects do not have. A mounted folder has them.

  Args:
    workdir: as the user gave it.
    flag: by which it was given.

  Returns:
    The path.

  Raises:
    UserError: for an address, and for what lies within a file.
  """
  if re.match(r"[\w+.-]+:/", workdir):
    raise UserError(
      f"{flag} must be a folder of this machine, got {workdir!r}; mount it, or copy what is done there."
    )
  if not workdir:
    raise UserError(f"{flag} is empty; name a folder.")
  path = pathlib.Path(os.path.expanduser(workdir))
  for part in (path, *path.parents):
    if os.path.isfile(part):
      raise UserError(f"{flag} must be a folder, got {workdir!r}, and {part} is a file.")
  return path


def make(path: pathlib.Path) -> None:
  """Makes a folder, with those that it lies in.

  Args:
    path: the folder.

  Raises:
    UserError: where none can be made, as in /proc.
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except FileNotFoundError as error:
    raise UserError(f"{path} cannot be made: {error.strerror}.", DISK) from error


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
  """Makes a folder, and holds it against other runs as long as this process lives.

  Args:
    path: the folder.

  Raises:
    UserError: when it cannot be made, and when another run has it; it says which.
  """
  make(path)
  lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
  try:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = (
        os.pread(lock, 200, 0).decode(errors="replace").strip() or "which has not said its name"
      )
      raise UserError(f"Another run, {holder}, is training in {path}.") from None
    except OSError as error:
      # Some network file systems have no locks.
      if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
    yield
  finally:
    os.close(lock)


@contextlib.contextmanager
def told(path: pathlib.Path) -> Iterator[None]:
  """Turns what a disk refuses into one line that says what is safe.

  Args:
    path: the work directory.

  Raises:
    UserError: for such an error.
  """
  log = logging.getLogger("absl")
  log.addFilter(_is_news)
  hook = sys.unraisablehook
  sys.unraisablehook = lambda left: (
    None if "Event loop is closed" in str(left.exc_value) else hook(left)
  )
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    reason = of_disk(error)
    if reason is None:
      raise
    raise UserError(f"{path} cannot be written to: {reason}; {_safe(path)}.", DISK) from error
  finally:
    log.removeFilter(_is_news)
    sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
  """Every thread of Orbax that a disk refuses logs it with a traceback; it is told once, at the end."""
  error = record.exc_info[1] if record.exc_info else None
  return error is None or of_disk(error) is None


def _safe(path: pathlib.Path) -> str:
  last = [
    (seal.stat().st_mtime_ns, int(seal.stem), seal.parent.parent.name)
    for seal in path.glob("runs/*/digests/*.json")
    if seal.stem.isdigit()
  ]
  if not last:
    return "nothing of it was saved yet"
  _, step, run = max(last)
  return f"the last checkpoint is step {step} of {run}, from which the same command goes on"


def dumps(values: Any, **options: Any) -> str:
  """JSON that every reader takes: what is not finite is null."""
  return json.dumps(finite(values), allow_nan=False, **options)


def finite(values: Any) -> Any:
  """Values with None for numbers that are not finite."""
  if isinstance(values, dict):
    return {key: finite(value) for key, value in values.items()}
  if isinstance(values, list | tuple):
    return [finite(value) for value in values]
  return None if isinstance(values, float) and not math.isfinite(values) else values


def replace(path: pathlib.Path, text: str) -> None:
  """Writes a file in whole or not at all."""
  new = path.with_name(path.name + ".new")
  with open(new, "w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  new.replace(path)
