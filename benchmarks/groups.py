"""The training step of workers of several devices, compiled: which collectives go along which axis of the mesh.

``benchmarks.aot`` compiles it for hardware that is not here. Between workers it lets pass packed words and the mean
of the loss alone.
"""

import collections
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import hlo, models
from configs import default
from train.steps import layout
from train.steps.methods import make_rounds
from train.steps.workers import Workers

_MODEL = "transformer"


@dataclasses.dataclass(frozen=True)
class Row:
  """Collectives of one kind along the same axes.

  Attributes:
    axes: of the mesh, that their members differ by.
    kind: "all-gather" and so on.
    dtype: of what they carry.
    count: how many arrays they carry.
    bytes: that a device gets of all of them.
  """

  axes: tuple[str, ...]
  kind: str
  dtype: str
  count: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Found:
  """What the compiler made of a step.

  Attributes:
    target: the hardware.
    shape: workers, chips and shards.
    rows: its collectives.
    state: bytes of weights and state on a device.
    seconds: that compiling took.
    misses: what goes between workers and should not.
  """

  target: str
  shape: tuple[int, ...]
  rows: list[Row]
  state: int
  seconds: float
  misses: list[str]


def axes_of(collective: hlo.Collective, mesh: Mesh) -> tuple[str, ...]:
  """The axes of a mesh that the members of a collective differ by.

  Args:
    collective: of a program for the mesh.
    mesh: its devices, which programs number in order.

  Returns:
    Their names, in the mesh's order.
  """
  if collective.between_slices:
    return mesh.axis_names[:1]
  shape = mesh.devices.shape
  groups = collective.groups or (tuple(range(mesh.size)),)
  differs = np.zeros(len(shape), bool)
  for group in groups:
    places = np.stack(np.unravel_index(np.array(group), shape))
    differs |= (places != places[:, :1]).any(axis=1)
  return tuple(name for name, along in zip(mesh.axis_names, differs, strict=True) if along)


def rows(found: Sequence[hlo.Collective], mesh: Mesh) -> list[Row]:
  """Collectives, those of one kind along the same axes together."""
  counts: collections.Counter[tuple[tuple[str, ...], str, str]] = collections.Counter()
  sizes = counts.copy()
  for x in found:
    for array in x.arrays:
      key = axes_of(x, mesh), x.kind, array.dtype
      counts[key] += 1
      sizes[key] += array.bytes
  return [
    Row(axes, kind, dtype, counts[axes, kind, dtype], sizes[axes, kind, dtype])
    for axes, kind, dtype in sorted(counts)
  ]


def examine(
  name: str, devices: Sequence[Any], shape: tuple[int, int, int], is_let_pass: Any
) -> Found:
  """Compiles a step of rTop-k at a density of 0.1 % and looks at its collectives.

  Args:
    name: of the hardware.
    devices: of it.
    shape: workers, chips and shards.
    is_let_pass: whether a collective may go between workers.

  Returns:
    What was found.
  """
  config, model = default.get_config(), models.model(_MODEL)
  config.num_workers, config.mesh.chips, config.mesh.shards = shape
  config.density, config.warmup_epochs = 0.001, 0
  mesh = layout.make_mesh(devices, shape)

  def loss(params, model_state, batch):
    value, _ = model.loss_fn(params, batch)
    return value, (model_state, {"train_loss": value})

  workers = Workers(make_rounds(config, "rtopk", loss, 100, 1000, 1), shape[0], mesh)
  state = jax.eval_shape(workers.init, model.params, (), jnp.int32(0))
  placed = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    state,
    workers.shardings(state),
  )
  dealt = NamedSharding(mesh, P(layout.AXIS, (layout.CHIPS, layout.SHARDS)))
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((shape[0], *x.shape), x.dtype, sharding=dealt), model.batch
  )
  begun = time.perf_counter()
  compiled = workers.compiled_step(jnp.int32(0)).lower(placed, batch).compile()
  seconds = time.perf_counter() - begun
  found = hlo.Program(compiled.as_text()).collectives()
  between = [x for x in found if layout.AXIS in axes_of(x, mesh)]
  piece = lambda x: x.dtype.itemsize * int(np.prod(x.sharding.shard_shape(x.shape)))
  return Found(
    name,
    shape,
    rows(found, mesh),
    sum(piece(x) for x in jax.tree.leaves(placed)),
    seconds,
    [f"{x} between workers" for x in between if not is_let_pass(x)],
  )


def table(found: Sequence[Found]) -> str:
  """Collectives by axis, as a Markdown table."""
  lines = [
    "| hardware | workers × chips × shards | along | collective | arrays | MB to a device |",
    "|---|---|---|---|---|---|",
  ]
  lines += [
    f"| {x.target} | {' × '.join(map(str, x.shape))} | {', '.join(row.axes)} | {row.kind} {row.dtype} "
    f"| {row.count} | {row.bytes / 1e6:.3f} |"
    for x in found
    for row in x.rows
  ]
  return "\n".join(lines)
