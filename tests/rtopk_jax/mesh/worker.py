"""One process of several in ``test_processes``: trains a little, prints the parameters as bytes in hex.

``python -m tests.rtopk_jax.mesh.worker ADDRESS PROCESSES RANK DEVICES``
"""

import sys

import jax
import numpy as np


def train() -> str:
  """Ten steps on all devices there are; the parameters' bytes."""
  import jax.numpy as jnp
  import optax
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P

  import rtopk_jax

  mesh = jax.make_mesh((jax.device_count(),), ("w",), axis_types=(jax.sharding.AxisType.Auto,))
  selector = rtopk_jax.rtop_k(rtopk_jax.Stages((0.3, 0.05), 5))
  tx = optax.chain(
    rtopk_jax.sparse_exchange(selector, "w", dense=False, momentum=0.9, clip_norm=3.0),
    optax.sgd(0.1),
  )
  # One on this process's own device, one of NumPy.
  params = {"w": jnp.ones((16, 8)), "b": np.zeros(8, np.float32)}
  state = rtopk_jax.init(tx, params, mesh, "w")
  loss_fn = lambda p, x: jnp.mean((jnp.tanh(x @ p["w"] + p["b"][None]) - x[:, :8]) ** 2)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, "w")
  rng = np.random.default_rng(0)
  for _ in range(10):
    batch = rng.standard_normal((16, 16)).astype(np.float32)
    place = jax.make_array_from_callback(
      batch.shape, NamedSharding(mesh, P("w")), lambda index, batch=batch: batch[index]
    )
    params, state, _ = step(params, state, place)
  shards = {
    b"".join(np.asarray(leaf.addressable_data(i)).tobytes() for leaf in jax.tree.leaves(params))
    for i in range(jax.local_device_count())
  }
  (shard,) = shards
  return shard.hex()


if __name__ == "__main__":
  address, processes, rank, devices = sys.argv[1], *map(int, sys.argv[2:])
  jax.config.update("jax_num_cpu_devices", devices)
  if processes > 1:
    jax.distributed.initialize(address, processes, rank)
  print(train())
