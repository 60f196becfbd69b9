"""A collective with owners: all agree, O(k) bytes, as good as the others for training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import rtopk_jax
from tests.rtopk_jax import harness, reference
from tests.rtopk_jax.exchange import meshes

AXIS = harness.AXIS

PROPERTY_SHAPES = {"a": (12, 22), "b": (44,)}

PROPERTY = {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in PROPERTY_SHAPES.items()}


def owners_mean(gradients, k):
  """The mean that comes of each owner's k/n largest sums, in NumPy, where every message finds room.

  An owner's own rest, which it would keep, is in its sums.
  """
  n = len(gradients)
  flat = gradients.reshape(n, -1)
  message = np.stack([reference.keep_largest(row, k) for row in flat])
  rest = flat - message
  mean = np.zeros_like(flat[0])
  for owner in range(n):
    mine = np.arange(mean.size) // 32 % n == owner
    sums = np.where(mine, message.sum(axis=0) + rest[owner], 0)
    mean += reference.keep_largest(sums, k // n) / n
  return mean.reshape(gradients.shape[1:])


def sent_by_owners(shape, selector, slack):
  grads = harness.gradients({"w": shape}, 1, 4, powers=False)
  tx = rtopk_jax.sparse_exchange(
    selector, AXIS, dense=False, collective=rtopk_jax.ReduceScatter(slack)
  )
  updates, _ = harness.run("shard_map", tx, grads)
  return grads["w"][0], updates["w"][0]


def test_owners_that_are_sent_everything_send_the_whole_mean():
  gradients, mean = sent_by_owners((32, 40), rtopk_jax.top_k(1.0), slack=0.5)
  np.testing.assert_allclose(mean, gradients.mean(axis=0), atol=1e-6)


# What is sorted, and what is searched on every platform in its own way.
@pytest.mark.parametrize(
  ("platform", "shape"),
  [
    ("cpu", (32, 40)),
    ("cpu", (300, 256)),
    ("tpu", (300, 256)),
    pytest.param("gpu", (300, 256), marks=pytest.mark.slow),
  ],
  indirect=["platform"],
)
def test_the_largest_sums_are_sent_and_every_worker_gets_the_same(platform, shape):
  gradients, mean = sent_by_owners(shape, rtopk_jax.top_k(0.05), slack=3.0)
  k = round(0.05 * math.prod(shape))
  np.testing.assert_allclose(mean, owners_mean(gradients, k), atol=1e-6)


def test_bytes_do_not_grow_with_the_number_of_workers():
  params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
  link = lambda collective, n: (
    rtopk_jax.wire_bytes(
      rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), AXIS, collective=collective), params, n
    ).link
  )
  gathered, owned = link("all_gather", 64), link("reduce_scatter", 64)
  assert gathered > 30 * link("all_gather", 2)
  assert owned < 2.5 * link("reduce_scatter", 2)
  assert owned < gathered / 20


def _digits():
  """Handwritten digits, a fourth of them on each of 4 workers, and a small network."""
  pixels, labels = load_digits(return_X_y=True)
  rng = np.random.default_rng(0)
  order = rng.permutation(1796)
  x = (pixels[order] / 16).astype(np.float32).reshape(4, 449, 64)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32) / math.sqrt(shape[0])
  params = {"w": normal(64, 32), "b": np.zeros(32), "v": normal(32, 10), "c": np.zeros(10)}
  params = {name: p.astype(np.float32) for name, p in params.items()}
  return x, labels[order].astype(np.int32).reshape(4, 449), params


def _loss(params, x, y):
  hidden = jnp.tanh(x @ params["w"] + params["b"][None])
  logits = jax.nn.log_softmax(hidden @ params["v"] + params["c"][None])
  return -jnp.mean(jnp.take_along_axis(logits, y[:, None], axis=1))


def _trained(tx, x, y, params):
  """The loss of all digits after 200 batches of 64 on each worker."""
  axes = rtopk_jax.state_axes(tx, params)

  def worker(params, state, x, y, begin):
    batch = [jax.lax.dynamic_slice_in_dim(z, begin, 64) for z in (x, y)]
    return tx.update(jax.grad(_loss)(params, *batch), state)

  workers = jax.vmap(
    worker, in_axes=(None, axes, 0, 0, None), out_axes=(None, axes), axis_name=AXIS
  )

  def step(carry, begin):
    params, state = carry
    updates, state = workers(params, state, x, y, begin)
    return (jax.tree.map(lambda p, u: p - 0.3 * u, params, updates), state), None

  @jax.jit
  def run(params):
    init = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=4)
    begins = 64 * jnp.arange(200, dtype=jnp.int32) % (449 - 64)
    (params, _), _ = jax.lax.scan(step, (params, init(params)), begins)
    return _loss(params, x.reshape(-1, 64), y.reshape(-1))

  return float(run(params))


@pytest.mark.slow
def test_all_exchanges_train_a_network_equally_far():
  """2 % of 2,410 entries a step, of which an owner sends on a fourth, cost next to nothing."""
  x, y, params = _digits()
  start = float(_loss(params, x.reshape(-1, 64), y.reshape(-1)))
  dense = _trained(rtopk_jax.dense_exchange(AXIS), x, y, params)
  assert dense < 0.1 * start
  sparse = lambda **options: _trained(
    rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.02), AXIS, dense=False, **options), x, y, params
  )
  for collective in ("all_gather", "reduce_scatter"):
    assert abs(sparse(collective=collective) - dense) < 0.05 * dense
  # Where something is lost, here all that is not sent, it shows.
  assert sparse(error_feedback=False) > 1.5 * dense


@pytest.mark.parametrize(
  "over", [*(pytest.param(x, marks=pytest.mark.slow) for x in ("pmap", "vmap")), "two axes"]
)
def test_owners_are_the_same_workers_in_every_map(over):
  tx = lambda axis: rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.1), axis, dense=False, momentum=0.5, collective="reduce_scatter"
  )
  grads = harness.gradients(PROPERTY_SHAPES, 2, 4)
  expected, after = harness.run("shard_map", tx(AXIS), grads)
  if over != "two axes":
    updates, state = harness.run(over, tx(AXIS), grads)
    jax.tree.map(
      np.testing.assert_array_equal, (updates, state.residual), (expected, after.residual)
    )
    return
  axes = ("host", "device")
  exchange, mesh = tx(axes), meshes.of_two(axes)
  specs = rtopk_jax.state_specs(exchange, PROPERTY, axes)
  assert specs.residual["a"] == P(axes)
  update = jax.jit(
    jax.shard_map(
      lambda g, state: exchange.update(jax.tree.map(lambda x: x[0], g), state),
      mesh=mesh,
      in_specs=(P(axes), specs),
      out_specs=(P(), specs),
    )
  )
  state = rtopk_jax.init(exchange, PROPERTY, mesh, axes)
  for i in range(2):
    updates, state = update(jax.tree.map(lambda g, i=i: g[i], grads), state)
    at = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
    for found, wanted in (
      (updates, expected),
      (state.residual, after.residual),
      (state.momentum, after.momentum),
    ):
      jax.tree.map(np.testing.assert_array_equal, found, at(wanted))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"average": "senders"}, 'average="senders"'),
    ({"error_feedback": False}, "error_feedback=False"),
    ({"scope": rtopk_jax.Block(64), "wire": rtopk_jax.Wire(indices="block")}, 'indices="block"'),
  ],
)
def test_what_owners_cannot_do_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, collective="reduce_scatter", **options)
