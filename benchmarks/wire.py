"""The code of messages: ``python -m benchmarks.wire``.

Bits an index beside the least there can be, log₂ C(d, k)/k, for densities from 0.01 % to 10 %; and how long
encoding and decoding take beside the selection of what is sent. Indices within blocks are timed on as many
entries, evenly spread: their selection is another one. Each timed call follows one of its own kind: within a step what
is encoded has just been selected, and what is decoded has just arrived, so that both are in the caches.
"""

import argparse
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

import rtopk_jax
from benchmarks import picture, timing
from rtopk_jax.select._slices import Blocks

DENSITIES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
_TIMED = (0.001, 0.01)
_SELECTION = "selection"
WIRES = {
  "float32, int32": rtopk_jax.Wire(),
  "float32, elias_fano": rtopk_jax.Wire(indices="elias_fano"),
  "bfloat16, elias_fano": rtopk_jax.Wire("bfloat16", "elias_fano"),
  "int8, elias_fano": rtopk_jax.Wire("int8", "elias_fano"),
  "int4, elias_fano": rtopk_jax.Wire("int4", "elias_fano"),
  "int2, elias_fano": rtopk_jax.Wire("int2", "elias_fano"),
  "int8, block": rtopk_jax.Wire("int8", "block"),
}
_BLOCK = 4096


def entropy(d: int, k: int) -> float:
  """Bits an index of a uniformly random k-subset of d.

  Args:
    d: entries of the vector.
    k: entries sent.
  """
  log = math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)
  return log / math.log(2) / k


def index_bits(indices: str, d: int, k: int) -> float:
  """Bits an index that a code takes, the rounding to whole words included.

  Args:
    indices: the code.
    d: entries of the vector.
    k: entries sent.
  """
  # With values of 32 bits there is a word for each, and the rest are indices.
  return 32 * (rtopk_jax.Wire("float32", indices).words(k, d) - k) / k


def _rivals(size: int, density: float) -> dict:
  selector = rtopk_jax.rtop_k(density, subsample=4)
  k = selector.counts(size).k
  key = jax.random.key(1)
  vector = jax.random.laplace(jax.random.key(0), (size,), jnp.float32)
  select = jax.jit(selector).lower(vector, key).compile()
  slices = select(vector, key)
  rivals = {_SELECTION: lambda: jax.block_until_ready(select(vector, key))}
  even = np.arange(k, dtype=np.int64) * size // k
  blocks = Blocks((even // _BLOCK * _BLOCK).astype(np.int32), _BLOCK)
  in_blocks = dataclasses.replace(slices, indices=jnp.asarray(even, jnp.int32))
  for name, wire in WIRES.items():
    of_blocks = wire.indices == "block"
    sent, within = (in_blocks, blocks) if of_blocks else (slices, None)
    encode = jax.jit(lambda x, key, wire=wire, within=within: wire.encode(x, key, within))
    words = encode(sent, key)

    # One program, as within a step, and a message that came from elsewhere.
    def code(x, key, words, wire=wire, within=within):
      return wire.encode(x, key, within), wire.decode(words, k, size, within)

    code = jax.jit(code).lower(sent, key, words).compile()

    def both(code=code, sent=sent, words=words):
      jax.block_until_ready(code(sent, key, words))

    rivals[name] = both
  return rivals


def main() -> None:
  """Prints both tables."""
  parser = argparse.ArgumentParser(description="Bits and time of the wire's codes.")
  parser.add_argument("--size", type=lambda x: int(float(x)), default=11_200_000, help="d")
  parser.add_argument("--rounds", type=int, default=15, help="how often each is timed")
  parser.add_argument("--json", help="a file for the results")
  parser.add_argument("--png", help="a file for the picture")
  options = parser.parse_args()
  d = options.size
  print("| k/d | k | entropy, bits an index | elias_fano | above it |\n|---|---|---|---|---|")
  bits = []
  for density in DENSITIES:
    k = max(1, round(density * d))
    least, taken = entropy(d, k), index_bits("elias_fano", d, k)
    bits.append(dict(density=density, k=k, entropy=least, elias_fano=taken))
    print(f"| {100 * density:g} % | {k:,} | {least:.3f} | {taken:.3f} | {taken - least:.3f} |")
  times, dots = {}, {}
  for density in _TIMED:
    seconds = timing.in_turn(_rivals(d, density), options.rounds, warm=1)
    share = {
      name: f"{100 * np.median(taken) / np.median(seconds[_SELECTION]):.1f} %"
      for name, taken in seconds.items()
      if name != _SELECTION
    }
    print(f"\nk/d = {100 * density:g} %, encode + decode\n")
    print(timing.table(seconds, _SELECTION, share=share))
    times[str(density)] = seconds
    dots[f"k/d = {100 * density:g} %"] = {
      name: 1e3 * float(np.median(taken)) for name, taken in seconds.items()
    }
  timing.save(options.json, {"options": vars(options), "bits": bits, "seconds": times})
  picture.dots(options.png, dots, "milliseconds")


if __name__ == "__main__":
  main()
