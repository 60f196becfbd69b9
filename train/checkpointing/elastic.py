"""A checkpoint of n workers opened by n′ others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rtopk_jax
from train.steps.totals import Totals
from train.steps.workers import RunState


def resize(
  state: RunState, totals: Totals, num_workers: int, per_epoch: int, say: Callable[[str], None]
) -> tuple[RunState, Totals]:
  """The state and the totals of a run, for another number of workers.

  Residual and momentum are dealt out by ``rtopk_jax.resize_workers``, what the models keep likewise. The
  epoch stays, and with other workers has another number of steps: the counts of steps that schedules go
  by are set to the same place in it.

  Args:
    state: what was saved, NumPy arrays.
    totals: likewise.
    num_workers: n′.
    per_epoch: exchanges an epoch with them.
    say: what is told about it.

  Returns:
    Both; arrays are NumPy's.
  """
  epoch, within = divmod(totals.step, totals.per_epoch)
  step = epoch * per_epoch + within * per_epoch // totals.per_epoch
  opt_state, model_state = state.opt_state, state.model_state
  if totals.num_workers != num_workers:
    opt_state = rtopk_jax.resize_workers(opt_state, num_workers)
    if jax.tree.leaves(model_state):
      model_state = rtopk_jax.resize_rows(model_state, num_workers)
    say(
      f"The checkpoint is of {totals.num_workers} workers and {num_workers} go on: residuals, momenta and "
      f"what models keep were dealt out anew, their means over workers stay. Step {totals.step} "
      f"of {totals.per_epoch} an epoch is step {step} of {per_epoch} an epoch."
    )
  counted = lambda path, x: (
    np.full_like(x, step) if _is_count(path) and x.ndim == 0 and x == totals.step else x
  )
  opt_state = jax.tree.map_with_path(counted, opt_state)
  totals.shift = max(0, totals.step + totals.shift - step)
  totals.step, totals.per_epoch, totals.num_workers = step, per_epoch, num_workers
  return RunState(state.params, opt_state, model_state), totals


def _is_count(path: tuple[Any, ...]) -> bool:
  return getattr(path[-1], "name", None) == "count"


def place(state: RunState, like: RunState) -> RunState:
  """NumPy arrays, which every process has whole, as arrays where they belong.

  Args:
    state: the arrays.
    like: ``ShapeDtypeStruct`` with shardings.

  Returns:
    The state.

  Raises:
    ValueError: for other shapes than those.
  """

  def put(path, x, target):
    # Messages in flight may be those of more workers, until they have arrived.
    in_flight = any(getattr(key, "name", None) == "in_flight" for key in path)
    if x.shape != target.shape and not (in_flight and x.shape[0] == target.shape[0]):
      raise ValueError(
        f"{jax.tree_util.keystr(path)} has shape {x.shape} in the checkpoint, and {target.shape} with "
        "this config."
      )
    return jax.make_array_from_callback(
      x.shape, target.sharding, lambda index: jnp.asarray(x[index])
    )

  return jax.tree.map_with_path(put, state, like)
