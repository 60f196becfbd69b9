"""What goes wrong through no fault of the program: one line for who started it, and an exit code."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from configs.fields import FIELDS
from configs.schema import ConfigError as ConfigError

# Exit codes; those above 2 are sysexits.h's. A supervisor starts again after the last two, and 143 (SIGTERM).
FAILED, MISTAKE, DISK, GONE = 1, 2, 74, 75

# Arguments of the library whose names are not those of the config's fields.
_ARGUMENTS = {"values": "wire_values", "indices": "wire_indices", "densities": "density"}


class UserError(Exception):
  """Something that the user can mend; its text is one line that says what and how.

  Args:
    text: the line.
    code: that the program exits with.
  """

  def __init__(self, text: str, code: int = MISTAKE):
    super().__init__(text)
    self.code = code


@contextmanager
def named() -> Iterator[None]:
  """Errors of the library and of data, which name an argument first, name the config's field instead.

  Raises:
    ConfigError: for such an error.
  """
  try:
    yield
  except ConfigError:
    raise
  except (ValueError, TypeError) as error:
    text = str(error)
    found = re.match(r"(\w+)(?:\[\d+\])?(?=[ =])", text)
    name = found and _ARGUMENTS.get(found[1], found[1])
    if not found or name not in FIELDS:
      raise
    raise ConfigError(f"config.{name}{text[found.end() :]}") from error


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_PLACE = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


def of_disk(error: BaseException) -> str | None:
  """What a disk refused to do, if that is what an error comes from, and None otherwise.

  Writers in other languages report it in words alone.
  """
  cause: BaseException | None = error
  while cause is not None:
    for number in _DISK | _PLACE:
      reason = os.strerror(number)
      if isinstance(cause, OSError) and cause.errno == number:
        return f"{reason}: {cause.filename}" if cause.filename else reason
      if number in _DISK and reason in str(cause):
        return reason
    cause = cause.__cause__ or cause.__context__
  return None
