"""The rows of a table of the paper as runs of ``train.main``, each in a directory of its own."""

import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

from configs.rows import Row
from train.loop.preemption import EXIT_CODE
from train.paper import results
from train.paper.printed import Table

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
  outcomes = [results.read(row, directory(workdir, table, row)) for row in table.rows]
  picture = f"figure{table.figure}.png"
  results.draw(table, outcomes, workdir / picture)
  text = results.markdown(table, outcomes, picture)
  (workdir / f"table{table.number}.md").write_text(text)
  return text
