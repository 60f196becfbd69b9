"""What all programs of ``train`` have in common: how they read their command line, and how they end."""

import argparse
import ast
import difflib
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import logging

from configs import schema
from configs.fields import FIELDS
from train.command import overrides
from train.errors import DISK, MISTAKE, ConfigError, UserError

# What shells say of a program that Ctrl-C has ended.
INTERRUPTED = 130


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
  parser.epilog = _epilog()
  rest, changes = overrides.split(arguments)
  options = parser.parse_args(rest)
  if not options.config:
    raise UserError("--config is missing, such as --config=configs/quickstart.py.")
  return options, overrides.load(options.config, changes)


def with_run(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
  """Reads a command line that names a run of a work directory, and a checkpoint of it.

  Args:
    parser: of the other arguments.
    arguments: of the program.

  Returns:
    All arguments.

  Raises:
    UserError: for what cannot be read, and without a work directory.
  """
  parser.add_argument("--workdir", metavar="DIR", help="where it was trained")
  parser.add_argument("--method", help="of the run, such as rtopk")
  parser.add_argument("--seed", type=int, help="of the run")
  parser.add_argument("--step", type=int, help="of the checkpoint; the last one without it")
  parser.add_argument("--data_dir", metavar="DIR", help="where the data set is now")
  options = parser.parse_args(arguments)
  if not options.workdir:
    raise UserError("--workdir is missing, such as --workdir=runs/quickstart.")
  logging.set_verbosity(logging.WARNING)
  return options


def _epilog() -> str:
  """Configs, fields and examples, for ``--help``."""
  lines = ["configs:"]
  for path in sorted(pathlib.Path("configs").glob("*.py")):
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    if "get_config" in path.read_text() and path.stem not in ("default", "variants"):
      lines.append(f"  {path}: {doc.splitlines()[0]}")
  lines += [
    "",
    "fields are set by --config.FIELD=VALUE; the last one counts:",
    "  --config.epochs=3 --config.methods=rtopk,topk --config.seeds=0,1 --config.model.width=32",
    "  --config.error_feedback=false, or --noconfig.error_feedback; --config.clip_norm=None",
    "  --config.task=package.module:name --config.task_options.noise=0.1",
    "",
    "fields:",
  ]
  lines += _described(FIELDS)
  lines += [
    "",
    "a config may have other defaults, and its model other fields; --explain shows them.",
  ]
  return "\n".join(lines)


def _described(fields: Mapping[str, schema.Field], prefix: str = "") -> list[str]:
  lines = []
  for name, field in fields.items():
    if field.fields is not None:
      lines += [f"  {prefix}{name}: {field.says}", *_described(field.fields, f"{prefix}{name}.")]
    elif name != "variants":
      lines.append(f"  {prefix}{name}={field.default!r}: {field.says}")
      if field.choices or field.least is not None or field.above is not None:
        lines[-1] += f" ({field.wanted})"
  return lines


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
    sys.exit(INTERRUPTED)
  sys.exit(0)


def _end(told: Told) -> NoReturn:
  if told.code == DISK:
    # What is still to be written cannot be, and every file would say so once more.
    os._exit(DISK)
  raise told
