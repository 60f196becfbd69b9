"""How fast batches are prepared, beside how fast they are trained on.

    python -m benchmarks.loaders --config=configs/cifar10.py --config.data_dir=DATA

Times the loader alone, the step alone on one batch, and both together as training runs them, and says
what part of the last is waiting for the loader. No evaluation, one method, one seed.
"""

import json
import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import logging

import data
from train.command import program
from train.errors import UserError
from train.planning.experiment import settled
from train.steps.layout import choose_mesh
from train.steps.methods import make_rounds
from train.steps.workers import Workers
from train.tasks.make import make_task


def _seconds(steps: int, step: Callable[[], object]) -> float:
  step()
  begun = time.perf_counter()
  for _ in range(steps):
    step()
  return time.perf_counter() - begun


def main(arguments: Sequence[str]) -> None:
  """Measures, and prints a line of JSON."""
  parser = program.Parser("benchmarks.loaders", __doc__)
  parser.add_argument("--steps", type=int, default=5, help="that are timed, after one that is not")
  options, config = program.with_config(parser, arguments)
  steps = options.steps
  if steps < 1:
    raise UserError(f"--steps must be at least 1, got {steps}.")
  logging.set_verbosity(logging.WARNING)
  config = settled(config)
  task = make_task(config)
  source = task.source(seed=0)
  make = make_rounds(config, config.methods[0], task.loss, source.steps_per_epoch, steps + 1, 1)
  workers = Workers(make, config.num_workers, choose_mesh(config))
  seed = jnp.int32(0)
  load = lambda: iter(data.load(source, workers.local, steps + 1, threads=config.data_threads))
  state = workers.init(*task.init(jax.random.key(0)), seed)
  waited = 0.0

  def train(batch):
    nonlocal state
    state, metrics = workers.step(state, (batch,), seed)
    jax.block_until_ready(metrics)

  def both():
    nonlocal waited
    asked = time.perf_counter()
    batch = next(batches)
    waited += time.perf_counter() - asked
    train(batch)

  batches = load()
  alone = _seconds(steps, lambda: next(batches))
  batch = next(load())
  computed = _seconds(steps, lambda: train(batch))
  batches = load()
  together = _seconds(steps, both)
  examples = steps * config.num_workers * task.examples
  result = {
    f"loader_{task.unit}_per_second": examples / alone,
    f"step_{task.unit}_per_second": examples / computed,
    f"both_{task.unit}_per_second": examples / together,
    "share_of_waiting": waited / together,
    "cores": os.cpu_count(),
    "load_average": os.getloadavg()[0],
  }
  print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
  program.run(main)
