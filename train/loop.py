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
from train.methods import optimizer
from train.progress import Progress
from train.workers import RunState, Workers, choose_mesh

Record = dict[str, Any]


def train_and_evaluate(config: Any, workdir: str) -> list[Record]:
  """Trains a network with every method and seed of a config, and compares them.

  The runs of one seed start from the same weights and see the same batches, whatever the method.

  Args:
    config: an ``ml_collections.ConfigDict``, as in ``configs/``.
    workdir: where the config (``config.json``), the metrics (``metrics.jsonl``, a line an epoch), the
      table (``results.md``) and the picture (``accuracy.png``) go.

  Returns:
    The lines of ``metrics.jsonl``.

  Raises:
    ValueError: when the config cannot run.
    FileNotFoundError: when the data set is not there.
  """
  images = data.load(config.dataset, config.data_dir)
  settings.check(config, images.train.size)
  mesh = choose_mesh(config.workers, config.num_workers)
  task = Classification(config.model, images)
  steps_per_epoch = images.train.size // config.num_workers // config.batch_size
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
      f"{config.num_workers} workers, {kind}; {steps} steps of {config.batch_size} images a worker"
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
          f"{method:8s} seed {seed}: test accuracy {records[-1]['test_accuracy']:.2%}, "
          f"{records[-1]['sent_bytes'] / 1e6:.2f} MB sent a worker, {records[-1]['seconds']:.0f} s"
        )
    table = report.table(records)
    (path / "results.md").write_text(table)
    report.picture(records, path / "accuracy.png")
    progress.line(f"\n{table}\nAll of it is in {path}")
  return records


def _run(
  config: Any,
  task: Classification,
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
  params, stats = task.init(jax.random.key(seed))
  state = workers.init(params, stats, seed_array)
  shares = data.shares(task.images.train.size, config.num_workers, seed)
  sent = link = step = epoch = 0
  while step < steps:
    history = []
    for batch in data.epoch(task.images, shares, config.batch_size, seed, epoch):
      state, metrics = workers.step(state, batch, seed_array)
      history.append(metrics)
      progress.advance(f"{method} seed {seed}")
      step += 1
      if step == steps:
        break
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
      **_summary(history),
      **_evaluate(task, state),
      "seconds": time.monotonic() - started,
    }


def _summary(history: list[dict[str, jax.Array]]) -> dict[str, float]:
  """Means of an epoch's losses and accuracies; of the exchange, how the last one went."""
  host = jax.device_get(history)
  means = {
    name: float(np.mean([x[name] for x in host])) for name in ("train_loss", "train_accuracy")
  }
  return {name: float(value) for name, value in host[-1].items()} | means


def _evaluate(task: Classification, state: RunState) -> dict[str, float]:
  """Loss and accuracy on the test set, with the workers' batch statistics averaged."""
  stats = jax.tree.map(lambda x: jnp.mean(x, axis=0), state.stats)
  sums = [task.evaluate(state.params, stats, batch) for batch in task.test_batches(500)]
  total = {name: float(sum(x[name] for x in sums)) for name in sums[0]}
  count = total.pop("count")
  return {name: value / count for name, value in total.items()}
