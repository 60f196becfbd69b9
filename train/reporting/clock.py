"""How long a run takes, and how long it will."""

import time


class Clock:
  """How long a run takes.

  Args:
    step: where it stands.
    seconds: that earlier processes took.
  """

  def __init__(self, step: int, seconds: float):
    self._start = self._since = self._epoch = time.monotonic()
    self._first = self._logged = step
    self._warm: tuple[int, float] | None = None
    self._before = seconds

  def seconds(self) -> float:
    """Of the run, with what earlier processes took."""
    return self._before + time.monotonic() - self._start

  def left(self, step: int, steps: int) -> float:
    """Seconds to the last step, at the pace since the first one of this process, which compiles."""
    now = time.monotonic()
    if self._warm is None:
      self._warm = (step, now)
    first, since = self._warm if step > self._warm[0] else (self._first, self._start)
    return (steps - step) * (now - since) / (step - first)

  def pace(self, step: int) -> float:
    """Steps a second since this was asked last."""
    now = time.monotonic()
    pace = (step - self._logged) / (now - self._since)
    self._logged, self._since = step, now
    return pace

  def epoch(self) -> float:
    """Seconds since this was asked last."""
    now = time.monotonic()
    seconds, self._epoch = now - self._epoch, now
    return seconds
