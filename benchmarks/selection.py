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

import jax
import jax.numpy as jnp
import numpy as np

import rtopk_jax
from benchmarks import hlo, peers, picture, timing

_OURS = "rtopk_jax"
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
    "one read": lambda vector, key: jnp.max(jnp.abs(vector)),
    _OURS: selector,
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

  rivals = {"torch topk + randperm": exact, "torch sampled threshold": sampled}
  return {name: peers.waited_for(run, device) for name, run in rivals.items()}


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
    rivals, temporary, passes = _rivals(size, density, options.subsample)
    seconds = timing.in_turn(rivals, options.rounds, warm=1)
    title = (
      f"d = {size:,}, k/d = {100 * density:g} %, r/d = {100 * density * options.subsample:g} %"
    )
    print(f"\n{title}\n\n{timing.table(seconds, _OURS, temporary=temporary, passes=passes)}")
    found = {"size": size, "density": density, "seconds": seconds}
    results.append({**found, "temporary": temporary, "passes": passes})
    dots[title] = {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}
    timing.save(options.json, {"options": vars(options), "vectors": results})
  picture.dots(options.png, dots, "milliseconds")


if __name__ == "__main__":
  main()
