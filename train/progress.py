"""How far a job is: a bar with the time left on a terminal, a line a run elsewhere."""

import sys
from types import TracebackType

from rich import progress


class Progress:
  """Progress of a job that is a number of steps, divided into runs.

  Args:
    total: steps of all runs together.
  """

  def __init__(self, total: int):
    self._bar = progress.Progress(
      progress.TextColumn("{task.description}"),
      progress.BarColumn(),
      progress.TaskProgressColumn(),
      progress.TextColumn("left:"),
      progress.TimeRemainingColumn(elapsed_when_finished=True),
      disable=not sys.stdout.isatty(),
    )
    self._task = self._bar.add_task("", total=total)

  def __enter__(self) -> "Progress":
    self._bar.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._bar.stop()

  def advance(self, doing: str) -> None:
    """One step done, of the run named."""
    self._bar.update(self._task, advance=1, description=doing)

  def line(self, text: str) -> None:
    """A line that stays."""
    self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
