"""The example of a shared random subset: nothing is lost, one subset for all, and short indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from examples.own_order import random_then_top_k
from tests.rtopk_jax import harness

pytestmark = pytest.mark.usefixtures("usual_promotion")
SHAPES = {"a": (20, 10), "b": (40,)}
SIZE, AXIS = 240, harness.AXIS


def _run(tx, grads):
  """Updates and states of every step, workers side by side."""
  zeros = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  axes = rtopk_jax.state_axes(tx, zeros)
  state = jax.vmap(tx.init, None, axes, axis_name=AXIS, axis_size=4)(zeros)
  update = jax.jit(jax.vmap(tx.update, (0, axes), (None, axes), axis_name=AXIS))
  found = []
  for i in range(len(grads["a"])):
    mean, state = update({name: jnp.asarray(g[i]) for name, g in grads.items()}, state)
    found.append((mean, state))
  return found


def _flat(tree):
  return np.concatenate([np.reshape(tree[name], -1) for name in SHAPES])


def test_what_was_sent_and_what_is_kept_is_what_came_in():
  grads = harness.gradients(SHAPES, 4, 4, powers=False)
  found = _run(random_then_top_k(0.5, 0.1, AXIS, wire="int8", average="sum"), grads)
  came_in = went_out = 0.0
  for i, (mean, state) in enumerate(found):
    came_in += sum(_flat({n: g[i, w] for n, g in grads.items()}) for w in range(4))
    went_out += _flat(mean)
    kept = np.asarray(state.residual, np.float64).reshape(4, SIZE).sum(axis=0)
    np.testing.assert_allclose(went_out + kept, came_in, atol=1e-4)


def test_all_send_the_largest_of_one_subset_which_changes():
  grads = harness.gradients(SHAPES, 3, 4, powers=False)
  found = _run(random_then_top_k(0.25, 0.2, AXIS), grads)
  seen = []
  for mean, _ in found:
    places = np.flatnonzero(_flat(mean))
    # 12 of 60 entries of each worker, which meet.
    assert 12 <= len(places) <= 48
    seen.append(set(places.tolist()))
  assert len({frozenset(x) for x in seen}) == 3
  # The first step's residual is the gradient but at 12 places, all of them in the subset.
  kept = np.asarray(found[0][1].residual).reshape(4, SIZE)
  for worker in range(4):
    mine = _flat({name: g[0, worker] for name, g in grads.items()})
    sent = np.flatnonzero(kept[worker] != mine)
    assert len(sent) == 12
    assert set(sent.tolist()) <= seen[0]


def test_a_step_that_is_not_finite_changes_nothing():
  grads = harness.gradients(SHAPES, 2, 4, powers=False)
  grads["a"][1, 2, 0, 0] = np.nan
  (_, before), (mean, after) = _run(random_then_top_k(0.5, 0.1, AXIS), grads)
  assert not np.any(_flat(mean))
  np.testing.assert_array_equal(before.residual, after.residual)
  assert int(before.count) == int(after.count) == 1


def test_state_lies_on_a_mesh_and_messages_are_short():
  tx = random_then_top_k(0.1, 0.1, AXIS, wire=rtopk_jax.Wire("int8", "elias_fano"))
  params = jnp.zeros(100_000)
  specs = rtopk_jax.state_specs(tx, params, AXIS)
  assert specs.residual == jax.sharding.PartitionSpec(AXIS)
  assert specs.count == jax.sharding.PartitionSpec()
  # 1,000 entries of 8 bits, and about 5.4 bits for an index of 10,000; 12 bits where it is one of 100,000.
  whole = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.01), AXIS, dense=False, wire=rtopk_jax.Wire("int8", "elias_fano")
  )
  own, other = (rtopk_jax.wire_bytes(x, params, 4).sent for x in (tx, whole))
  assert own < 0.95 * other
  grads = {"a": harness.gradients({"a": (200,)}, 1, 4, powers=False)["a"][0]}
  mesh = harness.mesh(4)
  small = random_then_top_k(0.5, 0.1, AXIS)
  state = rtopk_jax.init(small, {"a": jnp.zeros(200)}, mesh, AXIS)
  assert state.residual.shape[0] == 4
  step = rtopk_jax.make_train_step(lambda p, batch: jnp.sum(p["a"] * batch), small, mesh, AXIS)
  moved, state, _ = step({"a": jnp.zeros(200)}, state, jnp.asarray(grads["a"]))
  assert 10 <= np.count_nonzero(moved["a"]) <= 40
