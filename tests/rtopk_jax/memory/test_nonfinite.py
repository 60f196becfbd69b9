"""A worker with a NaN or an infinity: all workers skip the step."""

import jax
import numpy as np
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, STEPS, WORKERS, BAD = harness.AXIS, 4, 3, 2
SHAPES = {"a": (5, 8), "b": (23,)}
STAGES = rtopk_jax.Stages((0.5, 0.1), 2)
EXCHANGES = {
  "global": rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1), AXIS, dense=False, momentum=0.5),
  "leaf": rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(STAGES), AXIS, dense=False, momentum=0.5, scope="leaf", clip_norm=1.0
  ),
  "dense leaf": rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.1), AXIS, dense={"a": True, "b": False}, momentum=0.5
  ),
  "all dense": rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1), AXIS, dense=True, momentum=0.5),
  "no memory": rtopk_jax.sparse_exchange(
    rtopk_jax.random_k(0.1), AXIS, dense=False, error_feedback=False, momentum=0.5
  ),
  "dense": rtopk_jax.dense_exchange(AXIS, momentum=0.5, clip_norm=1.0),
}


def memories(state, step):
  fields = [getattr(state, name, ()) for name in ("residual", "momentum")]
  return jax.tree.map(lambda x: x[step], fields)


@pytest.mark.parametrize(
  ("mode", "name"),
  [
    # Each in one mode; all in both in `make test-slow`.
    pytest.param(mode, name, marks=[] if i % 2 == j else pytest.mark.slow)
    for i, name in enumerate(EXCHANGES)
    for j, mode in enumerate(("shard_map", "vmap"))
  ],
)
def test_all_skip(name, mode):
  grads = harness.gradients(SHAPES, STEPS, WORKERS)
  grads["a"][BAD, 1, 2, 3] = np.nan if mode == "vmap" else np.inf
  updates, state = harness.run(mode, EXCHANGES[name], grads)
  for update in jax.tree.leaves(updates):
    assert np.all(np.isfinite(update))
    assert np.all(update[BAD] == 0)
    assert np.all([np.any(update[step] != 0) for step in range(STEPS) if step != BAD])
  jax.tree.map(np.testing.assert_array_equal, memories(state, BAD), memories(state, BAD - 1))
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
  np.testing.assert_array_equal(state.count, [1, 2, 3, 4])
  np.testing.assert_array_equal(state.metrics.skipped, [0, 0, 1, 1])
  # The metrics are those of the last exchange that took place.
  assert state.metrics.sent_square[BAD] == state.metrics.sent_square[BAD - 1]


def test_an_overflow_of_the_memory_skips_too():
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, dense=False)
  huge = {"w": np.full((3, 2, 20), 3e38, np.float32)}
  updates, state = harness.run("vmap", tx, huge)
  np.testing.assert_array_equal(state.metrics.skipped, [0, 1, 2])
  np.testing.assert_array_equal(updates["w"][1:], 0)


def test_a_skip_is_not_contagious():
  """After a skipped step all goes on as if only its gradients were missing."""
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, dense=False, momentum=0.5)
  grads = harness.gradients(SHAPES, STEPS, WORKERS)
  clean = jax.tree.map(lambda g: np.delete(g, BAD, axis=0), grads)
  grads["b"][BAD, 0, 0] = -np.inf
  updates, _ = harness.run("vmap", tx, grads)
  expected, _ = harness.run("vmap", tx, clean)
  for name in SHAPES:
    np.testing.assert_array_equal(np.delete(updates[name], BAD, axis=0), expected[name])


def test_a_norm_beyond_float32_skips():
  """Clipping by such a norm would be multiplying by zero, and the gradient lost without a word."""
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, dense=False, clip_norm=1.0)
  grads = {"w": np.ones((2, 2, 20), np.float32)}
  grads["w"][0, 1, 0] = 1e30
  updates, state = harness.run("vmap", tx, grads)
  np.testing.assert_array_equal(state.metrics.skipped, [1, 1])
  np.testing.assert_array_equal(state.residual["w"][0], 0)
  assert np.any(updates["w"][1] != 0)


def test_a_small_memory_dtype_saturates():
  """An infinite residual would make every step from then on one that is skipped."""
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.1), AXIS, dense=False, memory_dtype="float16", average="sum"
  )
  grads = {"w": np.full((3, 2, 20), 5e4, np.float16)}
  updates, state = harness.run("vmap", tx, grads)
  np.testing.assert_array_equal(state.metrics.skipped, 0)
  assert np.asarray(state.residual["w"], np.float32).max() == np.finfo(np.float16).max
  assert np.asarray(updates["w"], np.float32).max() == np.finfo(np.float16).max
