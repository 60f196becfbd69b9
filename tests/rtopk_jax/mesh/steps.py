"""Training steps that are looked at compiled, and exchanges alone."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS = harness.AXIS, 4

SHAPES = {"w1": (40, 64), "b1": (64,), "w2": (64, 30), "b2": (30,)}


def params():
  return {name: jnp.full(shape, 0.01, jnp.float32) for name, shape in SHAPES.items()}


def loss_fn(params, x):
  hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
  return jnp.mean((hidden @ params["w2"] + params["b2"][None] - 1) ** 2)


def ready_made(tx, workers):
  mesh = harness.mesh(workers)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS)
  return step, (params(), rtopk_jax.init(tx, params(), mesh, AXIS), jnp.ones((16, 40)))


def by_hand(tx, workers, check_vma=True):
  mesh = harness.mesh(workers)
  specs = rtopk_jax.state_specs(tx, params(), AXIS)

  def worker(weights, state, x):
    loss, gradient = rtopk_jax.local_value_and_grad(loss_fn, AXIS)(weights, x)
    updates, state = tx.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state, jax.lax.pmean(loss, AXIS)

  step = jax.shard_map(
    worker,
    mesh=mesh,
    in_specs=(P(), specs, P(AXIS)),
    out_specs=(P(), specs, P()),
    check_vma=check_vma,
  )
  return jax.jit(step), (params(), rtopk_jax.init(tx, params(), mesh, AXIS), jnp.ones((16, 40)))


def by_hand_unchecked(tx, workers):
  return by_hand(tx, workers, check_vma=False)


STEPS = [ready_made, by_hand, by_hand_unchecked]


def exchange(dense=None, **options):
  selector = rtopk_jax.rtop_k(0.01, subsample=4)
  options = {"momentum": 0.9, "clip_norm": 1.0, **options}
  return rtopk_jax.sparse_exchange(selector, AXIS, dense=dense, **options)


def compiled(step, arguments):
  return step.lower(*arguments).compile().as_text()


def vectors(tx, workers, shapes=None, param_specs=None, axes=AXIS):
  """The exchange alone, of gradients that are shards where parameters are."""
  shapes = SHAPES if shapes is None else shapes
  leaves = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  mesh = workers if isinstance(workers, jax.sharding.Mesh) else harness.mesh(workers)
  count = math.prod(mesh.shape[name] for name in ((axes,) if isinstance(axes, str) else axes))
  specs = rtopk_jax.state_specs(tx, leaves, axes, param_specs)
  param_specs = param_specs or dict.fromkeys(leaves, P())
  of_gradient = {name: P(axes, *spec) for name, spec in param_specs.items()}
  step = jax.shard_map(
    lambda g, state: tx.update(jax.tree.map(lambda x: x[0], g), state),
    mesh=mesh,
    in_specs=(of_gradient, specs),
    out_specs=(param_specs, specs),
  )
  gradient = {name: jax.ShapeDtypeStruct((count, *x.shape), x.dtype) for name, x in leaves.items()}
  state = jax.eval_shape(lambda: rtopk_jax.init(tx, leaves, mesh, axes, param_specs))
  return jax.jit(step), (gradient, state)


OPERANDS = {
  "Elias-Fano": {"wire": rtopk_jax.Wire(indices="elias_fano")},
  "int8": {"wire": rtopk_jax.Wire("int8", "elias_fano")},
  "blocks": {"wire": rtopk_jax.Wire("int4", "block"), "scope": rtopk_jax.Block(64)},
  "owners": {"collective": "reduce_scatter"},
  "owners, leaf": {"collective": "reduce_scatter", "scope": "leaf"},
  "owners, int8": {
    "collective": rtopk_jax.ReduceScatter(slack=0.2),
    "wire": rtopk_jax.Wire("int8", "elias_fano"),
  },
}

TWO = ("slow", "fast")


def over_two_links(outer):
  """Dense over the fast axis, and over the slow one as the collective says."""
  return rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.01, 4), TWO, dense=False, collective=rtopk_jax.Hierarchical("fast", outer)
  )


def of_two_axes():
  kinds = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((4, 2), TWO, axis_types=kinds, devices=jax.devices()[:8])
