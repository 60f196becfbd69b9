"""A small program of a user: `make package` runs it with the built wheel, and checks its types strictly."""

# What JAX and optax leave unknown is not counted.
# pyright: strict, reportUnknownMemberType=false, reportMissingTypeStubs=false

import importlib.metadata
import pathlib
from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rtopk_jax
from rtopk_jax import estimation

Params = dict[str, jax.Array]


def loss_fn(params: Params, batch: Params) -> jax.Array:
  """A linear regression."""
  return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)


def main() -> None:
  """Trains for a few steps, counts bytes, asks for advice, and uses the paper's statistics."""
  assert "site-packages" in pathlib.Path(rtopk_jax.__file__ or "").parts, rtopk_jax.__file__
  assert importlib.metadata.version("rtopk-jax") == rtopk_jax.__version__
  jax.config.update("jax_num_cpu_devices", 2)
  mesh = jax.make_mesh((2,), ("data",))

  selector = rtopk_jax.rtop_k(0.01)
  assert_type(selector.entries(3000, 2), int)
  exchange = rtopk_jax.sparse_exchange(selector, "data", wire=rtopk_jax.Wire("bfloat16"))
  assert_type(exchange, optax.GradientTransformationExtraArgs)
  tx = optax.chain(exchange, optax.sgd(0.1))
  params = {"w": jnp.zeros((100, 30))}
  batch = {"x": jnp.ones((16, 100)), "y": jnp.ones((16, 30))}
  state = rtopk_jax.init(tx, params, mesh, "data")
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, "data")
  losses: list[float] = []
  for _ in range(3):
    params, state, loss = step(params, state, batch)
    losses.append(float(loss))
  assert losses[2] < losses[0], losses

  counted = rtopk_jax.wire_bytes(tx, params, 2)
  assert_type(counted, rtopk_jax.WireBytes)
  assert counted.sent < 4 * 3000
  assert np.all(np.asarray(rtopk_jax.exchange_metrics(state)["skipped_steps"]) == 0)
  advice = rtopk_jax.advise(25.6e6, 16, "1Gbit/s")
  assert_type(advice.compress, bool)
  assert advice.compress

  model = estimation.SparseBernoulli(dimension=100, sparsity=5)
  theta = model.uniform(jax.random.key(0))
  assert_type(theta, jax.Array)
  scheme = estimation.RandomOnes(max_ones=10)
  assert scheme.risk(np.asarray(theta), 4) > 0
  print(
    f"rtopk_jax {rtopk_jax.__version__}, JAX {jax.__version__}: loss {losses[0]:.3f}, {losses[2]:.3f}"
  )


if __name__ == "__main__":
  main()
