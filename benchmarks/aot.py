"""Training steps compiled for hardware that is not here: ``make aot-tpu``, ``make aot-gpu``.

    python -m benchmarks.aot tpu [--only=resnet18] [--json=FILE]
    python -m benchmarks.aot tpu --groups

XLA's compilers for TPUs and GPUs run on any machine (``jax[tpu]``, ``jax[cuda13]``). For every program this
compiles the whole training step and the exchange alone, and fails on what would make the exchange slow:

* a collective between workers that does not carry packed words (the mean of the loss is let through);
* anything of the exchange that sorts as many entries as a vector has;
* temporary memory of the exchange above d/2 bytes and what its state takes;
* more passes over d than ``--passes`` allows, and two for the mean over the chips of a worker, if it has several;
* code that grows with the number of workers.

Workers of several devices (``--groups``: they alone) are compiled as ``train`` has them, for two TPU slices and for
two hosts of GPUs, with a table of their collectives by axis.

Nothing is run, so nothing is said about time.
"""

import argparse
import dataclasses
import os
import sys
import time
from typing import Any

# The TPU compiler asks for a machine it cannot find here; these name one.
os.environ |= {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}

import jax
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import groups, hlo, models, timing, trees
from benchmarks.step import scope_of

# With the lines of the sources in a program, libtpu 0.0.42's inlining of calls may go round in circles for ever.
jax.config.update("jax_traceback_in_locations_limit", 0)

WORKERS, CHIPS = "workers", "chips"
Scope = str | rtopk_jax.Block
COLLECTIVES = {"all-gather": rtopk_jax.AllGather, "reduce-scatter": rtopk_jax.ReduceScatter}
_MOMENTUM = 0.9
# What a collective that carries no words may carry: the mean of the loss, which between slices takes a row of a
# tile.
_SMALL, _ROW = 64, 4 * 128
_H100 = """
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 clock_rate_ghz: 1.98 fpus_per_core: 128
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  device_memory_size: 84978434048 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
}
"""


@dataclasses.dataclass(frozen=True)
class Target:
  """Hardware that is compiled for.

  Attributes:
    name: what the table calls it.
    platform: "tpu" or "cuda".
    topology: arguments of ``get_topology_desc``.
    slices: above 1, the workers are the slices, each averaging densely over its own chips.
  """

  name: str
  platform: str
  topology: dict[str, Any]
  slices: int = 1

  def devices(self) -> list[Any]:
    """Its devices, slice by slice."""
    described = topologies.get_topology_desc(platform=self.platform, **self.topology)
    return sorted(described.devices, key=lambda x: (getattr(x, "slice_index", 0) or 0, x.id))

  def mesh(self) -> Mesh:
    """Its devices; one axis of workers, or of workers and the chips of each."""
    devices = self.devices()
    if self.slices == 1:
      return Mesh(np.array(devices), (WORKERS,))
    return Mesh(np.array(devices).reshape(self.slices, -1), (WORKERS, CHIPS))


def _gpus(count: int, hosts: int = 1) -> Target:
  shape = f"{hosts}x1x{count}"
  topology = {"topology_name": "h100", "target_config": _H100, "topology": shape}
  return Target(
    f"{hosts} × {count} H100" if hosts > 1 else f"{count} H100", "cuda", topology, hosts
  )


def _tpus(shape: str, slices: int = 1) -> Target:
  topology: dict[str, Any] = {"topology_name": f"v5e:{shape}"}
  if slices == 1:
    return Target(f"TPU v5e {shape}", "tpu", topology)
  return Target(f"{slices} × TPU v5e {shape}", "tpu", {**topology, "num_slices": slices}, slices)


TARGETS = {
  "tpu": (_tpus("4x4"), _tpus("16x16"), _tpus("4x4", slices=2)),
  "gpu": (_gpus(2), _gpus(8)),
}
# Workers, chips and shards, on what.
GROUPS = {
  "tpu": ((_tpus("4x4", slices=2), (2, 4, 4)),),
  "gpu": ((_gpus(8, hosts=2), (2, 2, 4)),),
}


@dataclasses.dataclass
class Found:
  """What the compiler made of one program.

  Attributes:
    target: the hardware.
    model: the network.
    scope: of the exchange.
    collective: by its name.
    workers: how many exchange.
    collectives: of the whole step, those that join workers.
    sent: bytes that ``wire_bytes`` counts.
    sorted: the longest sort of the exchange.
    temporary: bytes of temporary memory of the exchange.
    allowed: how many it may take: d/2, and as many as its state has. That is donated and not counted, but read
      until every message is there, so that the new one may be made beside it.
    passes: bytes that the exchange moves, over 4 d.
    kernels: instructions of the exchange that run on their own.
    instructions: of the exchange.
    seconds: that compiling took.
    misses: what is not as it should be.
  """

  target: str
  model: str
  scope: str
  collective: str
  workers: int
  collectives: list[str]
  sent: int
  sorted: int
  temporary: int
  allowed: int
  passes: float
  kernels: int
  instructions: int
  seconds: float
  misses: list[str]


def examine(
  target: Target, name: str, scope: Scope, collective: str, density: float, max_passes: float
) -> Found:
  """Compiles one program and looks at it.

  Args:
    target: the hardware.
    name: of the model.
    scope: of the exchange.
    collective: a key of ``COLLECTIVES``.
    density: k/d.
    max_passes: how many passes over d the exchange may make.

  Returns:
    What was found.
  """
  mesh, model = target.mesh(), models.model(name)
  workers = mesh.shape[WORKERS]
  hierarchical = target.slices > 1
  axes = (WORKERS, CHIPS) if hierarchical else WORKERS
  between = COLLECTIVES[collective]()
  exchange = rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(density),
    axes,
    scope=scope,
    momentum=_MOMENTUM,
    dense=False,
    collective=rtopk_jax.Hierarchical(CHIPS, between) if hierarchical else between,
  )
  begun = time.perf_counter()
  step = _compile_step(model, optax.chain(exchange, optax.sgd(0.1)), mesh, axes)
  alone = _compile_exchange(model.params, exchange, mesh, axes)
  seconds = time.perf_counter() - begun

  part = {i: i // (mesh.size // workers) for i in range(mesh.size)}
  crossing = [x for x in hlo.Program(step.as_text()).collectives() if x.crosses(part)]
  program, memory = hlo.Program(alone.as_text()), alone.memory_analysis()
  # Residual and momentum.
  state = 2 * 4 * model.size
  found = Found(
    target=target.name,
    model=name,
    scope=str(scope),
    collective=f"hierarchical, {collective}" if hierarchical else collective,
    workers=workers,
    collectives=[str(x) for x in crossing],
    sent=rtopk_jax.wire_bytes(exchange, model.params, workers).sent,
    sorted=max(program.sorts(), default=0),
    temporary=memory.temp_size_in_bytes,
    allowed=model.size // 2 + state,
    passes=sum(moved for moved, _ in program.moved()) / (4 * model.size),
    kernels=program.launches,
    instructions=program.instructions,
    seconds=seconds,
    misses=[],
  )
  found.misses += [f"{x} between workers" for x in crossing if not _is_packed(x)]
  if found.sorted >= _longest(model.params, scope):
    found.misses.append(f"sorts {found.sorted:,} entries")
  if found.temporary > found.allowed:
    found.misses.append(f"temporary memory {found.temporary / 1e6:.0f} MB")
  # A dense mean within workers, which training without compression makes as well, is read and written.
  if found.passes > max_passes + 2 * hierarchical:
    found.misses.append(f"{found.passes:.1f} passes")
  return found


def _is_packed(collective: hlo.Collective) -> bool:
  """Whether a collective carries words to those who read them, or next to nothing."""
  least = _ROW if collective.between_slices else _SMALL
  if sum(array.bytes for array in collective.arrays) <= least:
    return True
  gathers = collective.kind in ("all-gather", "all-to-all", "ragged-all-to-all")
  # A compiler may let the loss travel with the words.
  return gathers and all(x.dtype == "u32" or x.bytes <= least for x in collective.arrays)


def _longest(params: Any, scope: Scope) -> int:
  sizes = [leaf.size for leaf in jax.tree.leaves(params)]
  return sum(sizes) if scope == "global" else max(sizes)


def _compile_step(
  model: models.Model, tx: optax.GradientTransformation, mesh: Mesh, axes: Any
) -> Any:
  """The training step as users get it."""
  step: Any = rtopk_jax.make_train_step(model.loss_fn, tx, mesh, axes, has_aux=True)
  params = placed(model.params, mesh, P())
  batch = dealt(model.batch, mesh, axes)
  return step.lower(params, state(tx, model.params, mesh, axes), batch).compile()


def _compile_exchange(params: Any, tx: optax.GradientTransformation, mesh: Mesh, axes: Any) -> Any:
  """The exchange alone, gradients and state donated, as they are within a step."""
  specs = rtopk_jax.state_specs(tx, params, axes)

  def exchange(gradient, state):
    gradient = jax.tree.map(lambda x: x[0], gradient)
    updates, state = tx.update(gradient, state)
    return jax.tree.map(lambda x: x[None], updates), state

  mapped = jax.shard_map(exchange, mesh=mesh, in_specs=(P(axes), specs), out_specs=(P(axes), specs))
  rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params)
  compiled = jax.jit(mapped, donate_argnums=(0, 1))
  return compiled.lower(dealt(rows, mesh, axes), state(tx, params, mesh, axes)).compile()


def state(tx: optax.GradientTransformation, params: Any, mesh: Mesh, axes: Any) -> Any:
  """What ``rtopk_jax.init`` would make, as shapes."""
  make = jax.shard_map(
    tx.init, mesh=mesh, in_specs=P(), out_specs=rtopk_jax.state_specs(tx, params, axes)
  )
  specs = rtopk_jax.state_specs(tx, params, axes)
  return jax.tree.map(
    lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
    jax.eval_shape(make, params),
    specs,
  )


def placed(tree: Any, mesh: Mesh, spec: P) -> Any:
  sharding = NamedSharding(mesh, spec)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def dealt(tree: Any, mesh: Mesh, axes: Any) -> Any:
  """One worker's share of each, times the number of devices."""
  whole = lambda x: jax.ShapeDtypeStruct((mesh.size * x.shape[0], *x.shape[1:]), x.dtype)
  return placed(jax.tree.map(whole, tree), mesh, P(axes))


def growth(found: list[Found]) -> list[str]:
  """Misses of code that grows with the number of workers.

  Args:
    found: results of several targets.

  Returns:
    A line a miss.
  """
  misses = []
  for few in found:
    for many in found:
      alike = (few.model, few.scope, few.collective) == (many.model, many.scope, many.collective)
      if alike and many.workers > few.workers and many.instructions > 1.05 * few.instructions:
        misses.append(
          f"{few.model}, {few.scope}: {few.instructions:,} instructions for {few.workers} workers, "
          f"{many.instructions:,} for {many.workers}"
        )
  return misses


def table(found: list[Found]) -> str:
  """What was found, as a Markdown table.

  Args:
    found: the results.
  """
  lines = [
    "| hardware | model, scope | collective | workers | between workers, whole step | sent, kB | longest sort "
    "| temporary, MB (allowed) | passes over d | kernels | instructions |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {x.target} | {x.model}, {x.scope} | {x.collective} | {x.workers} | {', '.join(x.collectives)} "
    f"| {x.sent / 1e3:.0f} | {x.sorted:,} | {x.temporary / 1e6:.0f} ({x.allowed / 1e6:.0f}) "
    f"| {x.passes:.1f} | {x.kernels:,} | {x.instructions:,} |"
    for x in found
  ]
  return "\n".join(lines)


def main() -> int:
  """Compiles, prints the table, and says what is amiss."""
  parser = argparse.ArgumentParser(description="Compiles training steps for absent hardware.")
  parser.add_argument("platform", choices=TARGETS)
  parser.add_argument("--only", action="append", choices=trees.NETWORKS, help="models")
  parser.add_argument(
    "--scope", type=scope_of, action="append", help="global, leaf or a block's entries"
  )
  parser.add_argument(
    "--collective", choices=COLLECTIVES, default="all-gather", help="between workers"
  )
  parser.add_argument("--target", action="append", help="names of hardware, as in the table")
  parser.add_argument("--density", type=float, default=0.001, help="k/d")
  parser.add_argument("--passes", type=float, default=16, help="over d that the exchange may make")
  parser.add_argument("--groups", action="store_true", help="only workers of several devices")
  parser.add_argument("--json", help="a file for the results")
  options = parser.parse_args()
  names = [target.name for target in TARGETS[options.platform]]
  unknown = sorted(set(options.target or ()) - set(names))
  if unknown:
    parser.error(f"--target must be of {names}, got {unknown}.")
  found, misses = [], []
  for target in TARGETS[options.platform]:
    if options.groups or (options.target and target.name not in options.target):
      continue
    for name in options.only or trees.NETWORKS:
      for scope in options.scope or ("global", "leaf"):
        one = examine(target, name, scope, options.collective, options.density, options.passes)
        print(
          f"{target.name}, {name}, {scope}: {one.seconds:.0f} s", *one.misses, sep="; ", flush=True
        )
        misses += [f"{target.name}, {name}, {scope}: {miss}" for miss in one.misses]
        found.append(one)
  misses += growth(found)
  grouped = []
  if options.groups or not (options.target or options.only):
    for target, shape in GROUPS[options.platform]:
      one = groups.examine(target.name, target.devices(), shape, _is_packed)
      print(f"{target.name}, {shape}: {one.seconds:.0f} s", *one.misses, sep="; ", flush=True)
      misses += [f"{target.name}, {shape}: {miss}" for miss in one.misses]
      grouped.append(one)
  tables = [table(found)] * bool(found) + [groups.table(grouped)] * bool(grouped)
  print("", *tables, f"compiled, not run, by jax {jax.__version__}", sep="\n\n")
  programs = [vars(x) for x in found]
  results = {"programs": programs, "groups": [dataclasses.asdict(x) for x in grouped]}
  timing.save(options.json, {"jax": jax.__version__, **results})
  print(*(f"MISS {miss}" for miss in misses), sep="\n")
  return bool(misses)


if __name__ == "__main__":
  sys.exit(main())
