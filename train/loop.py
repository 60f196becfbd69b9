"""The training loop: every method and every seed of a config, one after another."""

import json
import pathlib
from typing import Any

import jax
from clu import parameter_overview

import rtopk_jax
from configs import variants
from train import compatibility, report, settings
from train.cluster import keep_compiled
from train.methods import make_rounds
from train.plan import Plan, make_plan
from train.preemption import Preemption
from train.progress import Progress
from train.run import Record, Run
from train.task import Task
from train.tasks import make_task
from train.workers import Workers, choose_mesh


def train_and_evaluate(config: Any, workdir: str) -> list[Record]:
  """Trains a network with every method and seed of a config, and compares them.

  The runs of one seed start from the same weights and see the same batches, whatever the method. Started
  again in the same folder it goes on from the last checkpoints, and ends with the same weights and
  metrics as if it had never been interrupted. With several processes each calls this.

  Args:
    config: an ``ml_collections.ConfigDict``, as in ``configs/``.
    workdir: where the config (``config.json``), the metrics (``metrics.jsonl``, a line an epoch), the
      table (``results.md``) and the picture (``accuracy.png``, ``perplexity.png``) go, and for each run a
      folder with its checkpoints, metrics of steps (``steps.jsonl``) and TensorBoard event files.

  Returns:
    The lines of ``metrics.jsonl``.

  Raises:
    TypeError: when a field of the config has a value of a wrong type.
    ValueError: when the config cannot run, has no such variant, or does not fit the checkpoints in the folder.
    FileNotFoundError: when the data set is not there.
    Preempted: when the process was told to end (SIGTERM); it has saved.
    NotFiniteError: when ``max_skipped`` exchanges in a row were not finite.
    DriftError: when workers have different weights.
  """
  config = variants.settle(config)
  settings.check(config)
  config = config.copy_and_resolve_references()
  config.batch_size = settings.batch_size(config)
  mesh = choose_mesh(config.workers, config.num_workers)
  task = make_task(config)
  plan = make_plan(config, task.source(seed=config.seeds[0]).steps_per_epoch)
  params, _ = jax.eval_shape(task.init, jax.random.key(0))
  settings.check_density(config, sum(x.size for x in jax.tree.leaves(params)))
  makes = {
    method: make_rounds(config, method, task.loss, plan.per_epoch, plan.exchanges, plan.batches)
    for method in config.methods
  }
  # A density is constant through an epoch: its stages are whole epochs. Each update is traced for this,
  # so that what the library refuses is refused before anything is compiled.
  costs = {
    method: [
      rtopk_jax.wire_bytes(make(0).tx, params, config.num_workers, epoch * plan.per_epoch)
      for epoch in range(config.warmup_epochs + 1)
    ]
    for method, make in makes.items()
  }
  path = pathlib.Path(workdir)
  compatibility.check(config, path)
  keep_compiled(config.compilation_cache)

  main = jax.process_index() == 0
  if main:
    path.mkdir(parents=True, exist_ok=True)
    compatibility.remember(config, path)
    (path / "parameters.txt").write_text(_overview(params) + "\n")
  runs = len(config.methods) * len(config.seeds)
  lines = open(path / "metrics.jsonl", "w") if main else None  # noqa: SIM115
  with Progress(runs * plan.exchanges * plan.batches) as progress, Preemption() as preemption:
    progress.line(_headline(config, task, plan, mesh is not None))
    try:
      records: list[Record] = []

      def note(record: Record) -> None:
        records.append(record)
        if lines:
          lines.write(json.dumps(record) + "\n")
          lines.flush()

      for method, make in makes.items():
        workers = Workers(make, config.num_workers, mesh)
        for seed in config.seeds:
          folder = path / "runs" / f"{method}-{seed}"
          run = Run(
            config, task, workers, costs[method], plan, method, seed, folder, progress, preemption
          )
          end = run.train(note)[-1]
          progress.line(
            f"{method:8s} seed {seed}: {task.score.name} {task.score.shown(end[task.score.key])}, "
            f"{end['sent_bytes'] / 1e6:.2f} MB sent a worker, {end['seconds']:.0f} s"
          )
    finally:
      if lines:
        lines.close()
    if main:
      table = report.table(records, task.score)
      (path / "results.md").write_text(table)
      report.picture(records, task.score, path / f"{task.score.key.removeprefix('test_')}.png")
      progress.line(f"\n{table}\nAll of it is in {path}")
  return records


def _headline(config: Any, task: Task, plan: Plan, on_mesh: bool) -> str:
  kind = "one a device" if on_mesh else "simulated on one device"
  step = "steps" if config.setting == "distributed" else "rounds"
  each = f"{plan.batches} × " if plan.batches > 1 else ""
  processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
  return (
    f"{config.num_workers} workers, {kind}{processes}; {plan.exchanges} {step} of {each}"
    f"{task.examples} {task.unit} a worker"
  )


def _overview(params: Any) -> str:
  return parameter_overview.get_parameter_overview(params, include_stats=False)
