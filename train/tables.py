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
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import app, flags

from configs.rows import Row
from train import tables_report
from train.preemption import EXIT_CODE
from train.tables_paper import TABLES, Table

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

# How long a stopped run may take to save.
_GRACE_SECONDS = 120


def directory(workdir: pathlib.Path, table: Table, row: Row) -> pathlib.Path:
  """Where a row runs."""
  return workdir / f"table{table.number}" / row.text.replace(",", "-")


def command(table: Table, row: Row, workdir: pathlib.Path, fields: Sequence[str]) -> list[str]:
  """The command that runs a row.

  Args:
    table: of the paper.
    row: of the table.
    workdir: of all tables.
    fields: what of the config is changed, "name=value" each.

  Returns:
    Its words.
  """
  return [
    sys.executable,
    "-m",
    "train.main",
    f"--config=configs/{table.config}.py:{row.text}",
    f"--workdir={directory(workdir, table, row)}",
    *(f"--config.{field}" for field in fields),
  ]


def run(words: list[str], seconds: float | None) -> str:
  """Runs a command for a time at most.

  Args:
    words: of the command.
    seconds: after which it is asked to stop, as a preempted pod is; None: never.

  Returns:
    How it ended: "done", "stopped" before it was, or "failed (…)".
  """
  with subprocess.Popen(words) as process:
    try:
      status = process.wait(seconds)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGTERM)
      try:
        process.wait(_GRACE_SECONDS)
      except subprocess.TimeoutExpired:
        process.kill()
      return "stopped"
    except BaseException:
      process.terminate()
      raise
  ends = {0: "done", EXIT_CODE: "stopped"}
  return ends.get(status, f"failed (status {status})")


def chosen(table: Table, texts: Sequence[str]) -> list[Row]:
  """The rows to run.

  Args:
    table: of the paper.
    texts: rows by their text; empty for all.

  Returns:
    The rows, in the table's order.

  Raises:
    ValueError: for a text that is not a row of the table.
  """
  known = [row.text for row in table.rows]
  for text in texts:
    if text not in known:
      raise ValueError(
        f"row={text!r} is not in table {table.number}, which has {'; '.join(known)}."
      )
  return [row for row in table.rows if not texts or row.text in texts]


def remaining(row_minutes: float | None, end: float | None, now: float) -> float | None:
  """Seconds that the next row may take.

  Args:
    row_minutes: what a row may take; None: as long as it likes.
    end: when all rows must have ended, in seconds of the clock that ``now`` is of; None: never.
    now: the time.

  Returns:
    Seconds, 0 when there is no time left; None: as many as it likes.
  """
  limits = [60 * row_minutes] if row_minutes is not None else []
  limits += [max(0.0, end - now)] if end is not None else []
  return min(limits, default=None)


def collect(table: Table, workdir: pathlib.Path) -> str:
  """Writes the table and its picture from what is there.

  Args:
    table: of the paper.
    workdir: of all tables.

  Returns:
    The table in Markdown.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  outcomes = [tables_report.read(row, directory(workdir, table, row)) for row in table.rows]
  picture = f"figure{table.figure}.png"
  tables_report.draw(table, outcomes, workdir / picture)
  text = tables_report.markdown(table, outcomes, picture)
  (workdir / f"table{table.number}.md").write_text(text)
  return text


def main(_: list[str]) -> None:
  """Runs and collects."""
  table, workdir = TABLES[_TABLE.value], pathlib.Path(_WORKDIR.value)
  seeds = ",".join(_SEEDS.value)
  fields = [f"variant={_VARIANT.value}", f"seeds=({seeds},)", *_SET.value]
  try:
    rows = chosen(table, _ROWS.value)
  except ValueError as error:
    raise app.UsageError(str(error)) from None
  failed = False
  end = None if _BUDGET.value is None else time.monotonic() + 60 * _BUDGET.value
  for row in [] if _COLLECT.value else rows:
    seconds = remaining(_MINUTES.value, end, time.monotonic())
    if seconds == 0:
      print(f"{row.text}: not begun, the time is up", flush=True)
      continue
    words = command(table, row, workdir, fields)
    print(f"\n{shlex.join(['python', *words[1:]])}", flush=True)
    outcome = run(words, seconds)
    print(f"{row.text}: {outcome}", flush=True)
    failed |= outcome.startswith("failed")
    collect(table, workdir)
  print(f"\n{collect(table, workdir)}\nIt is in {workdir / f'table{table.number}.md'}")
  if failed:
    raise SystemExit(1)


if __name__ == "__main__":
  app.run(main)
