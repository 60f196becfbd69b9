"""The training loop: every method and every seed of a config, one after another."""

import contextlib
import pathlib
import shutil
from typing import Any

import jax
from clu import parameter_overview
from jax.experimental import multihost_utils

from train.checkpointing import compatibility, folder
from train.loop.preemption import Preemption
from train.loop.run import Record, Run
from train.planning.experiment import Experiment, make_experiment
from train.processes import identity
from train.processes.cluster import keep_compiled
from train.reporting import report
from train.reporting.progress import Progress
from train.steps.layout import described
from train.steps.workers import Workers


def train_and_evaluate(config: Any, workdir: str, start_over: bool = False) -> list[Record]:
  """Trains a network with every method and seed of a config, and compares them.

  The runs of one seed start from the same weights and see the same batches, whatever the method. Started
  again in the same folder it goes on from the last checkpoints, and ends with the same weights and
  metrics as if it had never been interrupted. With several processes each calls this.

  Args:
    config: an ``ml_collections.ConfigDict``, as in ``configs/``.
    workdir: where the config (``config.json``), the metrics (``metrics.jsonl``, a line an epoch), the
      table (``results.md``) and the picture (``accuracy.png``, ``perplexity.png``) go, and for each run a
      folder with its checkpoints, metrics of steps (``steps.jsonl``) and TensorBoard event files.
    start_over: whether runs that are there are put aside, in ``runs.before``.

  Returns:
    The lines of ``metrics.jsonl``; what is not finite is None.

  Raises:
    ConfigError: when the config cannot run, or does not fit the checkpoints in the folder.
    UserError: when the data set is not there, the folder is another run's, its disk refuses, or all its
      checkpoints are damaged.
    Preempted: when the process was told to end (SIGTERM); it has saved.
    NotFiniteError: when ``max_skipped`` exchanges in a row were not finite.
    DriftError: when workers have different weights.
  """
  path = folder.local(workdir)
  experiment = make_experiment(config)
  identity.agree(experiment)
  keep_compiled(experiment.config.compilation_cache)
  with folder.told(path):
    return _in_folder(experiment, path, start_over)


def _in_folder(experiment: Experiment, path: pathlib.Path, start_over: bool) -> list[Record]:
  config, plan = experiment.config, experiment.plan
  main = jax.process_index() == 0
  runs = len(config.methods) * len(config.seeds)
  progress = Progress(runs * plan.exchanges, len(config.methods))
  with folder.held(path) if main else contextlib.nullcontext():
    if main:
      if start_over:
        _put_aside(path)
      compatibility.check(config, path, progress.line)
      compatibility.remember(config, path)
      (path / "parameters.txt").write_text(_overview(experiment.params) + "\n")
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("the folder is ready")
    with progress, Preemption() as preemption:
      progress.line(_headline(experiment))
      records = _all_runs(experiment, path, progress, preemption)
      if main:
        score = experiment.task.score
        table = report.table(records, score)
        (path / "results.md").write_text(table)
        report.picture(records, score, path / f"{score.key.removeprefix('test_')}.png")
        progress.line(f"\n{table}\nAll of it is in {path}")
  return records


def _all_runs(
  experiment: Experiment, path: pathlib.Path, progress: Progress, preemption: Preemption
) -> list[Record]:
  config, score = experiment.config, experiment.task.score
  records: list[Record] = []
  main = jax.process_index() == 0
  with open(path / "metrics.jsonl", "w") if main else contextlib.nullcontext() as lines:

    def note(record: Record) -> None:
      records.append(record)
      if lines:
        lines.write(folder.dumps(record) + "\n")
        lines.flush()

    workers = None
    for method, make in experiment.makes.items():
      workers = Workers(make, config.num_workers, experiment.mesh, workers)
      for seed in config.seeds:
        where = path / "runs" / f"{method}-{seed}"
        run = Run(experiment, workers, method, seed, where, progress, preemption)
        trained = run.train(note)
        end = report.last(trained, score)
        progress.line(
          f"{method:8s} seed {seed}: {score.name} {score.shown(end[score.key])}, "
          f"{trained[-1]['sent_bytes'] / 1e6:.2f} MB sent a worker, {trained[-1]['seconds']:.0f} s"
        )
  return records


def _put_aside(path: pathlib.Path) -> None:
  """Runs that are there make place for new ones."""
  if (path / "runs").exists():
    shutil.rmtree(path / "runs.before", ignore_errors=True)
    (path / "runs").rename(path / "runs.before")
  (path / compatibility.CONFIG).unlink(missing_ok=True)


def _headline(experiment: Experiment) -> str:
  config, task, plan = experiment.config, experiment.task, experiment.plan
  step = "steps" if config.setting == "distributed" else "rounds"
  each = f"{plan.batches} × " if plan.batches > 1 else ""
  processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
  return (
    f"{config.num_workers} workers, {described(experiment.mesh)}{processes}; {plan.exchanges} {step} of {each}"
    f"{task.examples} {task.unit} a worker"
  )


def _overview(params: Any) -> str:
  return parameter_overview.get_parameter_overview(params, include_stats=False)
