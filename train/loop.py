"""The training loop: every method and every seed of a config, one after another."""

import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import data
import rtopk_jax
from train import report, settings
from train.classification import Classification
from train.language import Language
from train.methods import optimizer
from train.progress import Progress
from train.task import Task
from train.workers import Workers, choose_mesh

Record = dict[str, Any]


def make_task(config: Any) -> Task:
  """The task of a config's data set.

  Args:
    config: the experiment.

  Returns:
    The task.

  Raises:
    ValueError: for an unknown data set.
    FileNotFoundError: when the data set is not there; the message says how to get it.
  """
  name = config.dataset
  if name in data.IMAGES:
    return Classification(config, data.IMAGES[name](config.data_dir))
  if name in data.TEXTS:
    return Language(config, data.TEXTS[name](config.data_dir))
  known = ", ".join((*data.IMAGES, *data.TEXTS))
  raise ValueError(f"dataset must be one of {known}, got {name!r}.")


def train_and_evaluate(config: Any, workdir: str) -> list[Record]:
  """Trains a network with every method and seed of a config, and compares them.

  The runs of one seed start from the same weights and see the same batches, whatever the method.

  Args:
    config: an ``ml_collections.ConfigDict``, as in ``configs/``.
    workdir: where the config (``config.json``), the metrics (``metrics.jsonl``, a line an epoch), the
      table (``results.md``) and the picture (``accuracy.png``, ``perplexity.png``) go.

  Returns:
    The lines of ``metrics.jsonl``.

  Raises:
    ValueError: when the config cannot run.
    FileNotFoundError: when the data set is not there.
  """
  settings.check(config)
  mesh = choose_mesh(config.workers, config.num_workers)
  task = make_task(config)
  steps_per_epoch = task.source(seed=0).steps_per_epoch
  steps = config.epochs * steps_per_epoch
  if config.max_steps is not None:
    steps = min(steps, config.max_steps)

  path = pathlib.Path(workdir)
  path.mkdir(parents=True, exist_ok=True)
  (path / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
  records: list[Record] = []
  params, _ = jax.eval_shape(task.init, jax.random.key(0))
  with (
    open(path / "metrics.jsonl", "w") as lines,
    Progress(len(config.methods) * len(config.seeds) * steps) as progress,
  ):
    kind = "simulated on one device" if mesh is None else "one a device"
    progress.line(
      f"{config.num_workers} workers, {kind}; {steps} steps of {task.examples} {task.unit} a worker"
    )
    for method in config.methods:
      make_tx = optimizer(config, method, steps_per_epoch, steps)
      workers = Workers(task, make_tx, config.num_workers, mesh)
      # A density is constant through an epoch: its stages are whole epochs.
      costs = [
        rtopk_jax.wire_bytes(make_tx(0), params, config.num_workers, epoch * steps_per_epoch)
        for epoch in range(config.warmup_epochs + 1)
      ]
      for seed in config.seeds:
        for record in _run(config, task, workers, costs, method, seed, steps, progress):
          records.append(record)
          lines.write(json.dumps(record) + "\n")
          lines.flush()
        progress.line(
          f"{method:8s} seed {seed}: {task.score.name} {task.score.shown(records[-1][task.score.key])}, "
          f"{records[-1]['sent_bytes'] / 1e6:.2f} MB sent a worker, {records[-1]['seconds']:.0f} s"
        )
    table = report.table(records, task.score)
    (path / "results.md").write_text(table)
    report.picture(records, task.score, path / f"{task.score.key.removeprefix('test_')}.png")
    progress.line(f"\n{table}\nAll of it is in {path}")
  return records


def _run(
  config: Any,
  task: Task,
  workers: Workers,
  costs: list[rtopk_jax.WireBytes],
  method: str,
  seed: int,
  steps: int,
  progress: Progress,
) -> Iterator[Record]:
  """One method, one seed: yields a record an epoch."""
  started = time.monotonic()
  seed_array = jnp.int32(seed)
  params, model_state = task.init(jax.random.key(seed))
  state = workers.init(params, model_state, seed_array)
  source = task.source(seed)
  batches = iter(data.load(source, workers.local, steps, threads=config.data_threads))
  sent = link = step = epoch = 0
  while step < steps:
    history = []
    begun, waited = time.monotonic(), 0.0
    for _ in range(min(source.steps_per_epoch, steps - step)):
      asked = time.monotonic()
      batch = next(batches)
      waited += time.monotonic() - asked
      state, metrics = workers.step(state, batch, seed_array)
      if history:
        # One step is computed while the next is handed over; further ahead batches would only pile up.
        jax.block_until_ready(history[-1])
      history.append(metrics)
      progress.advance(f"{method} seed {seed}")
    summary = _summary(history)
    taken = time.monotonic() - begun
    step += len(history)
    cost = costs[min(epoch, len(costs) - 1)]
    sent += cost.sent * len(history)
    link += cost.link * len(history)
    epoch += 1
    yield {
      "method": method,
      "seed": seed,
      "epoch": epoch,
      "step": step,
      "sent_bytes": sent,
      "link_bytes": link,
      "link_bytes_a_step": cost.link,
      **summary,
      **task.evaluate(state.params, state.model_state),
      f"{task.unit}_per_second": len(history) * config.num_workers * task.examples / taken,
      "seconds_waiting_for_data": waited,
      "seconds": time.monotonic() - started,
    }


def _summary(history: list[dict[str, jax.Array]]) -> dict[str, float]:
  """Means of what was measured in training over an epoch; of the exchange, how the last one went."""
  host = jax.device_get(history)
  means = {
    name: float(np.mean([x[name] for x in host])) for name in host[-1] if name.startswith("train_")
  }
  return {name: float(value) for name, value in host[-1].items()} | means
