"""A profile of a few steps, for TensorBoard's profile plugin, Perfetto or XProf."""

import pathlib

import jax


class Profile:
  """Records the steps from one on.

  Args:
    folder: where the profile goes.
    first: the first step recorded, counted from the start of the process; the first one compiles.
    steps: how many; 0: none.
  """

  def __init__(self, folder: pathlib.Path, first: int, steps: int):
    self._folder, self._first, self._last = folder, first, first + steps - 1
    self._taken = 0
    self._running = False

  def before(self) -> None:
    """A step is about to be dispatched."""
    self._taken += 1
    if self._first <= self._taken <= self._last and not self._running:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, results: object) -> None:
    """A step was dispatched; these are its results."""
    if self._running and self._taken == self._last:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Ends a recording that is under way."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
