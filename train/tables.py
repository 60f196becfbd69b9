"""Runs, resumes or collects the rows of a table of the paper.

    python -m train.tables --table=1 --workdir=DIR --variant=small
    python -m train.tables --table=1 --workdir=DIR --budget=60 --set=model.dtype=bfloat16

Every row is a run of ``train.main`` in a directory of its own, by the command that is printed, so a row can
be run elsewhere and collected here. A row that was stopped goes on where it was, one that is done is left
as it is. With ``--budget`` all rows together have so many minutes: they run in their order, the one that
is running then is saved, and the same command goes on with it. What is there so far is written to ``table1.md``
and ``figure2.png``.
"""

import pathlib
import shlex
import time
from collections.abc import Sequence
from typing import Any

from configs.rows import Row
from train.checkpointing import folder
from train.command import overrides, program
from train.errors import FAILED, ConfigError, UserError
from train.paper.printed import TABLES, Table


def main(arguments: Sequence[str]) -> None:
  """Runs and collects."""
  parser = program.Parser("train.tables", __doc__)
  parser.add_argument("--table", type=int, choices=TABLES, help="which one of the paper")
  parser.add_argument("--workdir", metavar="DIR", help="where rows, tables and pictures go")
  parser.add_argument(
    "--row",
    action="append",
    default=[],
    metavar="ROW",
    help="this row alone, such as distributed,rtopk,0.99; may be given several times",
  )
  parser.add_argument("--variant", default="full", help="of the config: full, or small")
  parser.add_argument("--seeds", default="0", metavar="SEED,…", help="separated by commas")
  parser.add_argument(
    "--minutes", type=float, help="that a row may take; then it is stopped, and saved"
  )
  parser.add_argument(
    "--budget", type=float, help="minutes of all rows together; then the running one is saved"
  )
  parser.add_argument(
    "--set", action="append", default=[], metavar="FIELD=VALUE", help="of the config, as epochs=3"
  )
  parser.add_argument(
    "--collect", action=program.Switch, default=False, help="run nothing; write what is there"
  )
  options = parser.parse_args(arguments)
  if options.table is None:
    raise UserError("--table is missing, such as --table=1.")
  if options.workdir is None:
    raise UserError("--workdir is missing, such as --workdir=runs/tables.")
  for name in ("minutes", "budget"):
    value = getattr(options, name)
    if value is not None and not 0 <= value < float("inf"):
      raise UserError(f"--{name} must be at least 0, got {value}.")
  table, workdir = TABLES[options.table], folder.local(options.workdir)
  with folder.told(workdir):
    _run(options, table, workdir)


def _run(options: Any, table: Table, workdir: pathlib.Path) -> None:
  from train.paper import runs

  try:
    rows = runs.chosen(table, options.row)
  except ValueError as error:
    raise UserError(f"--{error}") from error
  fields = [f"variant={options.variant}", f"seeds=({options.seeds},)", *options.set]
  if not options.collect:
    _check(table, rows, fields)
  failed = False
  end = None if options.budget is None else time.monotonic() + 60 * options.budget
  for row in [] if options.collect else rows:
    seconds = runs.remaining(options.minutes, end, time.monotonic())
    if seconds == 0:
      print(f"{row.text}: not begun, the time is up", flush=True)
      continue
    words = runs.command(table, row, workdir, fields)
    print(f"\n{shlex.join(['python', *words[1:]])}", flush=True)
    outcome = runs.run(words, seconds)
    print(f"{row.text}: {outcome}", flush=True)
    failed |= outcome.startswith("failed")
    runs.collect(table, workdir)
  print(f"\n{runs.collect(table, workdir)}\nIt is in {workdir / f'table{table.number}.md'}")
  if failed:
    raise SystemExit(FAILED)


def _check(table: Table, rows: Sequence[Row], fields: Sequence[str]) -> None:
  """Refuses what is wrong before a row runs, since every row would say it."""
  from train.planning import experiment
  from train.tasks.make import make_task

  _, changes = overrides.split(f"--config.{field}" for field in fields)
  for i, row in enumerate(rows):
    try:
      config = experiment.settled(overrides.load(f"configs/{table.config}.py:{row.text}", changes))
      if not i:
        # All rows have one model and one data set.
        make_task(config)
    except (UserError, ConfigError) as error:
      raise UserError(f"{row.text}: {error}") from error


if __name__ == "__main__":
  program.run(main)
