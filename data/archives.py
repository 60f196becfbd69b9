"""The official files that data sets are made from: found on disk or downloaded, and checked."""

import contextlib
import dataclasses
import gzip
import hashlib
import lzma
import pathlib
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import IO

from rich import progress

_CHUNK = 1 << 20


class PrepareError(Exception):
  """Why a data set can't be made, in one line."""


@dataclasses.dataclass(frozen=True)
class File:
  """A file that is known byte for byte.

  Attributes:
    name: of it, without folders.
    size: in bytes.
    sha256: of its bytes.
  """

  name: str
  size: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Archive:
  """A tar file whose members are known, or a single file, which is its own member.

  Attributes:
    url: where it comes from.
    members: the files in it that are wanted.
    file: the archive itself; None where nobody published its checksum, and the members' have to do.
  """

  url: str
  members: tuple[File, ...]
  file: File | None = None

  @property
  def name(self) -> str:
    """The name of the archive, without folders."""
    return self.url.rsplit("/", 1)[-1]


def _chunks(stream: IO[bytes], total: int | None, doing: str) -> Iterator[bytes]:
  """A stream piece by piece, with a bar."""
  columns = (*progress.Progress.get_default_columns(), progress.TransferSpeedColumn())
  with progress.Progress(*columns) as bars:
    bar = bars.add_task(doing, total=total)
    while chunk := stream.read(_CHUNK):
      yield chunk
      bars.advance(bar, len(chunk))


def _check(what: str, expected: File, size: int, sha256: str | None = None) -> None:
  if size < expected.size:
    raise PrepareError(f"{what} is truncated: it has {size:,} of {expected.size:,} bytes.")
  if size > expected.size:
    raise PrepareError(
      f"{what} has the wrong size: it has {size:,} bytes, expected {expected.size:,}."
    )
  if sha256 is not None and sha256 != expected.sha256:
    raise PrepareError(
      f"{what} has the wrong checksum: sha256 {sha256}, expected {expected.sha256}."
    )


def check(path: pathlib.Path, expected: File) -> None:
  """Compares a file with what it should be.

  Args:
    path: of the file.
    expected: what it should be.

  Raises:
    PrepareError: when it is something else.
  """
  size = path.stat().st_size
  _check(str(path), expected, size)  # before all of it is read
  digest = hashlib.sha256()
  with path.open("rb") as stream:
    for chunk in _chunks(stream, size, f"Checking {path.name}"):
      digest.update(chunk)
  _check(str(path), expected, size, digest.hexdigest())


def download(url: str, path: pathlib.Path, expected: File | None) -> None:
  """Downloads a file; what is interrupted leaves nothing under its name.

  Args:
    url: where from.
    path: where to.
    expected: what it should be, if that is known.

  Raises:
    PrepareError: when it can't be had, or is something else.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + ".part")
  try:
    with urllib.request.urlopen(url) as response, part.open("wb") as file:
      length = response.headers.get("Content-Length")
      for chunk in _chunks(response, int(length) if length else None, f"Downloading {path.name}"):
        file.write(chunk)
    if length and part.stat().st_size < int(length):
      raise PrepareError(
        f"The download of {url} broke off at {part.stat().st_size:,} of {int(length):,} bytes."
      )
    if expected is not None:
      check(part, expected)
    part.rename(path)
  except urllib.error.URLError as error:
    raise PrepareError(
      f"{url} can't be downloaded ({error.reason}); put {path.name} in a folder and name it with "
      "--manual_dir=DIR."
    ) from error
  finally:
    part.unlink(missing_ok=True)


def members(
  archive: Archive, manual_dir: pathlib.Path | None, downloads: pathlib.Path
) -> dict[str, bytes]:
  """The members of an archive, from the first place that has them.

  Args:
    archive: which.
    manual_dir: a folder that may have it, or its members, also in folders of their own, or each compressed
      as ``NAME.xz``.
    downloads: where it is downloaded to otherwise, unless it lies there already.

  Returns:
    The contents by name.

  Raises:
    PrepareError: when it can't be had, or is not what it should be.
  """
  if manual_dir is not None:
    loose = {file.name: _loose(manual_dir, file.name) for file in archive.members}
    if paths := [path for path in loose.values() if path is not None]:
      for name, path in loose.items():
        if path is None:
          raise PrepareError(f"{manual_dir} has {paths[0].name}, but not {name}.")
      contents = {name: _content(path) for name, path in loose.items() if path is not None}
      return _checked(contents, archive, str(manual_dir))
    path = next(manual_dir.rglob(archive.name), None)
    if path is None:
      others = ", ".join(file.name for file in archive.members if file.name != archive.name)
      lacks = f"neither {archive.name} nor {others}" if others else f"no {archive.name}"
      raise PrepareError(f"{manual_dir} has {lacks}.")
  else:
    path = downloads / archive.name
  if not path.exists():
    download(archive.url, path, archive.file)
  elif archive.file is not None:
    check(path, archive.file)
  return _checked(_extracted(path, archive), archive, str(path))


def _loose(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """A file in a folder, or a compressed one."""
  return next(folder.rglob(name), None) or next(folder.rglob(f"{name}.xz"), None)


def _content(path: pathlib.Path) -> bytes:
  if path.suffix != ".xz":
    return path.read_bytes()
  with reading(path):
    return lzma.decompress(path.read_bytes())


def _extracted(path: pathlib.Path, archive: Archive) -> dict[str, bytes]:
  wanted = {file.name for file in archive.members}
  if archive.name in wanted:
    return {archive.name: path.read_bytes()}
  found = {}
  with reading(path), tarfile.open(path) as tar:
    for entry in tar:
      name = pathlib.PurePosixPath(entry.name).name
      stream = tar.extractfile(entry) if name in wanted else None
      if stream is not None:
        found[name] = stream.read()
  return found


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
  """Where an archive is read: an error of its format names the file.

  Args:
    path: of the archive.

  Yields:
    Nothing.

  Raises:
    PrepareError: instead of what ``tarfile``, ``gzip`` and ``lzma`` raise.
  """
  try:
    yield
  except (tarfile.TarError, gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error) as error:
    raise PrepareError(f"{path} is truncated or damaged ({error}).") from error


def _checked(contents: dict[str, bytes], archive: Archive, where: str) -> dict[str, bytes]:
  for file in archive.members:
    if file.name not in contents:
      raise PrepareError(f"{where} has no {file.name}.")
    content = contents[file.name]
    digest = hashlib.sha256(content).hexdigest()
    _check(f"{file.name} in {where}", file, len(content), digest)
  return contents
