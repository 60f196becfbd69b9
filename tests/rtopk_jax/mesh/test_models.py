"""Parameters of plain trees, Flax NNX, Flax Linen and Equinox: the same few lines train each of them."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS, FEATURES, HIDDEN = harness.AXIS, 4, 8, 16


def plain():
  rng = np.random.default_rng(0)
  params = {
    "in": rng.standard_normal((FEATURES, HIDDEN)).astype(np.float32) / 3,
    "out": rng.standard_normal((HIDDEN, 1)).astype(np.float32) / 4,
  }
  return params, lambda params, x: jnp.tanh(x @ params["in"]) @ params["out"]


def of_nnx():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.hidden = nnx.Linear(FEATURES, HIDDEN, rngs=rngs)
      self.out = nnx.Linear(HIDDEN, 1, rngs=rngs)

    def __call__(self, x):
      return self.out(jnp.tanh(self.hidden(x)))

  graphdef, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
  return params, lambda params, x: nnx.merge(graphdef, params)(x)


def of_linen():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(1)(jnp.tanh(nn.Dense(HIDDEN)(x)))

  net = Net()
  return net.init(jax.random.key(0), jnp.ones((1, FEATURES))), net.apply


def of_equinox():
  net = eqx.nn.MLP(FEATURES, 1, HIDDEN, depth=1, activation=jnp.tanh, key=jax.random.key(0))
  params, static = eqx.partition(net, eqx.is_inexact_array)
  return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)


# All of them are trained in the recipes as well.
@pytest.mark.parametrize(
  "make",
  [plain, *(pytest.param(x, marks=pytest.mark.slow) for x in (of_nnx, of_linen, of_equinox))],
)
def test_the_loss_falls(make):
  params, apply = make()
  mesh = harness.mesh(WORKERS)
  tx = rtopk_jax.rtopk_sgd(0.02, density=0.2, axis_name=AXIS, clip_norm=2.0, dense=False)
  specs = rtopk_jax.state_specs(tx, params, AXIS)
  loss_fn = lambda params, x, y: jnp.mean((apply(params, x) - y) ** 2)

  def worker(params, state, x, y):
    loss, gradient = rtopk_jax.local_value_and_grad(loss_fn, AXIS)(params, x, y)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, jax.lax.pmean(loss, AXIS)

  step = jax.jit(
    jax.shard_map(
      worker,
      mesh=mesh,
      in_specs=(P(), specs, P(AXIS), P(AXIS)),
      out_specs=(P(), specs, P()),
    )
  )
  rng = np.random.default_rng(1)
  x = rng.standard_normal((64, FEATURES)).astype(np.float32)
  y = np.sin(x[:, :1]) + 0.5 * x[:, 1:2]
  state = rtopk_jax.init(tx, params, mesh, AXIS)
  structure = jax.tree.structure(params)
  losses = []
  for _ in range(60):
    params, state, loss = step(params, state, x, y)
    losses.append(float(loss))
  assert losses[-1] < 0.2 * losses[0]
  assert jax.tree.structure(params) == structure
