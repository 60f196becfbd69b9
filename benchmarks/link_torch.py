"""One worker of ``slow_link`` in PyTorch: what its users have, without their forward and backward pass.

    python benchmarks/link_torch.py RANK WORKERS ADDRESS COORDINATOR OPTIONS

DDP hands a full bucket of gradients to a communication hook and waits for what the hook returns. Here the
hook is handed the same bucket directly, so that its time is the exchange's and nothing else's.
"""

import datetime
import json
import math
import os
import pathlib
import sys

import torch  # pyright: ignore[reportMissingImports]
import torch.distributed as dist  # pyright: ignore[reportMissingImports]
from torch.distributed.algorithms.ddp_comm_hooks import (  # pyright: ignore[reportMissingImports]
  default_hooks,
  powerSGD_hook,
)

# Also where the library and JAX are not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import link_protocol, trees

_RANK = 4


class Bucket:
  """All gradients in one bucket, with the methods that hooks ask of DDP's own.

  Args:
    shapes: of the gradients.
  """

  def __init__(self, shapes: list[tuple[int, ...]]):
    self._drawn = torch.randn(sum(math.prod(shape) for shape in shapes))
    self._buffer = self._drawn.clone()
    self._shapes = shapes

  def fill(self) -> None:
    """A new backward pass: hooks write the mean into the bucket."""
    self._buffer.copy_(self._drawn)

  def buffer(self) -> torch.Tensor:
    """All gradients as one vector."""
    return self._buffer

  def set_buffer(self, buffer: torch.Tensor) -> None:
    """Replaces the vector."""
    self._buffer = buffer

  def gradients(self) -> list[torch.Tensor]:
    """Views of the vector."""
    parts = self._buffer.split([math.prod(shape) for shape in self._shapes])
    return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

  def parameters(self) -> list[torch.Tensor]:
    """Of the same shapes."""
    return self.gradients()

  def index(self) -> int:
    """The first bucket."""
    return 0

  def is_last(self) -> bool:
    """And the last."""
    return True


class TopK:
  """Top-k with error feedback in one all-gather, as a hook.

  Args:
    density: k/d.
  """

  def __init__(self, density: float):
    self._density = density
    self._residual: torch.Tensor | None = None

  def __call__(self, state: None, bucket: Bucket) -> torch.futures.Future:
    """The mean of what all workers select."""
    del state
    vector = bucket.buffer()
    if self._residual is not None:
      vector = vector.add_(self._residual)
    k = max(1, round(self._density * vector.numel()))
    indices = vector.abs().topk(k, sorted=False).indices
    values = vector[indices]
    self._residual = vector.clone().index_fill_(0, indices, 0.0)
    message = torch.cat([values.view(torch.int32), indices.to(torch.int32)])
    messages = [torch.empty_like(message) for _ in range(dist.get_world_size())]
    dist.all_gather(messages, message)
    mean = torch.zeros_like(vector)
    for each in messages:
      mean.index_add_(0, each[k:], each[:k].view(torch.float32))
    future = torch.futures.Future()
    future.set_result(mean.div_(len(messages)))
    return future


def main() -> None:
  """Answers orders until there are no more."""
  rank, workers, _, coordinator, options = sys.argv[1:]
  options = json.loads(options)
  os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = coordinator.split(":")
  os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
  torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))
  dist.init_process_group(
    "gloo", rank=int(rank), world_size=int(workers), timeout=datetime.timedelta(seconds=120)
  )
  torch.manual_seed(int(rank))
  bucket = Bucket(trees.shapes(options["tree"]))
  # From its first step on: what comes before that is dense.
  power = powerSGD_hook.PowerSGDState(
    None, matrix_approximation_rank=_RANK, start_powerSGD_iter=2, min_compression_rate=2
  )
  power.iter = power.start_powerSGD_iter
  hooks = {
    "DDP dense": (default_hooks.allreduce_hook, None),
    f"PowerSGD rank {_RANK}": (powerSGD_hook.powerSGD_hook, power),
    "DDP top-k hook": (TopK(options["density"]), None),
  }

  hook, state = hooks[options["does"]]
  exchange = link_protocol.Exchange(bucket.fill, lambda: hook(state, bucket).wait())
  one = torch.ones(1)
  barrier = lambda: dist.all_reduce(one.fill_(1))
  for rounds in link_protocol.orders():
    link_protocol.measure(exchange, rounds, barrier)
  dist.destroy_process_group()


if __name__ == "__main__":
  main()
