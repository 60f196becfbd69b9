"""One worker of ``slow_link`` in JAX, one process on a host of its own.

python -m benchmarks.link_jax RANK WORKERS ADDRESS COORDINATOR OPTIONS
"""

import ctypes
import dataclasses
import functools
import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import link_protocol, trees
from rtopk_jax.exchange import _cost

AXIS, CHIPS = "workers", "chips"
# Devices of a host for the exchange that averages densely between them first; for others it has one.
CHIPS_OF_HOST = 2


@dataclasses.dataclass(frozen=True)
class Method:
  """An exchange that is timed.

  Attributes:
    tx: the transformation.
    collective: that it sends by; None for the dense exchange.
    chips: how many devices of each host take part.
  """

  tx: Any
  collective: rtopk_jax.Collective | None
  chips: int = 1

  def local(self, d: int, k: int, workers: int, speed: rtopk_jax.LocalSpeed) -> float:
    """Seconds that a worker computes, by the cost model, for k of d entries."""
    if self.collective is None:
      return _cost.dense_cost(d, workers, speed).local
    return self.collective.cost(d, k, workers, rtopk_jax.Wire(), speed).local


def methods(density: float) -> dict[str, Method]:
  """The exchanges that are timed.

  Args:
    density: k/d.

  Returns:
    A method by the name of its row.
  """
  selector = rtopk_jax.rtop_k(density)

  def sparse(axis: str | tuple[str, ...] = AXIS, **options: Any):
    return rtopk_jax.sparse_exchange(selector, axis, dense=False, **options)

  short = rtopk_jax.Wire(values="bfloat16", indices="elias_fano")
  gather, owners = rtopk_jax.AllGather(), rtopk_jax.ReduceScatter()
  hierarchical = rtopk_jax.Hierarchical(CHIPS)
  return {
    "dense_exchange": Method(rtopk_jax.dense_exchange(AXIS), None),
    "AllGather": Method(sparse(collective=gather), gather),
    "AllGather, 28 bits": Method(sparse(collective=gather, wire=short), gather),
    "ReduceScatter": Method(sparse(collective=owners), owners),
    f"Hierarchical, {CHIPS_OF_HOST} chips": Method(
      sparse((AXIS, CHIPS), collective=hierarchical), hierarchical, CHIPS_OF_HOST
    ),
  }


def _exchange(method: Method, params: Any) -> link_protocol.Exchange:
  """An exchange of a gradient that is drawn at random."""
  chips = [
    [device for device in jax.devices() if device.process_index == host][: method.chips]
    for host in range(jax.process_count())
  ]
  single = method.chips == 1
  devices = np.array(chips)
  mesh = Mesh(devices[:, 0] if single else devices, (AXIS,) if single else (AXIS, CHIPS))
  axes = AXIS if single else (AXIS, CHIPS)
  tx, specs = method.tx, rtopk_jax.state_specs(method.tx, params, axes)

  def exchange(state, gradient):
    updates, state = tx.update(jax.tree.map(lambda x: x[0], gradient), state)
    # Donated memory goes to the first result of its size: arguments and results are in the same order.
    return state, jax.tree.map(lambda x: x[None], updates)

  mapped = jax.shard_map(exchange, mesh=mesh, in_specs=(specs, P(axes)), out_specs=(specs, P(axes)))
  rng = np.random.default_rng(jax.process_index())
  rows = NamedSharding(mesh, P(axes))
  draw = lambda x: rng.standard_normal((method.chips, *x.shape), np.float32)
  place = lambda x: jax.make_array_from_process_local_data(rows, draw(x))
  drawn = jax.tree.map(place, params)
  copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
  gradient = copy(drawn)
  state = rtopk_jax.init(tx, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params), mesh, axes)
  # The mean is written over the gradient, as PyTorch's hooks do it.
  step = jax.jit(mapped, donate_argnums=(0, 1)).lower(state, gradient).compile()

  def fill():
    nonlocal gradient
    gradient = None
    gradient = jax.block_until_ready(copy(drawn))

  def run():
    nonlocal state, gradient
    state, gradient = step(state, gradient)
    jax.block_until_ready((gradient, state))

  return link_protocol.Exchange(fill, run)


def _probe(workers: int, rounds: int, barrier: Callable[[], Any]) -> None:
  """Answers what a message's way takes, in seconds, and the bytes of a barrier."""
  seconds, before = [], 0
  for _ in range(rounds):
    begun = time.perf_counter()
    before = link_protocol.sent()
    barrier()
    seconds.append(time.perf_counter() - begun)
  barrier()
  # A sum over n workers takes 2 (n - 1) messages one after another.
  latency = float(np.median(seconds)) / (2 * (workers - 1))
  link_protocol.answer({"latency": latency, "barrier": (link_protocol.sent() - before) // 2})


def main() -> None:
  """Answers orders until there are no more: of one exchange, or of the link alone."""
  rank, workers, address, coordinator = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
  options = json.loads(sys.argv[5])
  method = methods(options["density"]).get(options["does"])
  # Gloo tells the others to find this worker where its host's name points.
  socket.sethostname(address)
  # An exchange has no threads for devices that it does not use.
  jax.config.update("jax_num_cpu_devices", method.chips if method else 1)
  jax.distributed.initialize(coordinator, workers, rank)
  mesh = Mesh(np.array([jax.local_devices(host)[0] for host in range(workers)]), (AXIS,))
  params = [jax.ShapeDtypeStruct(x, jnp.float32) for x in trees.shapes(options["tree"])]
  rows = NamedSharding(mesh, P(AXIS))
  one = jax.make_array_from_process_local_data(rows, np.ones(1, np.float32))
  total = jax.shard_map(lambda x: lax.psum(x, AXIS), mesh=mesh, in_specs=P(AXIS), out_specs=P())
  meet = jax.jit(total).lower(one).compile()
  barrier = lambda: jax.block_until_ready(meet(one))
  barrier()
  if options["does"] == "local":
    local = rtopk_jax.measure_local(params, options["density"])
    link_protocol.answer(dataclasses.asdict(local))
  exchange = functools.partial(link_protocol.measure, _exchange(method, params)) if method else None
  # What compiling took, which the workers of all exchanges together may not have.
  ctypes.CDLL(None).malloc_trim(0)
  time_it = exchange or functools.partial(_probe, workers)
  for rounds in link_protocol.orders():
    time_it(rounds, barrier)
  barrier()
  jax.distributed.shutdown()


if __name__ == "__main__":
  main()
