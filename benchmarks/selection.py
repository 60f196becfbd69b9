"""Selection: ``python -m benchmarks.selection [--size=11.2e6] [--density 0.001 0.01] [--subsample=5]``.

Beside it, on the same vector: one read of it, the reference by ``lax.top_k``, the obvious way by
``lax.top_k`` and ``random.permutation``, and with torch installed its ``topk`` and ``randperm`` and the
sampled, inexact threshold that Deep Gradient Compression uses. ``temporary`` is memory that the compiled
program asks for, in bytes an entry of the vector.
"""

import argparse
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

import rtopk_jax
from benchmarks import picture, timing

_OURS = "rtopk_jax"


def _rivals(size: int, density: float, subsample: float) -> tuple[dict, dict]:
  """What is timed, and the temporary memory that compiled programs take."""
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
    "rtopk_jax, method=top_k": rtopk_jax.rtop_k(density, subsample, method="top_k"),
    "lax.top_k + permutation": obvious,
  }
  rivals, temporary = {}, {}
  for name, function in functions.items():
    compiled = jax.jit(function).lower(vector, key).compile()
    rivals[name] = lambda run=compiled: jax.block_until_ready(run(vector, key))
    analysis = compiled.memory_analysis()
    if analysis is not None:
      temporary[name] = f"{analysis.temp_size_in_bytes / size:.2f} d"
  if importlib.util.find_spec("torch"):
    rivals |= _torch_rivals(vector, k, r)
  return rivals, temporary


def _torch_rivals(vector: jax.Array, k: int, r: int) -> dict:
  import torch  # pyright: ignore[reportMissingImports]

  tensor = torch.from_numpy(np.array(vector))

  def exact():
    indices = torch.topk(tensor.abs(), r, sorted=False).indices[torch.randperm(r)[:k]]
    return tensor[indices], indices

  def sampled():
    # A hundredth of the entries stands for all; what exceeds its threshold is sent, more or less k.
    magnitudes = tensor.abs()
    sample = magnitudes[torch.randint(0, len(tensor), (len(tensor) // 100,))]
    threshold = torch.topk(sample, max(1, k // 100)).values.min()
    indices = (magnitudes >= threshold).nonzero()[:, 0]
    return tensor[indices], indices

  return {"torch topk + randperm": exact, "torch sampled threshold": sampled}


def main() -> None:
  """Prints a table for every density."""
  parser = argparse.ArgumentParser(description="Times the selection beside its rivals.")
  parser.add_argument("--size", type=lambda x: int(float(x)), default=11_200_000, help="d")
  parser.add_argument("--density", type=float, nargs="+", default=(0.001, 0.01), help="k/d")
  parser.add_argument("--subsample", type=float, default=5, help="r/k")
  parser.add_argument("--rounds", type=int, default=15, help="how often each is timed")
  parser.add_argument("--json", help="a file for the times")
  parser.add_argument("--png", help="a file for the picture")
  options = parser.parse_args()
  results, dots = {}, {}
  for density in options.density:
    rivals, temporary = _rivals(options.size, density, options.subsample)
    seconds = timing.in_turn(rivals, options.rounds)
    title = f"k/d = {100 * density:g} %, r/d = {100 * density * options.subsample:g} %"
    print(f"\n{title}\n\n{timing.table(seconds, _OURS, temporary=temporary)}")
    results[str(density)] = {"seconds": seconds, "temporary": temporary}
    dots[title] = {name: 1e3 * float(np.median(times)) for name, times in seconds.items()}
    timing.save(options.json, {"options": vars(options), "densities": results})
  picture.dots(options.png, dots, "milliseconds")


if __name__ == "__main__":
  main()
