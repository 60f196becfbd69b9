"""Bytes and code by the number of workers, from compiled programs: ``python -m benchmarks.scaling``.

Compiles the exchange of one vector for 2 to 64 workers, each a device of this process, and reads from the
programs what every worker sends and receives and how many instructions there are. Nothing is run.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo, picture, timing

AXIS = "workers"
_WORKERS = (2, 4, 8, 16, 32, 64)
# What XLA calls a collective, and what the cost model does.
_KINDS = {
  "all-gather": rtopk_jax.Traffic.all_gather,
  "all-reduce": rtopk_jax.Traffic.all_reduce,
  "all-to-all": rtopk_jax.Traffic.all_to_all,
}


def transformations(density: float) -> dict:
  """What is compiled.

  Args:
    density: k/d.

  Returns:
    A transformation by name, the dense one first.
  """
  # The same r for every n, as k is.
  selector = rtopk_jax.rtop_k(density, subsample=4)
  sparse = lambda **options: rtopk_jax.sparse_exchange(selector, AXIS, dense=False, **options)
  return {
    "dense_exchange": rtopk_jax.dense_exchange(AXIS),
    "AllGather": sparse(),
    "ReduceScatter": sparse(collective="reduce_scatter"),
  }


def traffic(program: hlo.Program, workers: int) -> float:
  """Bytes that a worker sends, and receives.

  Args:
    program: a compiled exchange.
    workers: n.

  Returns:
    Bytes each way.
  """
  total = 0.0
  for collective in program.collectives():
    results = sum(array.entries * array.item for array in collective.arrays)
    operand = results // workers if collective.kind == "all-gather" else results
    total += _KINDS[collective.kind](operand, workers).link
  return total


def compiled(tx, size: int, workers: int) -> hlo.Program:
  """The exchange of one vector, compiled.

  Args:
    tx: the exchange.
    size: d.
    workers: n.
  """
  mesh = Mesh(np.array(jax.devices()[:workers]), (AXIS,))
  shape = jax.ShapeDtypeStruct((size,), jnp.float32)
  specs = rtopk_jax.state_specs(tx, shape, AXIS)
  make = jax.shard_map(tx.init, mesh=mesh, in_specs=P(), out_specs=specs)
  placed = lambda x, spec: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
  )
  state = jax.tree.map(placed, jax.eval_shape(make, shape), specs)
  mapped = jax.shard_map(
    lambda g, state: tx.update(g[0], state),
    mesh=mesh,
    in_specs=(P(AXIS), specs),
    out_specs=(P(), specs),
  )
  gradient = placed(jax.ShapeDtypeStruct((workers, size), jnp.float32), P(AXIS))
  # Only what is asked of the compiler matters, not how fast the code is.
  step = jax.jit(mapped, compiler_options={"xla_backend_optimization_level": 0})
  return hlo.Program(str(step.lower(gradient, state).compile().as_text()))


def main() -> None:
  """Prints the table and draws the picture."""
  parser = argparse.ArgumentParser(description="Bytes and code by the number of workers.")
  parser.add_argument("--size", type=lambda x: int(float(x)), default=1_000_000, help="d")
  parser.add_argument("--density", type=float, default=0.001, help="k/d")
  parser.add_argument("--workers", type=int, nargs="+", default=_WORKERS, help="n")
  parser.add_argument("--json", help="a file for the bytes")
  parser.add_argument("--png", help="a file for the picture")
  options = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", max(options.workers))
  print("| exchange | workers | bytes each way, compiled | of dense | wire_bytes | instructions |")
  print("|---|---|---|---|---|---|")
  rows, dense = [], {}
  for name, tx in transformations(options.density).items():
    for workers in options.workers:
      program = compiled(tx, options.size, workers)
      sent = traffic(program, workers)
      shape = jax.ShapeDtypeStruct((options.size,), jnp.float32)
      counted = rtopk_jax.wire_bytes(tx, shape, workers).link
      rows.append(dict(name=name, workers=workers, bytes=sent, counted=counted))
      rows[-1]["instructions"] = program.instructions
      share = 100 * sent / dense.setdefault(workers, sent)
      print(
        f"| {name} | {workers} | {sent:,.0f} | {share:.3g} % | {counted:,} | {program.instructions:,} |",
        flush=True,
      )
      timing.save(options.json, {"options": vars(options), "rows": rows})
  curves = {
    name: (options.workers, [row["bytes"] for row in rows if row["name"] == name])
    for name in dict.fromkeys(row["name"] for row in rows)
  }
  labels = ("workers", "bytes a worker sends, and receives, a step")
  picture.curves(options.png, curves, labels, log_y=True)


if __name__ == "__main__":
  main()
