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

from absl import app, flags

from train.paper import runs
from train.paper.printed import TABLES

_TABLE = flags.DEFINE_integer("table", None, "Which table, 1 to 5.", 1, 5, required=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where rows, tables and pictures go.", required=True
)
_ROWS = flags.DEFINE_multi_string(
  "row", [], "Only this row, such as distributed,rtopk,0.99; may be given several times."
)
_VARIANT = flags.DEFINE_string("variant", "full", "The config's variant: full, or small.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, separated by commas.")
_MINUTES = flags.DEFINE_float(
  "minutes", None, "Time a row may take; then it is stopped, and saved.", 0
)
_BUDGET = flags.DEFINE_float(
  "budget", None, "Minutes that all rows may take together; then the running one is saved.", 0
)
_SET = flags.DEFINE_multi_string("set", [], "Another field of the config, such as epochs=3.")
_COLLECT = flags.DEFINE_bool("collect", False, "Run nothing; write what is there.")


def main(_: list[str]) -> None:
  """Runs and collects."""
  table, workdir = TABLES[_TABLE.value], pathlib.Path(_WORKDIR.value)
  seeds = ",".join(_SEEDS.value)
  fields = [f"variant={_VARIANT.value}", f"seeds=({seeds},)", *_SET.value]
  try:
    rows = runs.chosen(table, _ROWS.value)
  except ValueError as error:
    raise app.UsageError(str(error)) from None
  failed = False
  end = None if _BUDGET.value is None else time.monotonic() + 60 * _BUDGET.value
  for row in [] if _COLLECT.value else rows:
    seconds = runs.remaining(_MINUTES.value, end, time.monotonic())
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
    raise SystemExit(1)


if __name__ == "__main__":
  app.run(main)
