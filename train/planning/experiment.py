"""What a config comes to before anything is compiled or written: task, plan, methods and their bytes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

import rtopk_jax
from configs import variants
from train.errors import named
from train.planning import settings
from train.planning.plan import Plan, make_plan
from train.steps import methods
from train.steps.layout import choose_mesh, piece
from train.steps.rounds import Rounds
from train.steps.schedules import of_exchanges
from train.steps.workers import QUICKLY
from train.tasks.make import make_task
from train.tasks.task import Task


class Experiment(NamedTuple):
  """A config that can run.

  Attributes:
    config: with every open field filled in.
    task: what is trained.
    plan: how long.
    mesh: of the workers; None where they are simulated.
    params: shapes of the weights.
    makes: by method, how it trains, for a seed.
    costs: by method, bytes of an exchange in the first epochs, of which the last stay.
    densities: the share of entries that is sent in those epochs.
    rate: the learning rate after so many exchanges, one compiled program for all runs.
  """

  config: Any
  task: Task
  plan: Plan
  mesh: Mesh | None
  params: Any
  makes: dict[str, Callable[[Any], Rounds]]
  costs: dict[str, list[rtopk_jax.WireBytes]]
  densities: list[float]
  rate: Callable[[int], jax.Array]

  @property
  def size(self) -> int:
    """How many parameters there are."""
    return sum(x.size for x in jax.tree.leaves(self.params))


def settled(config: Any) -> Any:
  """A config with every open field filled in, whose fields are right each by itself.

  Args:
    config: the experiment.

  Returns:
    A copy.

  Raises:
    ConfigError: when it cannot run.
  """
  config = variants.settle(config)
  settings.check(config)
  config = config.copy_and_resolve_references()
  config.batch_size = settings.batch_size(config)
  config.num_workers = config.mesh.workers = settings.num_workers(config)
  with named():
    for method in config.methods:
      methods.exchange(config, method, 1, 0)
  return config


def make_experiment(config: Any) -> Experiment:
  """Checks all of a config that can be checked without compiling anything.

  Args:
    config: the experiment.

  Returns:
    What it comes to.

  Raises:
    ConfigError: when it cannot run.
    UserError: when the data set is not there.
  """
  config = settled(config)
  mesh = choose_mesh(config)
  task = make_task(config)
  with named():
    source = task.source(seed=config.seeds[0])
  plan = make_plan(config, source.steps_per_epoch)
  params, _ = jax.eval_shape(task.init, jax.random.key(0))
  settings.check_sizes(config, params)
  settings.check_memory(piece(mesh, params))
  settings.check_density(config, sum(x.size for x in jax.tree.leaves(params)))
  makes = {
    method: methods.make_rounds(
      config, method, task.loss, plan.per_epoch, plan.exchanges, plan.batches
    )
    for method in config.methods
  }
  epochs = range(config.warmup_epochs + 1)
  # A density is constant through an epoch: its stages are whole epochs. Each update is traced for this,
  # so that what the library refuses is refused before anything is compiled.
  with named():
    costs = {
      method: [_cost(make, params, mesh, config, epoch * plan.per_epoch) for epoch in epochs]
      for method, make in makes.items()
    }
  densities = methods.densities(config, plan.per_epoch)
  rate = jax.jit(
    of_exchanges(config, plan.per_epoch, plan.exchanges, plan.batches), compiler_options=QUICKLY
  )
  return Experiment(config, task, plan, mesh, params, makes, costs, densities, rate)


def _cost(
  make: Callable[[Any], Rounds], params: Any, mesh: Mesh | None, config: Any, step: int
) -> rtopk_jax.WireBytes:
  """Bytes of a worker in an exchange: of all its shards, each of which sends its own."""
  own = rtopk_jax.wire_bytes(make(0).tx, piece(mesh, params), config.num_workers, step)
  return rtopk_jax.WireBytes(*(config.mesh.shards * count for count in own))
