"""What must be the same in all processes of a job: config, code and data."""

import hashlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from train.checkpointing import compatibility
from train.processes import cluster

# What is a process's own affair.
_OWN = frozenset({"data_dir", "data_threads", "compilation_cache"})

_PACKAGES = ("rtopk_jax", "train", "configs", "data")
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def of_config(config: Any) -> dict[str, Any]:
  """The fields of a config that processes must agree on, by their path."""
  flat = compatibility.flat(compatibility.fields_of(config), "config.")
  return {name: x for name, x in flat.items() if name.removeprefix("config.") not in _OWN}


def of_code(task: str | None) -> dict[str, Any]:
  """Digests of the code that trains.

  Args:
    task: of the user's own, "package.module:name", whose file counts too.

  Returns:
    By name, digests and versions.
  """
  root = pathlib.Path(__file__).parents[2]
  files = [file for package in _PACKAGES for file in sorted((root / package).rglob("*.py"))]
  module = sys.modules.get(task.partition(":")[0]) if task else None
  if module is not None and module.__file__:
    files.append(pathlib.Path(module.__file__))
  digest = hashlib.sha256()
  for file in files:
    digest.update(file.read_bytes())
  versions = {f"the version of {name}": importlib.metadata.version(name) for name in _LIBRARIES}
  return {"the code (a digest)": digest.hexdigest()[:16], **versions}


def of_data(task: Any, seed: int) -> dict[str, Any]:
  """A digest of the data set: of some of its batches, and how many there are.

  Args:
    task: that has it.
    seed: of the batches.

  Returns:
    By name, the digest.
  """
  source = task.source(seed)
  digest = hashlib.sha256(str(source.steps_per_epoch).encode())
  for step in sorted({0, source.steps_per_epoch // 2, source.steps_per_epoch - 1}):
    for array in _arrays(source.batch(0, step, 0)):
      digest.update(np.ascontiguousarray(array).tobytes())
  return {"the data set (a digest)": digest.hexdigest()[:16]}


def _arrays(batch: Any) -> Iterator[np.ndarray]:
  return (np.asarray(x) for x in jax.tree.leaves(batch))


def agree(experiment: Any) -> None:
  """Refuses to go on where processes have different configs, code or data.

  Args:
    experiment: of this process.

  Raises:
    UserError: naming what differs and where.
  """
  if jax.process_count() > 1:
    config = experiment.config
    cluster.agree("experiment", of_code(config.task) | of_data(experiment.task, config.seeds[0]))
