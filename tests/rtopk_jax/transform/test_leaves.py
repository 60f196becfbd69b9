"""Leaves that are not plain float32 arrays: complex, odd, frozen, tied, very large."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS = harness.AXIS, 3


def exchanges():
  return {
    "sparse": rtopk_jax.sparse_exchange(
      rtopk_jax.top_k(0.1), AXIS, dense=False, momentum=0.5, clip_norm=1.0
    ),
    "dense": rtopk_jax.dense_exchange(AXIS, momentum=0.5, clip_norm=1.0),
  }


QUICK = (("sparse", "shard_map"), ("dense", "vmap"))


def complex_gradients(seed=0):
  rng = np.random.default_rng(seed)
  parts = rng.standard_normal((2, WORKERS, 6, 5, 2)).astype(np.float32)
  return parts, jax.lax.complex(parts[..., 0], parts[..., 1])


@pytest.mark.parametrize(
  ("name", "mode"),
  [
    pytest.param(name, mode, marks=[] if (name, mode) in QUICK else pytest.mark.slow)
    for name in ("sparse", "dense")
    for mode in harness.MODES
  ],
)
def test_complex_leaves_are_pairs_of_reals(name, mode):
  """Bit for bit what an array with a last axis of two comes to."""
  parts, numbers = complex_gradients()
  tx = exchanges()[name]
  (real, real_state), (both, state) = (
    harness.run(mode, tx, {"c": grads}) for grads in (parts, np.asarray(numbers))
  )
  assert both["c"].dtype == np.complex64
  np.testing.assert_array_equal(np.stack([both["c"].real, both["c"].imag], -1), real["c"])
  jax.tree.map(np.testing.assert_array_equal, state, real_state)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_complex_model_learns_as_its_dense_one_does(accumulate):
  target = jnp.asarray(complex_gradients()[1][0, 0])
  x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32))

  def loss_fn(params, x):
    error = x.astype(jnp.complex64) @ (params["c"] - target)
    return jnp.mean(jnp.abs(error) ** 2)

  mesh, params = harness.mesh(2), {"c": jnp.zeros((6, 5), jnp.complex64)}
  exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, dense=False)
  # JAX's gradient of a complex number is the conjugate of the direction of descent.
  conjugate = optax.stateless(lambda g, _: jax.tree.map(jnp.conj, g))
  tx = optax.chain(conjugate, exchange, optax.sgd(0.1))
  state = rtopk_jax.init(tx, params, mesh, AXIS)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, accumulate=accumulate, donate=False)
  dense = params
  for _ in range(5):
    params, state, _ = step(params, state, x)
    gradient = jax.grad(loss_fn)(dense, x)
    dense = jax.tree.map(lambda p, g: p - 0.1 * jnp.conj(g), dense, gradient)
  np.testing.assert_allclose(params["c"], dense["c"], 1e-5, 1e-6)
  assert float(loss_fn(params, x)) < float(loss_fn({"c": 0 * params["c"]}, x))


def test_a_frozen_backbone_takes_nothing_of_what_is_sent():
  """All of k goes to the adapter, where the exchange is in the part that is trained."""
  params = {"base": jnp.ones((40, 40)), "adapter": jnp.zeros((40, 40))}
  loss_fn = lambda p, x: jnp.mean((x @ (p["base"] + p["adapter"])) ** 2)
  labels = {"base": "frozen", "adapter": "train"}
  exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.05), AXIS)
  tx = optax.partition(
    {"train": optax.chain(exchange, optax.sgd(1.0)), "frozen": optax.set_to_zero()}, labels
  )
  mesh = harness.mesh(2)
  state = rtopk_jax.init(tx, params, mesh, AXIS)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, donate=False)
  x = np.random.default_rng(0).normal(size=(8, 40)).astype(np.float32)
  after, _, _ = step(params, state, x)
  np.testing.assert_array_equal(after["base"], params["base"])
  assert 80 <= int(jnp.count_nonzero(after["adapter"])) <= 160
  assert rtopk_jax.wire_bytes(tx, params, 2) == rtopk_jax.wire_bytes(exchange, params["adapter"], 2)


def test_tied_weights_are_one_leaf():
  """Used twice they have one gradient; stored twice they are two leaves, and drift is the user's."""
  params = {"embed": jnp.ones((40, 30), jnp.float32)}
  loss_fn = lambda p, x: jnp.mean((jnp.tanh(x @ p["embed"]) @ p["embed"].T - x) ** 2)
  exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, dense=False)
  tx, mesh = optax.chain(exchange, optax.sgd(0.01)), harness.mesh(2)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, donate=False)
  x = np.random.default_rng(0).normal(size=(8, 40)).astype(np.float32)
  after, _, _ = step(params, rtopk_jax.init(tx, params, mesh, AXIS), x)
  wanted = params["embed"] - 0.01 * jax.grad(loss_fn)(params, x)["embed"]
  np.testing.assert_allclose(after["embed"], wanted, 1e-5, 1e-5)


@pytest.mark.parametrize("scope", ["global", "leaf", rtopk_jax.Block(4096)])
def test_a_leaf_that_int32_cannot_index(scope):
  """No scope helps: what does is said."""
  params = {"w": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.001), AXIS, scope=scope)
  with pytest.raises(ValueError, match=r"updates\['w'\] has 2,147,483,648 entries.*Shard it"):
    rtopk_jax.wire_bytes(tx, params, 4)


def test_many_leaves_that_int32_cannot_index_together():
  params = [jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32)] * 3
  tx = lambda scope: rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.001), AXIS, scope=scope)
  with pytest.raises(ValueError, match=r"scope='global'.*use scope=\"leaf\""):
    rtopk_jax.wire_bytes(tx("global"), params, 4)
  assert rtopk_jax.wire_bytes(tx("leaf"), params, 4).sent > 0


@pytest.mark.parametrize("leaf", [jnp.zeros((0,)), jnp.zeros((0, 3)), jnp.float32(1), None])
def test_odd_leaves(leaf):
  """Empty ones, scalars and places without one."""
  params = {"odd": leaf, "w": jnp.ones((40, 30))}
  exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, dense=False)
  tx, mesh = optax.chain(optax.trace(0.9), exchange, optax.sgd(0.1)), harness.mesh(2)
  loss_fn = lambda p, x: jnp.mean((x @ p["w"]) ** 2) + (0 if leaf is None else jnp.sum(p["odd"]))
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, donate=False)
  after, _, _ = step(params, rtopk_jax.init(tx, params, mesh, AXIS), np.ones((4, 40), np.float32))
  assert jax.tree.structure(after) == jax.tree.structure(params)
  assert np.any(after["w"] != params["w"])
