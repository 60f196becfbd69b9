"""All that a run is, on disk: saved by Orbax beside the training, restored on any layout of workers."""

import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from train import integrity


class Checkpoints:
  """The checkpoints of one run.

  Each has the state (weights, the optimizer's state with every worker's memory, what their models keep)
  and a record that is JSON: where the run and its data stand, and what was measured so far. Where
  the data stands is a number, since batches are a function of it; so any layout of workers and
  processes can go on from it. Saving goes on beside the training.

  Args:
    folder: of the run, which all processes see.
    keep: how many to keep.
    say: what is told about checkpoints that are damaged.
  """

  def __init__(self, folder: pathlib.Path, keep: int, say: Callable[[str], None]):
    self._folder = folder.absolute()
    last = None
    if jax.process_index() == 0:
      last = integrity.last_whole(self._folder, say)
    if jax.process_count() > 1:
      # One reads and tidies up, all take the same.
      agreed = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if last is None else last)))
      last = None if agreed < 0 else agreed
    self.last = last
    self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seal")
    self._sealed: Future[None] | None = None
    self._manager = ocp.CheckpointManager(
      self._folder / integrity.CHECKPOINTS,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )

  def _seal(self, number: int) -> None:
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      integrity.seal(self._folder, number)

  def wait(self) -> None:
    """Waits until what is being saved is complete."""
    if self._sealed is not None:
      self._sealed.result()

  def save(self, number: int, state: Any, record: dict[str, Any]) -> None:
    """Begins to save; the state may change as soon as this returns.

    Args:
      number: of the checkpoint, larger than those before: the steps taken.
      state: a tree of arrays.
      record: what JSON can hold.
    """
    if number == self.last:
      return
    self.wait()
    self.last = number
    self._manager.save(
      number,
      force=True,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
    )
    self._sealed = self._pool.submit(self._seal, number)

  def record(self) -> dict[str, Any]:
    """The record of the last checkpoint."""
    restored = self._manager.restore(
      self.last, args=ocp.args.Composite(record=ocp.args.JsonRestore())
    )
    return restored["record"]

  def state(self, like: Any) -> Any:
    """The state of the last checkpoint.

    Args:
      like: a tree of ``ShapeDtypeStruct`` with shardings; or of NumPy arrays, to get such, in the shapes
        that were saved.

    Returns:
      The state.
    """
    restored = self._manager.restore(
      self.last, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
    )
    return restored["state"]

  def close(self) -> None:
    """Waits until all is saved."""
    self._pool.shutdown()
    self._manager.close()
    self.wait()
