"""A small transformer whose parameters are sharded over one axis of a mesh and exchanged over another.

    python -m examples.sharded_transformer --replicas=2 --shards=2

The mesh is (replica, fsdp). Within a replica parameters are sharded over ``fsdp``, and the compiler moves them
as it sees fit over what is a fast link; between replicas, the slow link, there are packed words and the loss.
``make_train_step`` with ``param_specs`` is all that it takes.

The task is to copy: the second half of a sequence repeats the first.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 32, 16, 64, 4, 2

# Matrices are sharded over ``fsdp`` by their last axis; scales of the norms are the same on all shards.
SHARDED, WHOLE = P(None, "fsdp"), P()


def init(key: jax.Array) -> dict:
  """The parameters, as a tree of matrices and of scales."""
  keys = iter(jax.random.split(key, 2 + 4 * LAYERS))
  matrix = lambda rows, columns: (
    jax.random.normal(next(keys), (rows, columns), jnp.float32) / np.float32(rows**0.5)
  )
  params: dict = {"embed": matrix(VOCABULARY, WIDTH), "place": matrix(LENGTH, WIDTH)}
  for i in range(LAYERS):
    params[f"layer{i}"] = {
      "qkv": matrix(WIDTH, 3 * WIDTH),
      "out": matrix(WIDTH, WIDTH),
      "up": matrix(WIDTH, 4 * WIDTH),
      "down": matrix(4 * WIDTH, WIDTH),
      "scales": jnp.ones((2, WIDTH), jnp.float32),
    }
  return params


def param_specs(params: dict) -> dict:
  """Where each parameter lives."""
  is_scale = lambda path: path[-1].key == "scales"
  return jax.tree.map_with_path(lambda path, _: WHOLE if is_scale(path) else SHARDED, params)


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
  mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(mean_square + 1e-6) * scale[None, None]


def loss_fn(params: dict, tokens: jax.Array) -> jax.Array:
  """Cross entropy of the repeated half, tokens of shape (batch, LENGTH)."""
  x = params["embed"][tokens] + params["place"][None]
  causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None, None]
  for i in range(LAYERS):
    layer = params[f"layer{i}"]
    qkv = (_norm(x, layer["scales"][0]) @ layer["qkv"]).reshape(*tokens.shape, 3, HEADS, -1)
    q, k, v = (qkv[:, :, j] for j in range(3))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.float32((WIDTH / HEADS) ** 0.5)
    weights = jax.nn.softmax(jnp.where(causal, scores, jnp.float32(-1e9)))
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
    x = x + mixed @ layer["out"]
    x = x + jax.nn.relu(_norm(x, layer["scales"][1]) @ layer["up"]) @ layer["down"]
  half = LENGTH // 2
  logits = x[:, half - 1 : -1] @ params["embed"].T
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, half:]))


def make_mesh(replicas: int, shards: int) -> Mesh:
  """The mesh (replica, fsdp) of the first devices."""
  devices = jax.devices()[: replicas * shards]
  return jax.make_mesh((replicas, shards), ("replica", "fsdp"), devices=devices)


def make_step(tx: optax.GradientTransformation, mesh: Mesh, params: dict):
  """A compiled training step: ``step(params, state, tokens)`` to ``(params, state, loss)``."""
  specs = param_specs(params)
  return rtopk_jax.make_train_step(loss_fn, tx, mesh, "replica", param_specs=specs)


def make_optimizer() -> optax.GradientTransformation:
  """rTop-k at 5 % with momentum correction, all leaves compressed."""
  return optax.chain(
    rtopk_jax.sparse_exchange(
      rtopk_jax.rtop_k(0.05),
      "replica",
      momentum=0.9,
      clip_norm=1.0,
      dense=False,
      wire=rtopk_jax.Wire("bfloat16", "elias_fano"),
    ),
    optax.sgd(0.1),
  )


def start(tx: optax.GradientTransformation, mesh: Mesh, seed: int = 0) -> tuple[dict, object]:
  """Parameters and state, sharded."""
  params = init(jax.random.key(seed))
  specs = param_specs(params)
  place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
  params = jax.tree.map(place, params, specs)
  return params, rtopk_jax.init(tx, params, mesh, "replica", specs)


def batches(batch_size: int, seed: int = 0):
  """Sequences whose second half repeats the first, without end."""
  rng = np.random.default_rng(seed)
  while True:
    half = rng.integers(0, VOCABULARY, (batch_size, LENGTH // 2)).astype(np.int32)
    yield np.concatenate([half, half], axis=1)


def main():
  """Trains on as many CPU devices as the mesh wants."""
  parser = argparse.ArgumentParser(
    prog="python -m examples.sharded_transformer",
    description="Trains a sharded transformer to copy.",
  )
  parser.add_argument("--replicas", type=int, default=2, help="workers, which exchange sparsely")
  parser.add_argument("--shards", type=int, default=2, help="devices of each, over which it is cut")
  parser.add_argument("--steps", type=int, default=300, help="how many")
  arguments = parser.parse_args()
  # Of no effect where there are accelerators.
  jax.config.update("jax_num_cpu_devices", arguments.replicas * arguments.shards)
  mesh = make_mesh(arguments.replicas, arguments.shards)
  tx = make_optimizer()
  params, state = start(tx, mesh)
  step = make_step(tx, mesh, params)
  for i, tokens in zip(range(arguments.steps), batches(32 * arguments.replicas), strict=False):
    params, state, loss = step(params, state, tokens)
    if i % 50 == 0 or i == arguments.steps - 1:
      print(f"step {i:4d}: loss {float(loss):.3f}", flush=True)


if __name__ == "__main__":
  main()
