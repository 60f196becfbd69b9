"""Bytes and metrics, against counts made by hand and by the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax import harness, reference

AXIS = harness.AXIS
PARAMS = {"w": jnp.zeros((100, 30)), "v": jnp.zeros((50, 40)), "b": jnp.zeros(30)}


def exchange(selector=None, **options):
  return rtopk_jax.sparse_exchange(selector or rtopk_jax.rtop_k(0.01), AXIS, **options)


@pytest.mark.parametrize(
  ("tx", "gathered", "reduced"),
  [
    (exchange(), harness.gathered(2 * 50), 4 * 30),
    (exchange(scope="leaf"), harness.gathered(2 * (30 + 20)), 4 * 30),
    (exchange(dense=False), harness.gathered(2 * 50), 0),
    (exchange(dense=False, scope="leaf"), harness.gathered(2 * (30 + 20 + 1)), 0),
    (exchange(dense=True), 0, 4 * 5030),
    (exchange(dense={"w": False, "v": True, "b": True}), harness.gathered(2 * 30), 4 * 2030),
    (exchange(dense=lambda path, leaf: path[0].key == "v"), harness.gathered(2 * 30), 4 * 2000),
    (rtopk_jax.dense_exchange(AXIS), 0, 4 * 5030),
    (optax.chain(exchange(), optax.sgd(0.1)), harness.gathered(2 * 50), 4 * 30),
    (rtopk_jax.rtopk_sgd(0.1, 0.01, AXIS, weight_decay=0.1), harness.gathered(2 * 50), 4 * 30),
  ],
)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_bytes(tx, gathered, reduced, workers):
  found = rtopk_jax.wire_bytes(tx, PARAMS, workers)
  others = workers - 1
  assert found.sent == gathered + reduced
  assert found.received == others * gathered + (reduced if others else 0)
  assert found.link == others * gathered + round(2 * others / workers * reduced)
  shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
  assert rtopk_jax.wire_bytes(tx, shapes, workers) == found


@pytest.mark.parametrize("around", ["plateau", "lookahead"])
def test_bytes_of_what_wants_more_than_a_gradient(around):
  """A loss, or parameters in pairs: whatever a training step would give it."""
  sgd = optax.chain(exchange(), optax.sgd(0.1))
  tx, params = optax.chain(sgd, optax.contrib.reduce_on_plateau()), PARAMS
  if around == "lookahead":
    tx, params = optax.lookahead(sgd, 3, 0.5), optax.LookaheadParams.init_synced(PARAMS)
  with jax.numpy_dtype_promotion("standard"):  # which optax's need
    assert rtopk_jax.wire_bytes(tx, params, 3) == rtopk_jax.wire_bytes(sgd, PARAMS, 3)


def test_counting_bytes_leaves_no_trace():
  """A measurement ends with its call: the same transformation then exchanges for real."""
  tx = exchange(rtopk_jax.top_k(1.0), dense=False)
  rtopk_jax.wire_bytes(tx, jnp.ones(4), 3)
  with pytest.raises(NameError):
    tx.update(jnp.ones(4), tx.init(jnp.ones(4)))
  one = lambda g: tx.update(g, tx.init(g))[0]
  mapped = jax.jit(jax.vmap(one, out_axes=None, axis_name=AXIS))
  mean = mapped(jnp.array([[1.0, 5.0], [3.0, 7.0]]))
  np.testing.assert_array_equal(mean, [2.0, 6.0])


def test_metrics_are_those_of_the_messages():
  steps, workers, k = 3, 4, 6
  grads = harness.gradients({"w": (6, 10)}, steps, workers, powers=False)
  tx = exchange(rtopk_jax.top_k(0.1), dense=False, error_feedback=False)
  _, state = harness.run("shard_map", tx, grads)
  flat = grads["w"].reshape(steps, workers, -1)
  sent = np.stack([[reference.keep_largest(row, k) for row in rows] for rows in flat])
  for step in range(steps):
    found = rtopk_jax.exchange_metrics(jax.tree.map(lambda x: x[step], state))
    rms = np.sqrt(np.mean(np.sum(sent[step] ** 2, axis=-1)))
    np.testing.assert_allclose(found["sent_norm"], rms, rtol=1e-5)
    np.testing.assert_allclose(found["union_coverage"], np.mean(np.any(sent[step], axis=0)))
    assert found["residual_norm"] == 0
    assert found["skipped_steps"] == 0


def test_the_residual_norm_is_that_of_the_state():
  grads = harness.gradients({"w": (6, 10), "v": (5,)}, 3, 4, powers=False)
  _, state = harness.run("shard_map", exchange(dense=False, scope="leaf"), grads)
  last = jax.tree.map(lambda x: x[-1], state)
  square = sum(np.sum(x**2) for x in jax.tree.leaves(last.residual)) / 4
  found = rtopk_jax.exchange_metrics(last)["residual_norm"]
  np.testing.assert_allclose(found, np.sqrt(square), rtol=1e-5)


def test_metrics_of_several_exchanges_add_up():
  parts = {
    "sparse": exchange(rtopk_jax.top_k(0.1), dense=False),
    "dense": rtopk_jax.dense_exchange(AXIS),
  }
  grads = {"w": np.ones((1, 2, 40), np.float32), "b": np.ones((1, 2, 10), np.float32)}
  tx = optax.partition(parts, {"w": "sparse", "b": "dense"})
  _, state = harness.run("vmap", tx, grads)
  found = rtopk_jax.exchange_metrics(jax.tree.map(lambda x: x[-1], state))
  np.testing.assert_allclose(found["sent_norm"], np.sqrt(4 + 10), rtol=1e-6)
  np.testing.assert_allclose(found["residual_norm"], 6, rtol=1e-6)
  np.testing.assert_allclose(found["union_coverage"], (4 + 10) / 50, rtol=1e-6)
