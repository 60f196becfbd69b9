"""Exchanges on meshes of two axes: two kinds of links, and shards of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo
from tests.rtopk_jax import harness, reference
from tests.rtopk_jax.exchange import meshes

AXIS = harness.AXIS


@pytest.mark.parametrize(
  "outer",
  [rtopk_jax.AllGather(), pytest.param(rtopk_jax.ReduceScatter(), marks=pytest.mark.slow)],
)
def test_hierarchical_is_the_exchange_of_means(outer):
  mesh, axes = meshes.of_two(("slice", "chip")), ("slice", "chip")
  dense = {"w": False, "b": True}
  make = lambda axes, collective: rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.1), axes, clip_norm=5.0, dense=dense, collective=collective
  )
  tx = make(axes, rtopk_jax.Hierarchical("chip", outer))
  params = {"w": jnp.zeros((40, 30)), "b": jnp.zeros(30)}
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal((2, 2, *x.shape)).astype(np.float32)
  grads = jax.tree.map(draw, params)
  specs = rtopk_jax.state_specs(tx, params, axes)
  state = rtopk_jax.init(tx, params, mesh, axes)
  assert state.residual["w"].shape == (2, 40, 30)
  update = jax.jit(
    jax.shard_map(
      lambda g, state: tx.update(jax.tree.map(lambda x: x[0, 0], g), state),
      mesh=mesh,
      in_specs=(P(*axes), specs),
      out_specs=(P(), specs),
    )
  )
  updates, state = update(grads, state)
  means = jax.tree.map(lambda x: x.mean(axis=1)[None], grads)
  expected, after = harness.run("shard_map", make(AXIS, outer), means)
  for name in params:
    np.testing.assert_allclose(updates[name], expected[name][0], atol=1e-6)
  np.testing.assert_allclose(state.residual["w"], after.residual["w"][0], atol=1e-6)


@pytest.mark.parametrize(
  "outer", [rtopk_jax.AllGather(), pytest.param("reduce_scatter", marks=pytest.mark.slow), None]
)
def test_chips_with_the_same_gradient_each_send_a_part(outer):
  """None is the dense exchange."""
  mesh = meshes.of_two(("slice", "chip"))
  make = lambda axis, *inner: (
    rtopk_jax.dense_exchange(axis, momentum=0.9, inner_axis=inner[0] if inner else None)
    if outer is None
    else rtopk_jax.sparse_exchange(
      rtopk_jax.rtop_k(0.1),
      axis,
      momentum=0.9,
      dense={"w": False, "b": True},
      collective=rtopk_jax.Hierarchical(*inner, outer, averaged=True) if inner else outer,
    )
  )
  tx = make("slice", "chip")
  params = {"w": jnp.zeros((40, 30)), "b": jnp.zeros(301)}
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal((2, *x.shape)).astype(np.float32)
  grads = jax.tree.map(draw, params)
  specs = rtopk_jax.state_specs(tx, params, "slice")
  update = jax.jit(
    jax.shard_map(
      lambda g, state: tx.update(jax.tree.map(lambda x: x[0], g), state),
      mesh=mesh,
      in_specs=(P("slice"), specs),
      out_specs=(P(), specs),
    )
  )
  state = rtopk_jax.init(tx, params, mesh, "slice")
  text = update.lower(grads, state).compile().as_text()
  sent = [x for x in hlo.Program(text).collectives() if x.crosses({0: 0, 1: 0, 2: 1, 3: 1})]
  # A chip has half of the dense leaves, of a message, or of a table with a row for every owner.
  assert max(array.entries for x in sent for array in x.arrays) <= {None: 751}.get(outer, 2 * 256)
  found, after = update(grads, state)
  expected, plain = harness.run("shard_map", make(AXIS), jax.tree.map(lambda x: x[None], grads))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, b[0])
  np.testing.assert_array_equal(after.momentum["w"], plain.momentum["w"][0])


def test_averaged_gradients_have_no_axis_of_the_exchange():
  collective = rtopk_jax.Hierarchical("chip", averaged=True)
  with pytest.raises(
    ValueError, match=r"axis_name=\('slice', 'chip'\) must not have the inner_axis='chip'"
  ):
    rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), ("slice", "chip"), collective=collective)
  with pytest.raises(TypeError, match="averaged must be True or False, got 1"):
    rtopk_jax.Hierarchical("chip", averaged=1)


PARAM_SPECS = {"w": P(None, "fsdp"), "n": P()}


def test_shards_of_a_model_exchange_over_replicas_alone():
  """Sharded leaves: each shard is exchanged as by itself. Others: the same on all shards."""
  mesh = meshes.of_two(("replica", "fsdp"))
  params = {"w": jnp.zeros((40, 60)), "n": jnp.zeros((50, 40))}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "replica", dense=False, clip_norm=50.0)
  specs = rtopk_jax.state_specs(tx, params, "replica", PARAM_SPECS)
  assert specs.residual == {"w": P("replica", None, "fsdp"), "n": P("replica")}
  state = rtopk_jax.init(tx, params, mesh, "replica", PARAM_SPECS)
  rng = np.random.default_rng(0)
  grads = {k: rng.standard_normal((2, *x.shape)).astype(np.float32) for k, x in params.items()}
  update = jax.jit(
    jax.shard_map(
      lambda g, state: tx.update(jax.tree.map(lambda x: x[0], g), state),
      mesh=mesh,
      in_specs=({"w": P("replica", None, "fsdp"), "n": P("replica")}, specs),
      out_specs=(PARAM_SPECS, specs),
    )
  )
  updates, state = update(grads, state)
  # One norm over the whole gradient of a replica, not of a shard.
  norms = np.sqrt(sum((g.reshape(2, -1) ** 2).sum(axis=1) for g in grads.values()))
  scale = np.minimum(1, 50 / np.sqrt(2) / norms)[:, None]
  for leaf, parts in (("w", np.split(grads["w"], 2, axis=2)), ("n", [grads["n"]])):
    expected = []
    for part in parts:
      flat = part.reshape(2, -1) * scale
      message = np.stack([reference.keep_largest(row, row.size // 10) for row in flat])
      expected.append(message.mean(axis=0).reshape(part.shape[1:]))
    np.testing.assert_allclose(updates[leaf], np.concatenate(expected, axis=-1), atol=1e-6)
  metrics = rtopk_jax.exchange_metrics(state)
  residual = np.sqrt(np.mean(sum((np.asarray(x) ** 2).reshape(2, -1).sum(1) for x in
                                 jax.tree.leaves(state.residual))))  # fmt: skip
  np.testing.assert_allclose(metrics["residual_norm"], residual, rtol=1e-4)


def test_one_bad_shard_makes_all_of_them_skip():
  mesh = meshes.of_two(("replica", "fsdp"))
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "replica", dense=False)
  params, param_specs = {"w": jnp.zeros((4, 60))}, {"w": P(None, "fsdp")}
  specs = rtopk_jax.state_specs(tx, params, "replica", param_specs)
  state = rtopk_jax.init(tx, params, mesh, "replica", param_specs)
  update = jax.shard_map(
    lambda g, state: tx.update({"w": g[0]}, state),
    mesh=mesh,
    in_specs=(P("replica", None, "fsdp"), specs),
    out_specs=(param_specs, specs),
  )
  g = np.ones((2, 4, 60), np.float32)
  g[1, 2, 45] = np.nan
  updates, state = jax.jit(update)(g, state)
  assert not np.any(updates["w"])
  assert not np.any(state.residual["w"])
  assert rtopk_jax.exchange_metrics(state)["skipped_steps"] == 1
