"""What all programs of ``train`` have in common: how they read their command line, and how they end."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from configs import schema
from train import overrides
from train.errors import DISK, MISTAKE, ConfigError, UserError


class Parser(argparse.ArgumentParser):
  """A parser whose complaints are ours, in one line.

  Args:
    program: the module.
    doc: its docstring.
  """

  def __init__(self, program: str, doc: str | None):
    super().__init__(
      prog=f"python -m {program}",
      description=doc,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    self.add_argument("--traceback", action="store_true", help="show where an error comes from")

  def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # pyright: ignore[reportIncompatibleMethodOverride]
    """Reads a command line; an option that there is not is told with the nearest one."""
    options, unknown = self.parse_known_args(args, namespace)
    if unknown:
      name = unknown[0].partition("=")[0]
      near = difflib.get_close_matches(name, self._option_string_actions, 1)
      raise UserError(
        f"{unknown[0]} is not an option{f'; did you mean {near[0]}?' if near else '; --help lists them.'}"
      )
    return options

  def error(self, message: str) -> NoReturn:
    """Refuses the command line."""
    raise UserError(f"{message[0].upper()}{message[1:].rstrip('.')}; --help lists what there is.")


class Switch(argparse.Action):
  """An option that ``--no…`` turns off, as absl's flags do; ``=true`` and ``=false`` work too."""

  def __init__(self, option_strings: Sequence[str], dest: str, **rest: Any):
    (name,) = option_strings
    super().__init__([name, name.replace("--", "--no", 1)], dest, nargs="?", **rest)

  def __call__(
    self,
    parser: argparse.ArgumentParser,
    namespace: argparse.Namespace,
    values: Any,
    option_string: str | None = None,
  ) -> None:
    """Sets it."""
    value = schema.read(bool, values or "true")
    if not isinstance(value, bool):
      parser.error(f"{option_string} must be true or false, got {values!r}")
    setattr(namespace, self.dest, value != str(option_string).startswith("--no"))


def with_config(
  parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, Any]:
  """Reads a command line that has a config.

  Args:
    parser: of the other arguments.
    arguments: of the program.

  Returns:
    The other arguments, and the config.

  Raises:
    UserError: for what cannot be read.
    ConfigError: for a field that is none, or of another type.
  """
  parser.add_argument("--config", metavar="FILE[:ROW]", help="what is trained, and how")
  rest, changes = overrides.split(arguments)
  options = parser.parse_args(rest)
  if not options.config:
    raise UserError("--config is missing, such as --config=configs/quickstart.py.")
  return options, overrides.load(options.config, changes)


class Told(SystemExit):
  """The user has been told of a mistake; the program ends with its code."""

  def __init__(self, error: Exception):
    super().__init__(error.code if isinstance(error, UserError) else MISTAKE)


def complain(error: Exception, arguments: Sequence[str]) -> None:
  """Tells the user of a mistake: one line, or with ``--traceback`` all of it."""
  if "--traceback" in arguments:
    traceback.print_exc()
  sys.stdout.flush()
  print(f"error: {error}", file=sys.stderr, flush=True)


def run(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> NoReturn:
  """Runs a program, and ends it with one line where the user can mend what went wrong.

  Args:
    main: the program, given its arguments.
    arguments: those; None: of this process.
  """
  arguments = sys.argv[1:] if arguments is None else arguments
  try:
    main(arguments)
  except (UserError, ConfigError) as error:
    complain(error, arguments)
    _end(Told(error))
  except Told as told:
    _end(told)
  except KeyboardInterrupt:
    print("error: interrupted; the same command goes on.", file=sys.stderr, flush=True)
    sys.exit(130)
  sys.exit(0)


def _end(told: Told) -> NoReturn:
  if told.code == DISK:
    # What is still to be written cannot be, and every file would say so once more.
    os._exit(DISK)
  raise told
