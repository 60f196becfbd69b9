"""Selection: ``python -m benchmarks.selection [--size=11.2e6] [--density 0.001 0.01] [--subsample=5]``.

Beside it, on the same vector: one read of it, the reference by ``lax.top_k``, the obvious way by
``lax.top_k`` and ``random.permutation``, and with torch installed its ``topk`` and ``randperm`` and the
sampled, inexact threshold that Deep Gradient Compression uses, on the kind of device that JAX uses.
Each call that is timed follows one of its own kind: after a rival that works on one core, another would wait for
the others to wake. ``--size`` may be given several times. ``temporary`` is memory that the compiled program asks
for, in bytes an entry of the vector; ``passes`` are bytes that it reads and writes, as it says itself, over 4 d.
"""

import argparse
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rtopk_jax
from benchmarks import hlo, peers, picture, timing

READ, OURS, SAMPLED = "one read", "rtopk_jax", "torch sampled threshold"
_SIZE = 11_200_000


def _rivals(size: int, density: float, subsample: float) -> tuple[dict, dict, dict]:
  """What is timed, and the temporary memory and the passes of compiled programs."""
  selector = rtopk_jax.rtop_k(density, subsample)
  k, r = selector.counts(size)
  vector, key = jax.random.laplace(jax.random.key(0), (size,), jnp.float32), jax.random.key(1)

  def obvious(vector, key):
    indices = jax.lax.top_k(jnp.abs(vector), r)[1]
    indices = indices[jax.random.permutation(key, r)[:k]]
    return vector[indices], indices

  functions = {
    READ: lambda vector, key: jnp.max(jnp.abs(vector)),
    OURS: selector,
    "rtopk_jax, method=sort": rtopk_jax.rtop_k(density, subsample, method="sort"),
    "lax.top_k + permutation": obvious,
  }
  rivals, temporary, passes = {}, {}, {}
  for name, function in functions.items():
    compiled = jax.jit(function).lower(vector, key).compile()
    rivals[name] = lambda run=compiled: jax.block_until_ready(run(vector, key))
    analysis = compiled.memory_analysis()
    if analysis is not None:
      temporary[name] = f"{analysis.temp_size_in_bytes / size:.2f} d"
    moved = hlo.Program(str(compiled.as_text())).moved(turns=True)
    passes[name] = sum(bytes for bytes, _ in moved) / (4 * size)
  device = peers.torch_device()
  if device is not None:
    rivals |= _torch_rivals(vector, k, r, device)
  return rivals, temporary, passes


def _torch_rivals(vector: jax.Array, k: int, r: int, device: str) -> dict:
  import torch  # pyright: ignore[reportMissingImports]

  tensor = torch.from_numpy(np.array(vector)).to(device)

  def exact():
    order = torch.randperm(r, device=device)
    indices = torch.topk(tensor.abs(), r, sorted=False).indices[order[:k]]
    return tensor[indices], indices

  def sampled():
    # A hundredth of the entries stands for all; what exceeds its threshold is sent, more or less k.
    magnitudes = tensor.abs()
    places = torch.randint(0, len(tensor), (len(tensor) // 100,), device=device)
    sample = magnitudes[places]
    threshold = torch.topk(sample, max(1, k // 100)).values.min()
    indices = (magnitudes >= threshold).nonzero()[:, 0]
    return tensor[indices], indices

  rivals = {"torch topk + randperm": exact, SAMPLED: sampled}
  return {name: peers.waited_for(run, device) for name, run in rivals.items()}


def measure(size: int, density: float, subsample: float = 5, rounds: int = 15) -> dict[str, Any]:
  """Times the selection from one vector, and its rivals.

  Args:
    size: d.
    density: k/d.
    subsample: r/k.
    rounds: how often each is timed.

  Returns:
    "size", "density"; and by the name of each rival "seconds" of every call and, of compiled programs, "temporary"
    memory and "passes" over d.
  """
  rivals, temporary, passes = _rivals(size, density, subsample)
  seconds = timing.in_turn(rivals, rounds, warm=1)
  found = {"size": size, "density": density, "seconds": seconds}
  return {**found, "temporary": temporary, "passes": passes}


def main() -> None:
  """Prints a table for every size and density."""
  parser = argparse.ArgumentParser(description="Times the selection beside its rivals.")
  parser.add_argument(
    "--size", type=lambda x: int(float(x)), action="append", help=f"d; default: {_SIZE:,}"
  )
  parser.add_argument("--density", type=float, nargs="+", default=(0.001, 0.01), help="k/d")
  parser.add_argument("--subsample", type=float, default=5, help="r/k")
  parser.add_argument("--rounds", type=int, default=15, help="how often each is timed")
  parser.add_argument("--json", help="a file for the times")
  parser.add_argument("--png", help="a file for the picture")
  options = parser.parse_args()
  results, dots = [], {}
  for size, density in itertools.product(options.size or [_SIZE], options.density):
    found = measure(size, density, options.subsample, options.rounds)
    seconds, columns = found["seconds"], {x: found[x] for x in ("temporary", "passes")}
    title = (
      f"d = {size:,}, k/d = {100 * density:g} %, r/d = {100 * density * options.subsample:g} %"
    )
    print(f"\n{title}\n\n{timing.table(seconds, OURS, **columns)}")
    results.append(found)
    dots[title] = {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}
    timing.save(options.json, {"options": vars(options), "vectors": results})
  picture.dots(options.png, dots, "milliseconds")


if __name__ == "__main__":
  main()
