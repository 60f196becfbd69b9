"""What a step costs in memory and time, beside plain data parallelism with optax.

One worker a device. Peak memory is what the compiled step needs on a device: its arguments, results and
temporary arrays, those that share memory counted once. The time is the median over some steps, all
devices together; simulated devices of one CPU share its cores, so there only their ratio says something.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import data
from configs.rows import NAMES
from configs.schema import ConfigError
from train.planning.experiment import settled
from train.steps.layout import AXIS, make_mesh
from train.steps.methods import make_rounds
from train.steps.optimizers import optimizer
from train.steps.workers import RunState, Workers
from train.tasks.make import make_task
from train.tasks.task import Task


class Footprint(NamedTuple):
  """Of one way to train.

  Attributes:
    name: of it.
    state: bytes that stay on a device from step to step.
    peak: bytes that a step needs there.
    seconds: of a step.
  """

  name: str
  state: int
  peak: int
  seconds: float


def plain(task: Task, config: Any, mesh: Mesh) -> tuple[RunState, Callable[[RunState, Any], Any]]:
  """Data parallelism as it is written without this library.

  Args:
    task: what is trained.
    config: the experiment; its optimizer with learning rate, momentum and weight decay counts.
    mesh: of the workers.

  Returns:
    The first state, and the step: a function of a state and the workers' batches to both.
  """
  tx = optimizer(config).local(config, config.learning_rate)
  replicated, dealt = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
  params, model_state = task.init(jax.random.key(0))
  rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (mesh.size, *x.shape)), model_state)
  state = RunState(
    jax.device_put(params, replicated),
    jax.device_put(tx.init(params), replicated),
    jax.device_put(rows, dealt),
  )

  def worker(state, batch):
    own = lambda tree: jax.tree.map(lambda x: x[0], tree)

    def mean_loss(params):
      loss, (model_state, metrics) = task.loss(params, own(state.model_state), own(batch))
      return lax.pmean(loss, AXIS), (model_state, lax.pmean(metrics, AXIS))

    gradient, (model_state, metrics) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return RunState(params, opt_state, jax.tree.map(lambda x: x[None], model_state)), metrics

  specs: Any = RunState(P(), P(), P(AXIS))
  step = jax.shard_map(worker, mesh=mesh, in_specs=(specs, P(AXIS)), out_specs=(specs, P()))
  return state, jax.jit(step, donate_argnums=0)


def _measure(name: str, state: RunState, step: Any, batches: Sequence[Any]) -> Footprint:
  compiled = step.lower(state, batches[0]).compile()
  memory = compiled.memory_analysis()
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
  kept = sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(state))
  times = []
  for batch in batches:
    begun = time.perf_counter()
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))
    times.append(time.perf_counter() - begun)
  return Footprint(name, kept, peak, statistics.median(times[1:]))


def footprints(config: Any, steps: int) -> list[Footprint]:
  """Measures plain data parallelism and every method of a config.

  Args:
    config: the experiment, in the distributed setting; measured at its final density.
    steps: that are timed.

  Returns:
    The plain one first.

  Raises:
    ConfigError: for a config that cannot run, the federated setting, and too few devices.
  """
  config = settled(config)
  if config.setting != "distributed" or config.micro_batches != 1:
    raise ConfigError(
      "A step is compared with one of optax: config.setting must be 'distributed' and "
      f"config.micro_batches 1, got {config.setting!r} and {config.micro_batches}."
    )
  if (config.mesh.chips, config.mesh.shards) != (1, 1):
    raise ConfigError(
      "A worker is one device here: config.mesh.chips and config.mesh.shards must be 1, got "
      f"{config.mesh.chips} and {config.mesh.shards}."
    )
  devices = jax.devices()
  if len(devices) < config.num_workers:
    raise ConfigError(
      f"config.num_workers must be at most {len(devices)}, the devices there are, got {config.num_workers}; "
      "--cpu_devices makes more of a CPU."
    )
  mesh = make_mesh(devices[: config.num_workers], (config.num_workers, 1, 1))
  config.warmup_epochs = 0
  task = make_task(config)
  source = task.source(seed=config.seeds[0])
  place = lambda x: jax.device_put(x, NamedSharding(mesh, P(AXIS)))
  loaded = data.load(source, range(config.num_workers), steps + 1, threads=config.data_threads)
  batches = [jax.tree.map(place, batch) for batch in loaded]
  found = [_measure("optax.sgd", *plain(task, config, mesh), batches)]
  for method in config.methods:
    make = make_rounds(config, method, task.loss, source.steps_per_epoch, steps + 1, 1)
    workers = Workers(make, config.num_workers, mesh)
    seed = jnp.int32(config.seeds[0])
    state = workers.init(*task.init(jax.random.key(0)), seed)
    found.append(_measure(NAMES[method], state, workers.compiled_step(seed), batches))
  return found


def table(found: Sequence[Footprint]) -> str:
  """A Markdown table; in brackets, how many times what plain data parallelism takes."""
  base = found[0]
  times = lambda x, y: f"({x / y:.2f})"
  lines = [
    "| step | state on a device, MB | peak on a device, MB | time, ms |",
    "|---|---|---|---|",
    *(
      f"| {x.name} | {x.state / 1e6:.2f} {times(x.state, base.state)} | {x.peak / 1e6:.2f} "
      f"{times(x.peak, base.peak)} | {1e3 * x.seconds:.1f} {times(x.seconds, base.seconds)} |"
      for x in found
    ),
  ]
  return "\n".join(lines)
