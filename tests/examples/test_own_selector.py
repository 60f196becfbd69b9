"""The example of a selector of one's own: messages of any length up to k, in every scope, by every collective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from examples.own_collective import Ring
from examples.own_selector import AboveThreshold
from examples.own_wire import Float8
from tests.examples import common
from tests.rtopk_jax import harness

AXIS = harness.AXIS
SHAPES = {"a": (12, 22), "b": (44,), "c": (3,)}
SELECTOR = AboveThreshold(4.0, density=0.1)


def test_it_sends_what_is_above_the_threshold_and_no_more_than_k():
  select = lambda *entries: SELECTOR(jnp.array([*entries, *[0.5] * 18]), jax.random.key(0))
  assert select(4.0, -5.0).to_dense().tolist() == [4.0, -5.0, *[0.0] * 18]
  assert select(3.0, -5.0).to_dense().tolist() == [0.0, -5.0, *[0.0] * 18]
  assert select(3.0, 3.0).to_dense().tolist() == [0.0] * 20
  assert int(select(3.0, -5.0).count) == 1


def _expected(grads, steps, scope):
  """Updates and residuals of the mean of what is above the threshold, in plain NumPy."""
  n = grads["a"].shape[1]
  residual = {name: np.zeros((n, *shape), np.float32) for name, shape in SHAPES.items()}
  groups = [[name] for name in SHAPES] if scope == "leaf" else [list(SHAPES)]
  for step in range(steps):
    v = {name: residual[name] + grads[name][step] for name in SHAPES}
    update = {}
    for group in groups:
      flat = np.concatenate([v[name].reshape(n, -1) for name in group], axis=1)
      message, k = np.zeros_like(flat), max(1, round(0.1 * flat.shape[1]))
      for worker, row in enumerate(flat):
        top = np.argsort(-np.abs(row), kind="stable")[:k]
        top = top[np.abs(row[top]) >= 4]
        message[worker, top] = row[top]
      ends = np.cumsum([v[name][0].size for name in group])[:-1]
      parts = zip(group, np.split(message, ends, axis=1), strict=True)
      for name, part in parts:
        part = part.reshape(n, *SHAPES[name])
        update[name] = part.sum(axis=0) / np.float32(n)
        residual[name] = v[name] - part
    yield update, dict(residual)


@pytest.mark.parametrize(
  ("mode", "scope"),
  [
    ("vmap", "global"),
    ("shard_map", "leaf"),
    pytest.param("vmap", "leaf", marks=pytest.mark.slow),
    pytest.param("shard_map", "global", marks=pytest.mark.slow),
  ],
)
def test_an_exchange_is_the_one_written_out(mode, scope):
  grads = harness.gradients(SHAPES, 3, 4)
  tx = rtopk_jax.sparse_exchange(SELECTOR, AXIS, dense=False, scope=scope)
  updates, states = harness.run(mode, tx, grads)
  for step, (update, residual) in enumerate(_expected(grads, 3, scope)):
    for name in SHAPES:
      np.testing.assert_array_equal(updates[name][step], update[name])
      np.testing.assert_array_equal(states.residual[name][step], residual[name])


OPTIONS = [
  {"scope": rtopk_jax.Block(16), "momentum": 0.5},
  {"scope": "leaf", "average": "mean", "wire": rtopk_jax.Wire("float32", "elias_fano")},
  {"collective": "reduce_scatter", "momentum": 0.5},
  {"collective": rtopk_jax.ReduceScatter(0.2), "scope": rtopk_jax.Block(16), "wire": Float8()},
  {"scope": "leaf", "collective": Ring(), "wire": "int8"},
]


@pytest.mark.parametrize(
  ("platform", "options"),
  [
    # Each on one platform; all on all in `make test-slow`.
    pytest.param(name, options, marks=[] if i % 3 == j else pytest.mark.slow)
    for i, options in enumerate(OPTIONS)
    for j, name in enumerate(("cpu", "gpu", "tpu"))
  ],
  indirect=["platform"],
)
def test_nothing_is_lost(options, platform):
  tx = rtopk_jax.sparse_exchange(SELECTOR, AXIS, dense=False, **options)
  exact = options.get("wire") != "int8"
  common.check_conserved(tx, SHAPES, options.get("momentum", 0.0), exact=exact)


def test_its_momentum_is_masked_where_it_sent():
  grads = harness.gradients(SHAPES, 1, 2)
  tx = rtopk_jax.sparse_exchange(SELECTOR, AXIS, dense=False, momentum=0.5)
  _, states = harness.run("vmap", tx, grads)
  for name, g in grads.items():
    sent = (states.residual[name][0] == 0) & (g[0] != 0)
    np.testing.assert_array_equal(states.momentum[name][0], np.where(sent, 0, g[0]))


def test_metrics_count_what_is_there():
  grads = {"w": np.zeros((1, 2, 100), np.float32)}
  grads["w"][0, 0, :3], grads["w"][0, 1, 2:5], grads["w"][0, 0, 50] = 8, 8, 1
  tx = rtopk_jax.sparse_exchange(SELECTOR, AXIS, dense=False)
  updates, states = harness.run("vmap", tx, grads)
  assert np.flatnonzero(updates["w"][0]).tolist() == [0, 1, 2, 3, 4]
  metrics = rtopk_jax.exchange_metrics(jax.tree.map(lambda x: x[-1], states))
  np.testing.assert_allclose(metrics["sent_norm"], np.sqrt(3 * 64), rtol=1e-6)
  np.testing.assert_allclose(metrics["residual_norm"], np.sqrt(0.5), rtol=1e-3)
  np.testing.assert_allclose(metrics["union_coverage"], 0.05)
  # What is not there has no senders either.
  tx = rtopk_jax.sparse_exchange(SELECTOR, AXIS, dense=False, average="senders")
  updates, _ = harness.run("vmap", tx, grads)
  assert updates["w"][0, :6].tolist() == [8, 8, 8, 8, 8, 0]


def test_a_step_with_nothing_to_send_changes_nothing():
  grads = {"w": np.ones((1, 2, 100), np.float32)}
  tx = rtopk_jax.sparse_exchange(SELECTOR, AXIS, dense=False)
  updates, states = harness.run("shard_map", tx, grads)
  assert not np.any(updates["w"])
  np.testing.assert_array_equal(states.residual["w"], grads["w"])


def test_its_density_may_warm_up():
  stages = rtopk_jax.Stages((0.5, 0.1), steps_per_stage=1)
  tx = rtopk_jax.sparse_exchange(AboveThreshold(0.0, stages), AXIS, dense=False)
  grads = {"w": np.ones((3, 2, 40), np.float32)}
  updates, _ = harness.run("vmap", tx, grads)
  assert np.count_nonzero(updates["w"], axis=1).tolist() == [20, 4, 4]
  bytes_of = lambda step: rtopk_jax.wire_bytes(tx, jnp.ones(4000), 2, step).sent
  assert bytes_of(0) == harness.gathered(2 * 2000)
  assert bytes_of(1) == harness.gathered(2 * 400)


def test_indices_of_blocks_are_refused():
  wire = rtopk_jax.Wire(indices="block")
  tx = rtopk_jax.sparse_exchange(SELECTOR, AXIS, dense=False, scope=rtopk_jax.Block(16), wire=wire)
  with pytest.raises(ValueError, match='indices="block" need as many entries in every block'):
    rtopk_jax.wire_bytes(tx, jnp.ones((40, 40)), 2)
