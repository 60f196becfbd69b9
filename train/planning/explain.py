"""What a run would be, without training: config, bytes and time of a step, memory, files."""

import pathlib
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from configs.fields import FIELDS
from configs.rows import NAMES
from train.checkpointing import compatibility
from train.planning import forecast
from train.planning.experiment import Experiment, make_experiment
from train.steps.layout import described
from train.steps.workers import Workers

# What a link may be.
BANDWIDTHS = ("100Mbit/s", "1Gbit/s", "10Gbit/s")


def show(
  config: Any,
  workdir: str | None,
  bandwidths: Sequence[str] = BANDWIDTHS,
  batch_seconds: float | None = None,
) -> None:
  """Prints it.

  Args:
    config: the experiment.
    workdir: where it would be written; None: nobody has said.
    bandwidths: of links, such as "1Gbit/s".
    batch_seconds: of a worker's batch beside the exchange, for the time of the whole run; None: not known.
  """
  experiment = make_experiment(config)
  print(_fields(experiment.config))
  print(_length(experiment))
  print(_table(experiment, bandwidths))
  if batch_seconds is not None:
    print(_times(experiment, bandwidths, batch_seconds))
  print(_files(experiment, pathlib.Path(workdir or "WORKDIR")))


def _fields(config: Any) -> str:
  lines = ["The config; * marks what is not the default."]
  flat = compatibility.flat({k: v for k, v in config.to_dict().items() if k != "variants"})
  usual = compatibility.flat({name: field.default for name, field in FIELDS.items()})
  for name, value in flat.items():
    mark = " " if name in usual and value == usual[name] else "*"
    lines.append(f" {mark} {name} = {value!r}")
  return "\n".join(lines) + "\n"


def _length(experiment: Experiment) -> str:
  config, plan, task = experiment.config, experiment.plan, experiment.task
  runs = len(config.methods) * len(config.seeds)
  interval = config.eval_every * plan.per_epoch
  scored = plan.exchanges // interval if interval else 0
  if config.eval_at_end and (not interval or plan.exchanges % interval):
    scored += 1
  return (
    f"{_count(runs, 'run')} ({_count(len(config.methods), 'method')}, {_count(len(config.seeds), 'seed')}) of "
    f"{_count(plan.exchanges, 'exchange')}, {plan.per_epoch} an epoch, each after "
    f"{_count(plan.batches, 'batch', 'batches')} of {task.examples} {task.unit} of each of "
    f"{_count(config.num_workers, 'worker')}, {described(experiment.mesh)}. {experiment.size:,} parameters. "
    f"{_count(scored, 'evaluation')} a run.\n"
  )


def _count(number: int, noun: str, plural: str | None = None) -> str:
  return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _table(experiment: Experiment, bandwidths: Sequence[str]) -> str:
  """Bytes, predicted time and memory of each method's step."""
  config = experiment.config
  lines = [
    "A worker's exchange at the final density; predicted time on links of several bandwidths, with two CPU cores "
    "a worker (python -m rtopk_jax.plan).",
    f"{'method':16} {'MB sent':>9} {'MB on link':>11} {'state, MB':>10}{_heads(bandwidths)}",
  ]
  for method, make in experiment.makes.items():
    cost = experiment.costs[method][-1]
    seconds = [forecast.exchange(experiment, method, x) for x in bandwidths]
    times = _cells(f"{1e3 * x:.2f} ms" for x in seconds)
    lines.append(
      f"{NAMES[method]:16} {cost.sent / 1e6:9.3f} {cost.link / 1e6:11.3f} "
      f"{_state(experiment, Workers(make, config.num_workers, experiment.mesh)) / 1e6:10.2f}{times}"
    )
  kind = "on a device" if experiment.mesh else "of all workers together"
  lines.append(
    f"The state is what stays in memory from step to step {kind}. The peak of a step is known once it is compiled, "
    "which this does not do: python -m train.footprint says it.\n"
  )
  return "\n".join(lines)


def _times(experiment: Experiment, bandwidths: Sequence[str], batch_seconds: float) -> str:
  """Predicted time of each method's whole run."""
  lines = [
    f"A run, if a worker's batch takes {batch_seconds:g} s beside the exchange; without compilation, evaluations and "
    "checkpoints.",
    f"{'method':16}{_heads(bandwidths)}",
  ]
  for method in experiment.makes:
    seconds = [forecast.training(experiment, method, x, batch_seconds) for x in bandwidths]
    lines.append(f"{NAMES[method]:16}" + _cells(f"{x:.4g} s" for x in seconds))
  return "\n".join(lines) + "\n"


def _heads(bandwidths: Iterable[str]) -> str:
  return _cells(f"at {bandwidth}" for bandwidth in bandwidths)


def _cells(texts: Iterable[str]) -> str:
  """The columns of a row, one for each bandwidth."""
  return "".join(f" {text:>16}" for text in texts)


def _state(experiment: Experiment, workers: Workers) -> int:
  shapes = jax.eval_shape(experiment.task.init, jax.random.key(0))
  state = jax.eval_shape(workers.init, *shapes, jnp.int32(0))
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  if experiment.mesh is None:
    return size(state)
  shard = lambda x, place: jax.ShapeDtypeStruct(place.shard_shape(x.shape), x.dtype)
  return size(jax.tree.map(shard, state, workers.shardings(state)))


def _files(experiment: Experiment, path: pathlib.Path) -> str:
  config = experiment.config
  every = config.checkpoint_every
  how = "never" if every == 0 else "every epoch" if every is None else f"every {every} exchanges"
  return textwrap.dedent(f"""\
    Would be written, and nothing else:
      {path}/config.json, parameters.txt, lock
      {path}/metrics.jsonl, a line an epoch; results.md and a picture at the end
      {path}/runs/METHOD-SEED/steps.jsonl and TensorBoard's events, every {config.log_every} exchanges
      {path}/runs/METHOD-SEED/checkpoints and digests, {how}, the last {config.keep_checkpoints} are kept
      {config.compilation_cache or "no compiled programs"}, what was compiled""")
