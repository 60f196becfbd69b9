"""All that a run is, on disk: saved by Orbax beside the training, restored on any layout of workers."""

import json
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.experimental import multihost_utils

from train.checkpointing import integrity
from train.errors import UserError

# Numbers that stand for no checkpoint.
_NONE, _DAMAGED = -1, -2


def _read_all(path: pathlib.Path) -> None:
  """Reads all that a checkpoint has, below Orbax, which would ask other processes to take part."""
  for part in ("record/metadata", "state/_METADATA"):
    json.loads((path / part).read_bytes())
  store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{path / 'state'}/"}).result()
  for key in store.list().result():
    found = store.read(key).result()
    # Of a file that is gone it reads nothing.
    if found.state != "value" or not found.value:
      raise ValueError(f"{key!r} is missing")


class Checkpoints:
  """The checkpoints of one run.

  Each has the state (weights, the optimizer's state with every worker's memory, what their models keep)
  and a record that is JSON: where the run and its data stand, and what was measured so far. Where
  the data stands is a number, since batches are a function of it; so any layout of workers and
  processes can go on from it. Saving goes on beside the training.

  Args:
    folder: of the run, which all processes see.
    keep: how many to keep.
    config: what they are of, as JSON has it.
    say: what is told about checkpoints that are damaged.

  Raises:
    UserError: when there were checkpoints, and all of them are damaged.
  """

  def __init__(
    self, folder: pathlib.Path, keep: int, config: dict[str, Any], say: Callable[[str], None]
  ):
    self._folder, self._config = folder.absolute(), config
    last = _NONE
    if jax.process_index() == 0:
      found = integrity.last_whole(self._folder, self._readable, config, say)
      damaged = found is None and integrity.had_some(self._folder)
      last = _DAMAGED if damaged else _NONE if found is None else found
    if jax.process_count() > 1:
      # One reads and tidies up, all take the same.
      last = int(multihost_utils.broadcast_one_to_all(np.int32(last)))
    if last == _DAMAGED:
      raise UserError(
        f"All checkpoints of {folder} are damaged, the last of them are in {integrity.DAMAGED}/. Put one back, or "
        "begin again with --start_over."
      )
    self.last = None if last == _NONE else last
    self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seal")
    self._sealed: Future[None] | None = None
    self._manager = ocp.CheckpointManager(
      self._folder / integrity.CHECKPOINTS,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )

  def _seal(self, number: int) -> None:
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      integrity.seal(self._folder, number, self._config)

  def _readable(self, number: int) -> bool:
    """Whether all of a checkpoint can be read, by this process alone."""
    try:
      _read_all(self._folder / integrity.CHECKPOINTS / str(number))
    except (OSError, ValueError):
      return False
    return True

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
