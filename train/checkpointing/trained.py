"""What a run has learnt, read from its checkpoints: weights, statistics, config and task."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from configs import default
from configs.fields import FIELDS
from train.checkpointing import compatibility, folder, integrity
from train.errors import UserError
from train.steps.workers import mean_over_workers
from train.tasks.make import make_task
from train.tasks.task import Task


class Trained(NamedTuple):
  """A run at one of its checkpoints.

  Attributes:
    params: the weights, NumPy arrays.
    statistics: what evaluations need beside them, the mean over workers.
    config: the experiment.
    task: that was trained; ``task.evaluate(params, statistics)`` is its score.
    method: of the run.
    seed: of the run.
    step: of the checkpoint.
  """

  params: Any
  statistics: Any
  config: Any
  task: Task
  method: str
  seed: int
  step: int


def runs(workdir: str, method: str | None = None, seed: int | None = None) -> list[tuple[str, int]]:
  """The runs of a work directory that fit.

  Args:
    workdir: of the job.
    method: of the runs; None: any.
    seed: of the runs; None: any.

  Returns:
    Their methods and seeds, at least one.

  Raises:
    UserError: when there is none.
  """
  path = folder.local(workdir)
  if not path.is_dir():
    raise UserError(f"--workdir={workdir} is no folder that is there.")
  names = [x.name.rsplit("-", 1) for x in path.glob("runs/*-*") if x.is_dir()]
  there = sorted((own, int(number)) for own, number in names if number.isdigit())
  if not there:
    raise UserError(f"--workdir={workdir} has no run in it; train.main makes them.")
  fits = [(own, n) for own, n in there if method in (None, own) and seed in (None, n)]
  if not fits:
    given = {"--method": method, "--seed": seed}
    asked = " ".join(f"{flag}={value}" for flag, value in given.items() if value is not None)
    raise UserError(f"{asked} names no run of {workdir}, which has {_listed(there)}.")
  return fits


def _listed(found: list[tuple[str, int]]) -> str:
  return ", ".join(f"{method} seed {seed}" for method, seed in found)


def load_trained(
  workdir: str,
  method: str | None = None,
  seed: int | None = None,
  step: int | None = None,
  data_dir: str | None = None,
) -> Trained:
  """Loads a run from a checkpoint.

  Args:
    workdir: of the job.
    method: of the run; None: the only one.
    seed: of the run; None: the only one.
    step: of the checkpoint; None: the last one that is whole.
    data_dir: where the data set is now; None: where it was.

  Returns:
    The run.

  Raises:
    UserError: when there is no such run or checkpoint, or it is damaged.
  """
  path = folder.local(workdir)
  (method, seed), *others = found = runs(workdir, method, seed)
  if others:
    raise UserError(
      f"{workdir} has several runs, {_listed(found)}; name one by --method and --seed."
    )
  run = path / "runs" / f"{method}-{seed}"
  number = _checkpoint(run, step)
  config = load_config(path)
  if data_dir is not None:
    config.data_dir = data_dir
  task = make_task(config)
  shapes = dict(
    zip(("params", "model_state"), jax.eval_shape(task.init, jax.random.key(0)), strict=True)
  )
  stored = _read((run / integrity.CHECKPOINTS / str(number)).absolute())
  params, model_state = (
    jax.tree.map_with_path(lambda where, _, name=name: _at(stored[name], where), tree)
    for name, tree in shapes.items()
  )
  statistics = jax.device_get(mean_over_workers(None)(task.statistics(model_state)))
  return Trained(params, statistics, config, task, method, seed, number)


def load_config(path: pathlib.Path) -> Any:
  """The config of a work directory, as training had it."""
  fields = compatibility.read(path / compatibility.CONFIG) or integrity.config(path)
  if fields is None:
    raise UserError(f"{path} has no run: there is no {compatibility.CONFIG} in it.")
  config = default.get_config()
  for name, value in fields.items():
    if name in FIELDS and isinstance(value, dict):
      with config.unlocked():
        config[name] = _tuples(value)
    elif name in FIELDS:
      config[name] = tuple(value) if isinstance(value, list) else value
  return config


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _tuples(inner) for name, inner in value.items()}
  return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


def _checkpoint(run: pathlib.Path, step: int | None) -> int:
  whole = sorted(int(x.stem) for x in run.glob(f"{integrity.DIGESTS}/*.json") if x.stem.isdigit())
  if step is not None and step not in whole:
    raise UserError(f"--step={step} is no checkpoint of {run}, which has {whole or 'none'}.")
  for number in reversed(whole if step is None else [step]):
    wrong = integrity.damage(run, number)
    if wrong is None:
      return number
    if step is not None:
      raise UserError(f"Checkpoint {step} of {run} {wrong}.")
  raise UserError(f"{run} has no checkpoint that is whole.")


def _read(path: pathlib.Path) -> dict[str, Any]:
  """The state of a checkpoint, as NumPy arrays."""
  handler = ocp.CompositeCheckpointHandler(
    state=ocp.PyTreeCheckpointHandler(), record=ocp.JsonCheckpointHandler()
  )
  with ocp.Checkpointer(handler) as reader:
    stored = reader.metadata(path).item_metadata["state"].tree
    arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    state = ocp.args.PyTreeRestore(restore_args=arrays)
    return reader.restore(path, args=ocp.args.Composite(state=state))["state"]


def _at(stored: Any, path: tuple[Any, ...]) -> np.ndarray:
  """What stands at a path; checkpoints know dictionaries with names, and lists."""
  for key in path:
    name = next(getattr(key, x) for x in ("key", "idx", "name") if hasattr(key, x))
    stored = stored[name if isinstance(stored, list) else str(name)]
  return stored


def on_device(tree: Any) -> Any:
  """Arrays where they can be computed with."""
  return jax.tree.map(jnp.asarray, tree)
