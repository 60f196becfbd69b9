"""What a step costs, and the plain data parallelism that it is measured beside."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import data
from tests.train.steps.workers import started
from train.planning.footprint import footprints, plain, table

pytestmark = pytest.mark.usefixtures("usual_promotion")


@pytest.mark.slow
def test_footprint_beside_plain_data_parallelism(config):
  config.methods = ("none", "rtopk")
  found = footprints(config, steps=2)
  assert [x.name for x in found] == ["optax.sgd", "no compression", "rTop-k"]
  # Weights, momentum and the running mean; a memory of the same size; counts and metrics.
  assert found[0].state == 2 * 4 * 130 + 48
  assert found[1].state == found[0].state + 28
  assert found[2].state == found[0].state + 4 * 130 + 28
  assert all(x.peak >= x.state and x.seconds > 0 for x in found)
  assert "| rTop-k |" in table(found)


def test_plain_data_parallelism_takes_the_same_step(config):
  config.schedule, config.step_epochs = "step", ()
  task, workers, state, step = started(config, "none", "devices")
  other, other_step = plain(task, config, workers.mesh)
  place = lambda x: jax.device_put(x, NamedSharding(workers.mesh, P("workers")))
  for batch in data.load(task.source(seed=0), range(4), 3):
    state, _ = step(state)
    other, _ = other_step(other, jax.tree.map(place, batch))
  for a, b in zip(
    jax.tree.leaves((state.params, state.model_state)),
    jax.tree.leaves((other.params, other.model_state)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert isinstance(optax.tree.get(other.opt_state, "trace"), dict)
