"""How far a job is: a bar with the time left on a terminal, a line a run elsewhere."""

import sys
from types import TracebackType

import jax
from rich import progress


class Progress:
  """Progress of a job that is a number of steps, divided into runs.

  Of several processes the first one shows it.

  Args:
    total: steps of all runs together.
  """

  def __init__(self, total: int):
    self._speaks = jax.process_index() == 0
    self._bar = progress.Progress(
      progress.TextColumn("{task.description}"),
      progress.BarColumn(),
      progress.TaskProgressColumn(),
      progress.TextColumn("left:"),
      progress.TimeRemainingColumn(elapsed_when_finished=True),
      disable=not (self._speaks and sys.stdout.isatty()),
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

  def advance(self, doing: str, steps: int) -> None:
    """Some steps done, of the run named."""
    self._bar.update(self._task, advance=steps, description=doing)

  def line(self, text: str) -> None:
    """A line that stays."""
    if self._speaks:
      self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
