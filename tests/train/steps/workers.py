"""Workers that are ready for their first step."""

import jax
import jax.numpy as jnp

import data
from tests.train import tiny
from train.planning.plan import make_plan
from train.steps.layout import choose_mesh
from train.steps.methods import make_rounds
from train.steps.workers import Workers


def started(config, method, kind):
  """The tiny task, its workers before their first step, their state, and a function that takes a step."""
  task = tiny.Tiny(config)
  source = task.source(seed=0)
  plan = make_plan(config, source.steps_per_epoch)
  make = make_rounds(config, method, task.loss, plan.per_epoch, plan.exchanges, plan.batches)
  config.workers = kind
  workers = Workers(make, config.num_workers, choose_mesh(config))
  state = workers.init(*task.init(jax.random.key(0)), jnp.int32(0))
  batches = iter(data.load(source, workers.local, plan.exchanges * plan.batches))
  step = lambda state: workers.step(
    state, [next(batches) for _ in range(plan.batches)], jnp.int32(0)
  )
  return task, workers, state, step
