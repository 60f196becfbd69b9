"""Replicas stay identical bit for bit, and every way to hold the state gives the same run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS, STEPS = harness.AXIS, 4, 6
SHAPES = {"a": (5, 8), "b": (23,)}
SPARSE = {"momentum": 0.9, "clip_norm": 2.0, "dense": False}


def make(selector=None, **options):
  selector = rtopk_jax.rtop_k(0.1) if selector is None else selector
  exchange = rtopk_jax.sparse_exchange(selector, AXIS, **{**SPARSE, **options})
  # A power of two: its product is exact, fused into a sum or not.
  return optax.chain(exchange, optax.sgd(0.125))


def params():
  return {name: jnp.ones(shape, jnp.float32) for name, shape in SHAPES.items()}


def grads():
  return harness.gradients(SHAPES, STEPS, WORKERS, powers=False)


def on_a_mesh(tx, check_vma=True):
  mesh = harness.mesh(WORKERS)
  specs = rtopk_jax.state_specs(tx, params(), AXIS)

  def worker(params, state, gradient):
    updates, state = tx.update(jax.tree.map(lambda g: g[0], gradient), state, params)
    return optax.apply_updates(params, updates), state

  step = jax.jit(
    jax.shard_map(
      worker,
      mesh=mesh,
      in_specs=(P(), specs, P(AXIS)),
      out_specs=(P(), specs),
      check_vma=check_vma,
    )
  )
  weights, state = params(), rtopk_jax.init(tx, params(), mesh, AXIS)
  for i in range(STEPS):
    weights, state = step(weights, state, jax.tree.map(lambda g: g[i], grads()))
  return weights, state


def assert_same_bytes(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize(
  ("check_vma", "options"),
  [
    (True, {}),
    pytest.param(True, {"average": "senders", "scope": "leaf"}, marks=pytest.mark.slow),
    pytest.param(True, {"dense": {"a": False, "b": True}}, marks=pytest.mark.slow),
    (True, {"selector": rtopk_jax.rtop_k(rtopk_jax.Stages((0.5, 0.1), 3))}),
    pytest.param(False, {"dense": {"a": False, "b": True}}, marks=pytest.mark.slow),
  ],
  ids=["global", "leaf", "dense", "warm-up", "unchecked"],
)
def test_every_device_holds_the_same_bytes(check_vma, options):
  tx = make(**options)
  weights, state = on_a_mesh(tx, check_vma)
  axes = rtopk_jax.state_axes(tx, params())
  shared = jax.tree.map(
    lambda axis, x: x if axis is None else None, axes, state, is_leaf=lambda x: x is None
  )
  for leaf in jax.tree.leaves((weights, shared)):
    shards = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
    assert len(shards) == WORKERS
    assert len(set(shards)) == 1
  # The memories, in contrast, are each worker's own.
  rows = [shard.data for shard in state[0].residual["a"].addressable_shards]
  assert len({np.asarray(row).tobytes() for row in rows}) == WORKERS


def simulated(tx, state):
  axes = rtopk_jax.state_axes(tx, params())
  step = jax.jit(
    jax.vmap(
      lambda gradient, state, weights: tx.update(gradient, state, weights),
      in_axes=(0, axes, None),
      out_axes=(None, axes),
      axis_name=AXIS,
    )
  )
  weights = params()
  for i in range(STEPS):
    updates, state = step(jax.tree.map(lambda g: g[i], grads()), state, weights)
    weights = optax.apply_updates(weights, updates)
  return weights, state


def in_pmap(tx, state):
  axes = rtopk_jax.state_axes(tx, params())

  def worker(gradient, state, weights):
    updates, state = tx.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state

  step = jax.pmap(
    worker,
    axis_name=AXIS,
    in_axes=(0, axes, None),
    out_axes=(None, axes),
    devices=jax.devices()[:WORKERS],
  )
  weights = params()
  for i in range(STEPS):
    weights, state = step(jax.tree.map(lambda g: g[i], grads()), state, weights)
  return weights, state


@pytest.mark.parametrize("run", [simulated, pytest.param(in_pmap, marks=pytest.mark.slow)])
def test_state_made_for_a_mesh_works_in_other_maps_bit_for_bit(run):
  tx = make(momentum=0.5, clip_norm=None)  # products are exact: see harness.gradients
  state = jax.device_get(rtopk_jax.init(tx, params(), harness.mesh(WORKERS), AXIS))
  assert_same_bytes(run(tx, state), on_a_mesh(tx))


def test_workers_draw_independently_and_seeds_matter():
  """All workers hold the same vector; what each sends is its own draw, and the same in every run."""
  same = {"w": np.ones((3, WORKERS, 200), np.float32)}

  def residuals(seed):
    tx = rtopk_jax.sparse_exchange(rtopk_jax.random_k(0.1), AXIS, dense=False, seed=seed)
    return harness.run("vmap", tx, same)[1].residual["w"]

  first = residuals(0)
  sent = first[0] == 0
  assert np.all(sent.sum(axis=1) == 20)
  assert len({row.tobytes() for row in sent}) == WORKERS
  assert not np.array_equal(sent, first[1] - first[0] != 1)
  np.testing.assert_array_equal(first, residuals(0))
  assert not np.array_equal(first, residuals(1))


def test_a_traced_seed_is_the_same_as_a_static_one():
  tx = lambda seed: rtopk_jax.sparse_exchange(rtopk_jax.random_k(0.2), AXIS, dense=False, seed=seed)

  def updates(seed):
    one = lambda g: tx(seed).update(g, tx(seed).init(g))[0]
    return jax.vmap(one, out_axes=None, axis_name=AXIS)(jnp.ones((3, 50)))

  traced, static = jax.jit(updates)(jnp.int32(3)), jax.jit(lambda: updates(3))()
  np.testing.assert_array_equal(traced, static)
