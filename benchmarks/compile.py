"""How long a training step takes to its first result: ``python -m benchmarks.compile``.

The whole step of a small transformer (loss, gradient, exchange, ``optax.sgd``) on a mesh of two devices is traced,
lowered, compiled and run once, each time in a process of its own. The exchanges take turns. What is compared with is
the same step with ``jax.lax.pmean`` of the gradient. A layer has six leaves, and there are two more.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import timing

AXIS = "data"
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PMEAN, _WORKERS, _VOCABULARY, _LENGTH, _HEADS = "jax.lax.pmean", 2, 256, 32, 4
_DENSITY, _SUBSAMPLE = 0.001, 5


def _pmean() -> optax.GradientTransformation:
  update = lambda updates, state, params=None: (jax.lax.pmean(updates, AXIS), state)
  return optax.GradientTransformation(lambda params: (), update)


def _sparse(density: Any = _DENSITY, **options: Any) -> Callable[[], Any]:
  return lambda: rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(density, _SUBSAMPLE), AXIS, **options)


EXCHANGES: dict[str, Callable[[], Any]] = {
  _PMEAN: _pmean,
  "dense_exchange": lambda: rtopk_jax.dense_exchange(AXIS),
  "sparse_exchange": _sparse(),
  "with momentum and clipping": _sparse(momentum=0.9, clip_norm=1.0),
  "with five stages of warm-up": _sparse(rtopk_jax.warmup_density(_DENSITY, steps_per_epoch=10)),
}


def parameters(layers: int, width: int) -> dict[str, Any]:
  """Those of a transformer.

  Args:
    layers: how many.
    width: of its vectors.

  Returns:
    A tree of 6 · layers + 2 arrays.
  """
  full = lambda *shape: jnp.full(shape, 0.01, jnp.float32)
  tree: dict[str, Any] = {"embed": full(_VOCABULARY, width), "place": full(_LENGTH, width)}
  for i in range(layers):
    tree[f"layer{i}"] = {
      "scale1": full(width),
      "qkv": full(width, 3 * width),
      "out": full(width, width),
      "scale2": full(width),
      "up": full(width, 4 * width),
      "down": full(4 * width, width),
    }
  return tree


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * scale


def loss_fn(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
  """Cross entropy of the next token, tokens of shape (batch, 32)."""
  x = params["embed"][tokens] + params["place"][None]
  causal = jnp.tril(jnp.ones((_LENGTH, _LENGTH), bool))[None, None]
  for name in sorted(name for name in params if name.startswith("layer")):
    layer = params[name]
    heads = (_norm(x, layer["scale1"]) @ layer["qkv"]).reshape(*tokens.shape, _HEADS, -1)
    q, k, v = jnp.split(heads, 3, axis=-1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(causal, scores, -1e9)), v)
    x = x + mixed.reshape(x.shape) @ layer["out"]
    x = x + jax.nn.gelu(_norm(x, layer["scale2"]) @ layer["up"]) @ layer["down"]
  logits = x[:, :-1] @ params["embed"].T
  return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def first_step(exchange: str, layers: int, width: int) -> dict[str, float]:
  """Seconds to a step's first result, and what they went to.

  Args:
    exchange: a name of ``EXCHANGES``.
    layers: of the transformer.
    width: of its vectors.

  Returns:
    "trace", "lower", "compile", "run" and "total" in seconds, "cpu" in seconds of all cores, and "lines" of the
    jaxpr.
  """
  mesh = jax.make_mesh((_WORKERS,), (AXIS,), axis_types=(AxisType.Auto,))
  tx = optax.chain(EXCHANGES[exchange](), optax.sgd(0.1))
  params = parameters(layers, width)
  state, specs = rtopk_jax.init(tx, params, mesh, AXIS), rtopk_jax.state_specs(tx, params, AXIS)

  def step(params, state, tokens):
    loss, gradient = rtopk_jax.local_value_and_grad(loss_fn, AXIS)(params, tokens)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, jax.lax.pmean(loss, AXIS)

  mapped = jax.shard_map(
    step, mesh=mesh, in_specs=(P(), specs, P(AXIS)), out_specs=(P(), specs, P())
  )
  tokens = jnp.zeros((2 * _WORKERS, _LENGTH), jnp.int32)
  # What JAX does once, it has done.
  jax.block_until_ready(jax.jit(jnp.sort)(tokens))
  times, cpu = [time.perf_counter()], time.process_time()
  traced = jax.jit(mapped, donate_argnums=(0, 1)).trace(params, state, tokens)
  times.append(time.perf_counter())
  lowered = traced.lower()
  times.append(time.perf_counter())
  compiled = lowered.compile()
  times.append(time.perf_counter())
  jax.block_until_ready(compiled(params, state, tokens))
  times.append(time.perf_counter())
  spent = dict(zip(("trace", "lower", "compile", "run"), np.diff(times).tolist(), strict=True))
  return {
    **spent,
    "total": times[-1] - times[0],
    "cpu": time.process_time() - cpu,
    "lines": float(len(str(traced.jaxpr).splitlines())),
  }


def _in_a_process(exchange: str, layers: int, width: int) -> dict[str, float]:
  command = [sys.executable, "-m", "benchmarks.compile", f"--one={exchange}"]
  command += [f"--layers={layers}", f"--width={width}"]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(_WORKERS)}
  output = subprocess.run(
    command, cwd=_ROOT, env=environment, check=True, capture_output=True, text=True
  ).stdout
  return json.loads(output.splitlines()[-1])


def table(found: dict[str, list[dict[str, float]]]) -> str:
  """Medians in seconds, and how many times those of ``pmean`` they are, of wall-clock time and of all cores.

  Args:
    found: what ``first_step`` returned, several times for each exchange.

  Returns:
    A Markdown table.
  """
  median = {
    name: {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
    for name, runs in found.items()
  }
  heads = ["", "trace, s", "lower, s", "compile, s", "first step, s", "/ pmean", "cores / pmean"]
  lines = []
  for name, times in median.items():
    ratios = [times[key] / median[_PMEAN][key] for key in ("total", "cpu")]
    seconds = [times[key] for key in ("trace", "lower", "compile", "total")]
    lines.append([name, *(f"{x:.2f}" for x in (*seconds, *ratios))])
  return timing.markdown(heads, lines)


def main() -> None:
  """Prints a table for each number of layers."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--layers", type=int, action="append", help="10 and 50 if not given")
  parser.add_argument("--width", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--one", choices=EXCHANGES, help="one exchange, here, as JSON")
  parser.add_argument("--json", help="a file for all that was measured")
  options = parser.parse_args()
  layers = options.layers or [10, 50]
  if options.one:
    print(json.dumps(first_step(options.one, layers[0], options.width)))
    return
  result = {}
  for count in layers:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in EXCHANGES}
    for _ in range(options.rounds):
      for name, runs in found.items():
        runs.append(_in_a_process(name, count, options.width))
    print(f"\n{6 * count + 2} leaves, width {options.width}:\n\n{table(found)}", flush=True)
    result[str(6 * count + 2)] = found
  timing.save(options.json, result)


if __name__ == "__main__":
  main()
