"""How far a job is: a bar with loss, score and the time left on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

import jax
from rich import progress
from rich.console import Console

# A job that is not watched says how it is at the end of an epoch, and at most this often.
SECONDS_BETWEEN_LINES = 60.0


class Progress:
  """Progress of a job that is several runs of some steps.

  Of several processes the first one shows it.

  Args:
    steps: of all runs together.
    methods: how many of them compile programs of their own.
    every: seconds between two lines, at least.
    console: a terminal, or what stands for one; None: standard output.
  """

  def __init__(
    self,
    steps: int,
    methods: int,
    every: float = SECONDS_BETWEEN_LINES,
    console: Console | None = None,
  ):
    self._speaks, self._every = jax.process_index() == 0, every
    terminal = sys.stdout.isatty() if console is None else console.is_terminal
    self._watched = self._speaks and terminal
    self._bar = progress.Progress(
      progress.TextColumn("{task.description}"),
      progress.BarColumn(bar_width=24),
      progress.TaskProgressColumn(),
      progress.TextColumn("{task.fields[said]}"),
      console=console,
      disable=not self._watched,
    )
    self._task = self._bar.add_task("", total=steps, said="")
    self._steps, self._done, self._here = steps, 0, 0
    self._methods, self._compiled = methods, 0
    self._begun = self._said = time.monotonic()
    self._compiling, self._first = 0.0, True
    self._name, self._step, self._total = "", 0, 0
    self._loss: float | None = None
    self._score, self._sent = "", 0

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

  def begin(self, name: str, step: int, total: int) -> None:
    """A run begins, or goes on.

    Args:
      name: of the run.
      step: where it stands.
      total: where it ends.
    """
    self._name, self._step, self._total = name, step, total
    self._loss, self._score, self._sent = None, "", 0
    self._done += step
    self._run_begun, self._run_here, self._first = time.monotonic(), 0, True
    self._bar.update(self._task, completed=self._done, description=name, said="")

  def step(self, step: int, loss: float | None, sent: int) -> None:
    """A step is over.

    Args:
      step: its number.
      loss: of it, where the task has one.
      sent: bytes so far.
    """
    now = time.monotonic()
    if self._first:
      # What the first step takes longer is compiling, which the next method will do too.
      self._first, self._compiled = False, self._compiled + 1
      self._compiling += now - self._run_begun
      self._run_begun = now
    else:
      self._here, self._run_here = self._here + 1, self._run_here + 1
    self._done, self._step, self._loss, self._sent = self._done + 1, step, loss, sent
    if self._watched:
      self._bar.update(self._task, completed=self._done, said=self._status(short=True))
    elif now - self._said >= self._every:
      self._say()

  def score(self, text: str) -> None:
    """The last evaluation of this run came to that."""
    self._score = text
    if self._watched:
      self._bar.update(self._task, said=self._status(short=True))

  def epoch(self) -> None:
    """An epoch is over."""
    if not self._watched and time.monotonic() - self._said >= self._every:
      self._say()

  def left(self) -> float | None:
    """Seconds to the end of the job: its steps, evaluations and compilations; None: not known yet."""
    if not self._here:
      return None
    spent = time.monotonic() - self._begun - self._compiling
    mean = self._compiling / self._compiled
    to_compile = max(self._methods - self._compiled, 0)
    return (self._steps - self._done) * spent / self._here + to_compile * mean

  def _status(self, short: bool) -> str:
    parts = [] if short else [f"step {self._step} of {self._total}"]
    if self._loss is not None:
      parts.append(f"loss {self._loss:.4g}")
    if self._score:
      parts.append(self._score)
    seconds = time.monotonic() - self._run_begun
    if self._run_here:
      parts.append(f"{self._run_here / seconds:.3g} steps/s")
    if not short:
      parts.append(f"{self._sent / 1e6:.2f} MB sent")
    left = self.left()
    if left is not None:
      parts.append(f"{_duration(left)} left")
    return ", ".join(parts)

  def _say(self) -> None:
    self._said = time.monotonic()
    self.line(f"{self._name}: {self._status(short=False)}")

  def line(self, text: str) -> None:
    """A line that stays."""
    if self._speaks:
      self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
  """A time in the unit that suits it."""
  for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
    if seconds >= 2 * length:
      return (
        f"{seconds / length:.0f} {unit}" if length < 3_600 else f"{seconds / length:.1f} {unit}"
      )
  return f"{seconds:.0f} s"
