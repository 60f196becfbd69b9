"""SIGTERM, which clusters send before they take a machine away: finish the step, save, leave."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM


class Preempted(SystemExit):
  """The run was asked to end, and has saved where it was."""

  def __init__(self):
    super().__init__(EXIT_CODE)


class Preemption:
  """Listens for SIGTERM while it is entered.

  With several processes it is enough that one of them is told; JAX agrees with the others on the step.
  """

  def __init__(self):
    self._told = False
    self._asked = 0
    self._before: Any = None

  def __enter__(self) -> "Preemption":
    # Only the main thread may listen. Between processes JAX's own service does.
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, number: int, frame: FrameType | None) -> None:
    self._told = True

  def reached(self) -> bool:
    """Whether to save now; asked by every process after every step."""
    self._asked += 1
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(self._asked)
    return self._told
