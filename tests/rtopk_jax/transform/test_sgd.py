"""The uncompressed baseline and the ready-made optimizer, against optax and plain equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS
SHAPES = {"a": (5, 8), "b": (23,)}


def params():
  rng = np.random.default_rng(5)
  return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def train(tx, grads, mapped):
  """Parameters after every step; with ``mapped`` the leading axis of gradients is the workers'."""
  start = jax.tree.map(jnp.asarray, params())
  if mapped:
    axes = rtopk_jax.state_axes(tx, start)
    workers = jax.tree.leaves(grads)[0].shape[1]
    state = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=workers)(start)
    update = jax.vmap(tx.update, in_axes=(0, axes, None), out_axes=(None, axes), axis_name=AXIS)
  else:
    state, update = tx.init(start), tx.update

  def body(carry, gradient):
    weights, state = carry
    updates, state = update(gradient, state, weights)
    weights = optax.apply_updates(weights, updates)
    return (weights, state), weights

  return jax.jit(lambda state: jax.lax.scan(body, (start, state), grads)[1])(state)


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("mask", [None, {"a": True, "b": False}])
def test_one_worker_that_sends_all_is_sgd_with_decay(momentum, nesterov, mask):
  options = {"momentum": momentum, "nesterov": nesterov}
  tx = rtopk_jax.rtopk_sgd(
    0.1,
    1.0,
    AXIS,
    weight_decay=0.05,
    weight_decay_mask=mask,
    momentum_masking=False,
    dense=False,
    **options,
  )
  sgd = optax.chain(
    optax.add_decayed_weights(0.05, mask),
    optax.sgd(0.1, momentum=momentum or None, nesterov=nesterov),
  )
  grads = harness.gradients(SHAPES, 12, 1, powers=False)
  alone = jax.tree.map(lambda g: g[:, 0], grads)
  assert_close(train(tx, grads, mapped=True), train(sgd, alone, mapped=False))


def test_learning_rate_schedules(usual_promotion):
  schedule = optax.exponential_decay(0.1, 2, 0.5)
  tx = rtopk_jax.rtopk_sgd(schedule, 1.0, AXIS, momentum=0.0, dense=False)
  grads = harness.gradients(SHAPES, 6, 1, powers=False)
  alone = jax.tree.map(lambda g: g[:, 0], grads)
  assert_close(train(tx, grads, mapped=True), train(optax.sgd(schedule), alone, mapped=False))


def test_options_go_to_the_exchange():
  tx = rtopk_jax.rtopk_sgd(1.0, 0.1, AXIS, subsample=2, average="sum", clip_norm=3.0, dense=False)
  direct = optax.chain(
    rtopk_jax.sparse_exchange(
      rtopk_jax.rtop_k(0.1, 2), AXIS, average="sum", clip_norm=3.0, dense=False, momentum=0.9
    ),
    optax.scale(-1.0),
  )
  grads = harness.gradients(SHAPES, 5, 3)
  a, b = train(tx, grads, mapped=True), train(direct, grads, mapped=True)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  ("mode", "average"),
  [("shard_map", "workers"), ("pmap", "sum"), ("vmap", "workers"), ("vmap", "senders")],
)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0, "momentum": 0.9, "nesterov": True}])
def test_dense_exchange(mode, average, options):
  steps, workers = 8, 4
  grads = harness.gradients(SHAPES, steps, workers, powers=False)
  tx = rtopk_jax.dense_exchange(AXIS, average=average, **options)
  updates, state = harness.run(mode, tx, grads)
  m = options.get("momentum", 0.0)
  u = {name: np.zeros(shape) for name, shape in SHAPES.items()}
  for step in range(steps):
    mean = {name: g[step].astype(np.float64).sum(0) for name, g in grads.items()}
    if average != "sum":
      mean = {name: x / workers for name, x in mean.items()}
    if "clip_norm" in options:
      norm = np.sqrt(sum(np.sum(x**2) for x in mean.values()))
      mean = {name: x * min(1.0, options["clip_norm"] / norm) for name, x in mean.items()}
    u = {name: m * u[name] + x for name, x in mean.items()}
    expected = {name: x + m * u[name] for name, x in mean.items()} if m else mean
    assert_close({name: x[step] for name, x in updates.items()}, expected)
    if m:
      assert_close({name: x[step] for name, x in state.momentum.items()}, u)
  assert (state.momentum == ()) == (not m)
  np.testing.assert_array_equal(state.count, np.arange(1, steps + 1))


def test_sending_everything_is_the_dense_exchange():
  """Density 1: nothing is left in the memory, and both exchanges give the mean."""
  grads = harness.gradients(SHAPES, 5, 4)
  sparse = rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, dense=False)
  updates, state = harness.run("vmap", sparse, grads)
  assert_close(updates, harness.run("vmap", rtopk_jax.dense_exchange(AXIS), grads)[0], 1e-6)
  assert all(np.all(x == 0) for x in jax.tree.leaves(state.residual))


STATIC = ("density", "axis_name", "momentum")


@pytest.mark.parametrize("injected", [pytest.param("numbers", marks=pytest.mark.slow), "schedules"])
def test_hyperparameters_may_be_injected(injected):
  """Learning rate and weight decay as arrays, or as schedules, of the state of ``inject_hyperparams``."""
  rate, decay = 0.1, 0.05
  if injected == "schedules":
    rate, decay = optax.linear_schedule(0.1, 0.0, 5), optax.linear_schedule(0.05, 0.2, 5)
  options = {"dense": False, "clip_norm": 3.0, "seed": 2}
  make = optax.inject_hyperparams(rtopk_jax.rtopk_sgd, static_args=STATIC)
  grads = harness.gradients(SHAPES, 4, 3)
  actual = train(make(rate, 0.2, AXIS, momentum=0.5, weight_decay=decay, **options), grads, True)
  plain = rtopk_jax.rtopk_sgd(rate, 0.2, AXIS, momentum=0.5, weight_decay=decay, **options)
  assert_close(actual, train(plain, grads, True))


def test_a_schedule_of_the_weight_decay():
  """With one worker that sends all, what optax's own scheduled decay comes to."""
  decay = optax.linear_schedule(0.05, 0.5, 3)
  tx = rtopk_jax.rtopk_sgd(
    0.1, 1.0, AXIS, momentum=0.9, weight_decay=decay, momentum_masking=False, dense=False
  )
  sgd = optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.1, momentum=0.9))
  grads = harness.gradients(SHAPES, 5, 1, powers=False)
  alone = jax.tree.map(lambda g: g[:, 0], grads)
  assert_close(train(tx, grads, True), train(sgd, alone, False))


def test_a_weight_decay_that_is_injected_may_be_set_in_the_state():
  make = optax.inject_hyperparams(rtopk_jax.rtopk_sgd, static_args=STATIC)
  tx = make(0.1, 1.0, AXIS, momentum=0.0, weight_decay=0.0, dense=False)
  update = lambda g, s: tx.update(g, s, params())[0]
  grads = harness.gradients(SHAPES, 1, 1)
  zero = jax.tree.map(lambda g: 0 * g[0], grads)

  def one(gradient, decay):
    state = tx.init(params())
    state.hyperparams["weight_decay"] = decay
    return update(gradient, state)

  mapped = jax.vmap(one, in_axes=(0, None), out_axes=None, axis_name=AXIS)
  found = jax.jit(mapped)(zero, jnp.float32(0.5))
  assert_close(found, jax.tree.map(lambda p: -0.05 * p, params()))
