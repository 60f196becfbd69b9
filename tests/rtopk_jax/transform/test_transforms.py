"""What any optax transformation should do, asked of every public one in every map."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS = harness.AXIS, 2
sparse = functools.partial(rtopk_jax.sparse_exchange, axis_name=AXIS)
TRANSFORMS = {
  "plain": sparse(rtopk_jax.rtop_k(0.1)),
  "everything": sparse(
    rtopk_jax.rtop_k(rtopk_jax.Stages((0.5, 0.1), 2)),
    scope="leaf",
    average="senders",
    momentum=0.9,
    nesterov=True,
    clip_norm=1.0,
    dense=False,
    memory_decay=0.99,
    memory_dtype=jnp.bfloat16,
  ),
  "no memory": sparse(rtopk_jax.random_k(0.1, unbiased=True), error_feedback=False),
  "dense": rtopk_jax.dense_exchange(AXIS, momentum=0.9, clip_norm=1.0),
  "optimizer": rtopk_jax.rtopk_sgd(0.1, 0.1, AXIS, weight_decay=1e-4),
}
SPARSE = [name for name in TRANSFORMS if name not in ("dense", "no memory")]


def params(dtype=jnp.float32):
  # One leaf that is compressed and one that is not; 1,024 entries is where that changes.
  return {"w": jnp.ones((32, 32), dtype), "b": jnp.ones((5,), dtype)}


def mapped_update(tx, mesh=None):
  mesh = harness.mesh(WORKERS) if mesh is None else mesh
  specs = rtopk_jax.state_specs(tx, params(), AXIS)
  return jax.jit(
    jax.shard_map(
      lambda gradient, state, weights: tx.update(
        jax.tree.map(lambda g: g[0], gradient), state, weights
      ),
      mesh=mesh,
      in_specs=(P(AXIS), specs, P()),
      out_specs=(P(), specs),
    )
  )


def placed(dtype=jnp.float32):
  """A gradient of each worker and parameters, on the mesh."""
  mesh = harness.mesh(WORKERS)
  rng = np.random.default_rng(0)
  gradient = jax.tree.map(
    lambda p: rng.standard_normal((WORKERS, *p.shape)).astype(p.dtype), params(dtype)
  )
  gradient = jax.device_put(gradient, NamedSharding(mesh, P(AXIS)))
  return gradient, jax.device_put(params(dtype), NamedSharding(mesh, P()))


def describe(state):
  return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), state)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_state_keeps_dtype_sharding_and_structure_and_compiles_once(name):
  tx = TRANSFORMS[name]
  update, (gradient, weights) = mapped_update(tx), placed()
  first = state = rtopk_jax.init(tx, params(), harness.mesh(WORKERS), AXIS)
  for _ in range(3):
    updates, state = update(gradient, state, weights)
    assert describe(state) == describe(first)
  assert update._cache_size() == 1
  assert jax.tree.structure(updates) == jax.tree.structure(weights)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(updates))
  assert all(np.any(x != 0) for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_init_of_shapes_is_init_of_arrays(name):
  tx = TRANSFORMS[name]
  shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params())
  abstract = lambda state: jax.tree.map(lambda x: (x.shape, x.dtype), state)
  outside = tx.init(params())
  assert abstract(tx.init(shapes)) == abstract(outside)
  assert abstract(jax.eval_shape(tx.init, params())) == abstract(outside)
  assert abstract(jax.eval_shape(tx.init, shapes)) == abstract(outside)
  specs = rtopk_jax.state_specs(tx, shapes, AXIS)
  assert jax.tree.structure(specs, is_leaf=lambda x: isinstance(x, P)) == jax.tree.structure(
    outside
  )
  assert specs == rtopk_jax.state_specs(tx, params(), AXIS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["plain", "dense"])
def test_updates_have_the_gradients_dtype_and_memory_is_float32(name, dtype):
  tx = TRANSFORMS[name]
  gradient, weights = placed(dtype)
  state = rtopk_jax.init(tx, params(dtype), harness.mesh(WORKERS), AXIS)
  updates, state = mapped_update(tx)(gradient, state, weights)
  assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
  memory = state.residual if name == "plain" else state.momentum
  assert {x.dtype for x in jax.tree.leaves(memory)} == {jnp.dtype(jnp.float32)}


NEIGHBOURS = {
  "sgd": (False, lambda tx: optax.chain(tx, optax.sgd(0.1, momentum=0.5))),
  "adam": (True, lambda tx: optax.chain(tx, optax.adam(0.1))),
  "adamw": (True, lambda tx: optax.chain(tx, optax.adamw(0.1))),
  "clip": (False, lambda tx: optax.chain(tx, optax.clip_by_global_norm(1.0), optax.sgd(0.1))),
  "schedule": (True, lambda tx: optax.chain(tx, optax.sgd(optax.cosine_decay_schedule(0.1, 9)))),
  "nested": (False, lambda tx: optax.chain(optax.chain(tx), optax.scale(-0.1))),
  "named": (False, lambda tx: optax.named_chain(("exchange", tx), ("step", optax.sgd(0.1)))),
}


@pytest.mark.filterwarnings("ignore:the exchange has momentum")
@pytest.mark.parametrize(
  ("name", "neighbour"),
  [
    pytest.param(name, x, marks=[] if name == "plain" or x == "adamw" else pytest.mark.slow)
    for name in ("plain", "dense")
    for x in NEIGHBOURS
  ],
)
def test_chains(name, neighbour, request):
  relaxed, chain = NEIGHBOURS[neighbour]
  if relaxed:
    request.getfixturevalue("usual_promotion")
  tx = chain(TRANSFORMS[name])
  gradient, weights = placed()
  state = rtopk_jax.init(tx, params(), harness.mesh(WORKERS), AXIS)
  updates, new_state = mapped_update(tx)(gradient, state, weights)
  assert describe(new_state) == describe(state)
  after = optax.apply_updates(weights, updates)
  # The exchange's entries move against the mean gradient, the leaf sent dense all of it.
  moved = np.asarray(weights["b"] - after["b"])
  assert np.all(np.sign(moved) == np.sign(np.mean(np.asarray(gradient["b"]), axis=0)))
  assert np.any(np.asarray(after["w"]) != np.asarray(weights["w"]))


def test_partition_into_sparse_and_dense_leaves():
  tx = optax.partition(
    {
      "sparse": optax.chain(sparse(rtopk_jax.top_k(0.1), dense=False), optax.sgd(1.0)),
      "dense": optax.chain(rtopk_jax.dense_exchange(AXIS), optax.sgd(1.0)),
    },
    {"w": "sparse", "b": "dense"},
  )
  gradient, weights = placed()
  state = rtopk_jax.init(tx, params(), harness.mesh(WORKERS), AXIS)
  updates, state = mapped_update(tx)(gradient, state, weights)
  mean = np.mean(np.asarray(gradient["b"]), axis=0)
  np.testing.assert_allclose(updates["b"], -mean, rtol=1e-6)
  k = round(0.1 * 32 * 32)
  assert k <= np.count_nonzero(updates["w"]) <= WORKERS * k
  assert optax.tree.get(state, "residual")["w"].shape == (WORKERS, 32, 32)


@pytest.mark.parametrize("name", SPARSE)
def test_state_can_be_read_with_the_tools_of_optax(name):
  tx = optax.chain(TRANSFORMS[name], optax.identity())
  state = rtopk_jax.init(tx, params(), harness.mesh(WORKERS), AXIS)
  gradient, weights = placed()
  _, state = mapped_update(tx)(gradient, state, weights)
  residual = optax.tree.get(state, "residual")
  assert jax.tree.map(jnp.shape, residual) == {"w": (WORKERS, 32, 32), "b": (WORKERS, 5)}
  with jax.numpy_dtype_promotion("standard"):  # a norm over floats and the int32 count
    assert np.isfinite(optax.tree.norm(state))
  doubled = optax.tree.map_params(tx, lambda x: x * 2, state)
  np.testing.assert_array_equal(optax.tree.get(doubled, "residual")["w"], 2 * residual["w"])
  halves = optax.tree.map_params(tx, lambda x, p: x.shape[1:] == p.shape, state, params())
  assert all(jax.tree.leaves(optax.tree.get(halves, "residual")))
  state = optax.tree.set(state, residual=jax.tree.map(jnp.zeros_like, residual))
  assert float(optax.tree.norm(optax.tree.get(state, "residual"))) == 0


def test_other_arguments_and_missing_params_are_taken():
  """As ``GradientTransformationExtraArgs`` promises."""
  for tx in (TRANSFORMS["plain"], rtopk_jax.dense_exchange(AXIS)):

    def one(gradient, tx=tx):
      return tx.update(gradient, tx.init(gradient), value=jnp.float32(1), unknown=None)[0]

    updates = jax.jit(jax.vmap(one, out_axes=None, axis_name=AXIS))(jnp.ones((2, 4)))
    np.testing.assert_array_equal(updates, np.ones(4))


def test_train_state():
  """Flax's TrainState calls ``tx.init`` and ``tx.update`` where it is made and applied: inside."""
  tx = optax.chain(sparse(rtopk_jax.top_k(0.5)), optax.sgd(0.1))
  mesh = harness.mesh(WORKERS)
  apply_fn = lambda p, x: x @ p["w"] + p["b"][None, :1]
  state_of = lambda p: TrainState.create(apply_fn=apply_fn, params=p, tx=tx)
  shapes = jax.eval_shape(state_of, params())
  specs: Any = jax.tree.map(lambda _: P(), shapes).replace(
    opt_state=rtopk_jax.state_specs(tx, params(), AXIS)
  )
  state = jax.jit(jax.shard_map(state_of, mesh=mesh, in_specs=P(), out_specs=specs))(params())

  def step(state, x):
    loss_fn = lambda p: jnp.mean(state.apply_fn(p, x) ** 2)
    loss, gradient = rtopk_jax.local_value_and_grad(loss_fn, AXIS)(state.params)
    return state.apply_gradients(grads=gradient), jax.lax.pmean(loss, AXIS)

  step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs, P(AXIS)), out_specs=(specs, P())))
  x = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
  losses = []
  for _ in range(10):
    state, loss = step(state, x)
    losses.append(float(loss))
  assert int(state.step) == 10
  assert losses[-1] < 0.5 * losses[0]
