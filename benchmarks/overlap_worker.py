"""One worker of ``overlap``: a training step, with messages that arrive at once or a step later.

python -m benchmarks.overlap_worker RANK WORKERS ADDRESS COORDINATOR OPTIONS
"""

import dataclasses
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import compile as transformer
from benchmarks import link_protocol

AXIS = "workers"
AT_ONCE, LATER, COMPUTATION, NETWORK = "delay=0", "delay=1", "computation", "network"
PARTS = (COMPUTATION, NETWORK, AT_ONCE, LATER)
# Steps that are timed together, since a message travels under the step that follows.
STEPS = 4
_LENGTH = 32


@dataclasses.dataclass(frozen=True)
class _Nowhere(rtopk_jax.Collective):
  """As many messages as there are workers, all of them this worker's: what is computed without a network."""

  def gather(self, words, axis_name):
    own = lax.axis_index(axis_name).astype(words.dtype) * 0
    return jnp.broadcast_to(words + own, (lax.axis_size(axis_name), words.size))

  def traffic(self, size, num_workers):
    return rtopk_jax.Traffic.none()


def _training(density: float, mesh: Mesh, params: Any, tokens: jax.Array, **options: Any):
  """A step of training as a function without arguments, which begins it."""
  exchange = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(density, 2), AXIS, **options)
  tx = optax.chain(exchange, optax.sgd(1e-3))
  state = rtopk_jax.init(tx, params, mesh, AXIS)
  step = rtopk_jax.make_train_step(transformer.loss_fn, tx, mesh, AXIS)
  kept: list[Any] = [jax.tree.map(jnp.array, params), state]

  def begin():
    *kept[:], loss = step(kept[0], kept[1], tokens)
    return kept, loss

  return begin


def _network(density: float, mesh: Mesh, params: Any) -> Callable[[], Any]:
  """The collectives of a step alone, with as many bytes."""
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(density, 2), AXIS)
  size = rtopk_jax.wire_bytes(tx, params, mesh.size).sent // 4
  rows = NamedSharding(mesh, P(AXIS))
  words = jax.make_array_from_process_local_data(rows, np.zeros((1, size), np.uint32))
  gather = jax.shard_map(
    lambda x: lax.all_gather(x[0], AXIS, to="invarying"),
    mesh=mesh,
    in_specs=P(AXIS),
    out_specs=P(),
  )
  compiled = jax.jit(gather).lower(words).compile()
  return lambda: compiled(words)


def main() -> None:
  """Answers orders until there are no more: every part in turn."""
  rank, workers, address, coordinator = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
  options = json.loads(sys.argv[5])
  socket.sethostname(address)
  jax.distributed.initialize(coordinator, workers, rank)
  mesh = jax.make_mesh((workers,), (AXIS,))
  params = transformer.parameters(options["layers"], options["width"])
  rows = NamedSharding(mesh, P(AXIS))
  drawn = np.random.default_rng(rank).integers(0, 256, (options["batch"], _LENGTH), np.int32)
  tokens = jax.make_array_from_process_local_data(rows, drawn)
  one = jax.make_array_from_process_local_data(rows, np.ones(1, np.float32))
  total = jax.shard_map(lambda x: lax.psum(x, AXIS), mesh=mesh, in_specs=P(AXIS), out_specs=P())
  meet = jax.jit(total).lower(one).compile()
  barrier = lambda: jax.block_until_ready(meet(one))
  density, training = options["density"], (mesh, params, tokens)
  parts = {
    COMPUTATION: _training(density, *training, collective=_Nowhere()),
    NETWORK: _network(density, mesh, params),
    AT_ONCE: _training(density, *training),
    LATER: _training(density, *training, delay=1),
  }
  for begin in parts.values():
    jax.block_until_ready(begin())
  for rounds in link_protocol.orders():
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
      for name, begin in parts.items():
        barrier()
        begun = time.perf_counter()
        jax.block_until_ready([begin() for _ in range(STEPS)][-1])
        seconds[name].append((time.perf_counter() - begun) / STEPS)
    link_protocol.answer(seconds)
  barrier()
  jax.distributed.shutdown()


if __name__ == "__main__":
  main()
