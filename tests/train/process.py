"""One process of several in ``test_processes``: trains a little, prints the hash of the parameters.

``python -m tests.train.process ADDRESS PROCESSES RANK DEVICES``
"""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np


def train() -> str:
  """Three steps of the language model, each process reading for its own workers; their hash."""
  import data
  from configs import language_quickstart
  from train.methods import make_rounds
  from train.tasks import make_task
  from train.workers import Workers, choose_mesh

  config = language_quickstart.get_config()
  config.num_workers, config.model.units, config.batch_size, config.unroll = 2, 8, 2, 5
  task = make_task(config)
  workers = Workers(
    make_rounds(config, "rtopk", task.loss, 10, 10, 1), 2, choose_mesh("devices", 2)
  )
  assert len(workers.local) == jax.local_device_count()
  seed = jnp.int32(0)
  state = workers.init(*task.init(jax.random.key(0)), seed)
  for batch in data.load(task.source(seed=0), workers.local, steps=3):
    state, _ = workers.step(state, (batch,), seed)
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(state.params):
    digest.update(np.asarray(leaf.addressable_data(0)).tobytes())
  return digest.hexdigest()


if __name__ == "__main__":
  address, processes, rank, devices = sys.argv[1], *map(int, sys.argv[2:])
  jax.config.update("jax_num_cpu_devices", devices)
  if processes > 1:
    jax.distributed.initialize(address, processes, rank)
  print(train())
