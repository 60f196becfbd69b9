"""Density warm-up."""

import numpy as np
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS


@pytest.mark.parametrize(
  ("final", "epochs", "initial", "densities"),
  [
    (0.001, 5, 0.25, [0.25, 0.0629, 0.0158, 0.00398, 0.001]),
    (0.01, 3, 0.25, [0.25, 0.05, 0.01]),
    (0.01, 2, 0.25, [0.25, 0.01]),
    (0.01, 1, 0.25, [0.01]),  # no warm-up
    (0.5, 3, 0.25, [0.5, 0.5, 0.5]),  # never below the final one
  ],
)
def test_densities_fall_exponentially(final, epochs, initial, densities):
  stages = rtopk_jax.warmup_density(final, 10, epochs, initial)
  np.testing.assert_allclose(stages.densities, densities, rtol=0.01)
  assert stages.densities[-1] == final


def test_each_step_has_its_stage():
  stages = rtopk_jax.warmup_density(0.001, 78)
  found = [int(stages.stage(step)) for step in (0, 77, 78, 155, 156, 311, 312, 10_000)]
  assert found == [0, 0, 1, 1, 2, 3, 4, 4]
  assert int(stages.stage(2**31 - 1)) == 4


def test_a_selector_has_a_selector_for_each_stage():
  stages = rtopk_jax.warmup_density(0.001, 78)
  selector = rtopk_jax.rtop_k(stages, 3)
  assert selector.at(4) == rtopk_jax.rtop_k(0.001, 3)
  assert selector.at(0) == rtopk_jax.rtop_k(0.25, 3)
  assert rtopk_jax.top_k(0.1).at(7) == rtopk_jax.top_k(0.1)
  assert hash(selector) == hash(rtopk_jax.rtop_k(rtopk_jax.warmup_density(0.001, 78), 3))


def test_a_run_sends_what_its_stages_say():
  stages = rtopk_jax.Stages((0.5, 0.1, 0.02), 2)
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(stages), AXIS, dense=False, error_feedback=False)
  grads = harness.gradients({"w": (10, 10)}, 7, 1, powers=False)
  updates, state = harness.run("vmap", tx, grads)
  sent = [np.count_nonzero(update) for update in updates["w"]]
  assert sent == [50, 50, 10, 10, 2, 2, 2]
  np.testing.assert_allclose(state.metrics.received, sent)
  for step, k in enumerate(sent):
    found = rtopk_jax.wire_bytes(tx, grads["w"][0, 0], 1, step=step)
    assert found.sent == harness.gathered(2 * k)
