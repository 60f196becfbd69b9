"""What a run would be, without training: config, bytes and time of a step, memory, files."""

import pathlib
import textwrap
from typing import Any

import jax
import jax.numpy as jnp

import rtopk_jax
from configs.fields import FIELDS
from configs.rows import NAMES
from train.checkpointing import compatibility
from train.planning.experiment import Experiment, make_experiment
from train.steps import links
from train.steps.layout import described
from train.steps.workers import Workers

# What a link may be.
BANDWIDTHS = ("100Mbit/s", "1Gbit/s", "10Gbit/s")


def show(config: Any, workdir: str | None) -> None:
  """Prints it."""
  experiment = make_experiment(config)
  print(_fields(experiment.config))
  print(_length(experiment))
  print(_table(experiment))
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
  last = config.eval_every and config.epochs // config.eval_every
  return (
    f"{runs} runs ({len(config.methods)} methods, {len(config.seeds)} seeds) of {plan.exchanges} exchanges, "
    f"{plan.per_epoch} an epoch, each after {plan.batches} batches of {task.examples} {task.unit} of each of "
    f"{config.num_workers} workers, {described(experiment.mesh)}. {experiment.size:,} parameters. About "
    f"{last or 1} evaluations a run.\n"
  )


def _table(experiment: Experiment) -> str:
  """Bytes, predicted time and memory of each method's step."""
  config = experiment.config
  head = "".join(f" {'at ' + bandwidth:>16}" for bandwidth in BANDWIDTHS)
  lines = [
    "A worker's exchange at the final density; predicted time on links of several bandwidths, with two CPU cores "
    "a worker (python -m rtopk_jax.plan).",
    f"{'method':16} {'MB sent':>9} {'MB on link':>11} {'state, MB':>10}{head}",
  ]
  for method, make in experiment.makes.items():
    cost = experiment.costs[method][-1]
    times = "".join(f" {_seconds(experiment, method, x):>16}" for x in BANDWIDTHS)
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


def _seconds(experiment: Experiment, method: str, bandwidth: str) -> str:
  config = experiment.config
  # Advice knows no blocks; an index of one takes about as many bits as Elias and Fano's.
  indices = "elias_fano" if config.wire_indices == "block" else config.wire_indices
  wire = rtopk_jax.Wire(config.wire_values, indices)
  advice = rtopk_jax.advise(
    experiment.size,
    config.num_workers,
    bandwidth,
    densities=(config.density,),
    collectives=(links.between_workers(config),),
    wire=wire,
  )
  found = advice.dense if method == "none" else advice.estimates[0]
  return f"{1e3 * found.seconds:.2f} ms"


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
