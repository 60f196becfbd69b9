"""The moving average that waiting makes of gradients: the library's, and when it is stable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from study import delay


def test_a_memory_and_a_random_subset_are_momentum_in_the_mean():
  """10 of 50 entries at random: p = 0.2, over six steps, against the moving average."""
  gradients = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
  # Half of the entries are large, and top-r is those: r/k = 5 with k = 5 of r = 25.
  gradients[:, 25:] = 0

  def updates(seed):
    tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1, 5), "node", dense=False, seed=seed)

    def step(state, gradient):
      update, state = tx.update(gradient, state)
      return state, update

    def run(gradients):
      return jax.lax.scan(step, tx.init(gradients[0]), gradients)[1]

    return jax.vmap(run, axis_name="node")(jnp.asarray(gradients)[None])[0]

  found = np.asarray(jax.jit(jax.vmap(updates))(jnp.arange(4000)), np.float64)
  p, mean = 0.2, np.zeros(50)
  for t in range(6):
    mean = (1 - p) * mean + p * gradients[t]
    error = found[:, t].std(0) / np.sqrt(len(found))
    assert (np.abs(found[:, t].mean(0) - mean) <= 4.5 * error + 1e-6).all()
    assert np.abs(mean - gradients[t])[:25].max() > 0.1  # which is not the gradient


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("ratio", [1, 2, 5, 20])
def test_the_limit_is_where_a_quadratic_begins_to_diverge(momentum, ratio):
  limit, p = delay.stable_step(momentum, ratio), 1 / ratio

  def ends(step):
    w, u, average = 1.0, 0.0, 0.0
    for _ in range(200_000):
      average += p * (w - average)
      u = momentum * u + average
      w -= step * u
      if not 1e-12 < abs(w) + abs(u) + abs(average) < 1e6:
        break
    return abs(w) + abs(u) + abs(average)

  assert ends(0.97 * limit) < 1e-3
  assert ends(1.03 * limit) > 1e3


def test_limits_that_are_known():
  for momentum in (0.0, 0.5, 0.9):
    assert delay.stable_step(momentum, 1) == pytest.approx(2 * (1 + momentum), rel=1e-4)
  for ratio in (2, 5, 10):
    p = 1 / ratio
    assert delay.stable_step(0.0, ratio) == pytest.approx(2 * (2 - p) / p, rel=1e-4)
  assert delay.implicit_momentum(5) == pytest.approx(0.8)
  # Without momentum waiting allows larger steps, with it only smaller ones.
  assert delay.stable_step(0.0, 5) > 5 * delay.stable_step(0.0, 1)
  assert delay.stable_step(0.9, 5) < delay.stable_step(0.9, 1) / 50
