"""Which devices a worker is, and where on them everything lies: the mesh (workers, chips, shards).

The batch of a worker is dealt over its chips and shards, and its large parameters, with all that is shaped like
them, lie in pieces over its shards. Between workers there is the exchange alone. Where each is one device, two axes
have one member.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.schema import ConfigError

AXIS, CHIPS, SHARDS = AXES = ("workers", "chips", "shards")

# Parameters of fewer entries are whole on every shard.
_LARGE = 1024


def choose_mesh(config: Any) -> Mesh | None:
  """The mesh of a config, or None where workers are simulated.

  Args:
    config: the experiment; of it ``workers``, "devices", "simulated", or "auto" for devices if there are enough,
      and the number of workers, chips and shards.

  Returns:
    A mesh of three axes, or None.

  Raises:
    ConfigError: when the devices are not as many as are asked for, or don't lie as they would have to.
  """
  devices, processes = jax.devices(), jax.process_count()
  shape = (config.num_workers, config.mesh.chips, config.mesh.shards)
  each, wanted = math.prod(shape[1:]), math.prod(shape)
  if processes == 1 and config.workers == "simulated":
    if shape[2] > 1:
      raise ConfigError(
        f"config.mesh.shards must be 1 with config.workers='simulated', got {shape[2]}: every shard selects by "
        "itself, and one device has all of a worker."
      )
    return None
  exact = processes > 1 or each > 1
  if exact and len(devices) != wanted:
    where = f" of {processes} processes" if processes > 1 else ""
    raise ConfigError(
      f"config.mesh.workers × chips × shards must be {len(devices)}, the devices{where} that there are, got "
      f"{' × '.join(map(str, shape))}{_hint(config, processes)}."
    )
  if config.workers == "simulated":
    raise ConfigError(
      f"config.workers must be 'devices' or 'auto' with {processes} processes, got 'simulated': a device takes "
      "part in one worker."
    )
  if config.workers == "devices" and len(devices) < wanted:
    raise ConfigError(
      f"config.workers must be 'simulated' or 'auto' with config.num_workers={config.num_workers} and "
      f"{len(devices)} devices, got 'devices'."
    )
  if len(devices) < wanted or wanted == 1:
    return None
  return make_mesh(devices[:wanted], shape, config.mesh.fast)


def _hint(config: Any, processes: int) -> str:
  if processes > 1 or config.mesh.shards > 1:
    return ""
  return "; config.workers='simulated' computes the same on one device"


def make_mesh(devices: Sequence[Any], shape: tuple[int, int, int], fast: str = "auto") -> Mesh:
  """Devices as workers, chips and shards, so that the slow links lie between workers as far as they can.

  Groups of devices with fast links among them, TPU slices or the devices of a host, are dealt to the workers
  first. What is left of their number goes to the chips of a worker, then to the shards.

  Args:
    devices: as many as the shape has.
    shape: workers, chips of each, shards of each.
    fast: what such a group shares: "slice", "process", "all" for one group, or "auto": slices where there are
      several, as JAX tells of TPUs and of GPUs by host, else one group of TPUs, else processes.

  Returns:
    The mesh.

  Raises:
    ConfigError: when groups are not equally large.
  """
  group = _grouping(devices, fast)
  groups: dict[int, list[Any]] = {}
  for device in devices:
    groups.setdefault(group(device), []).append(device)
  if len({len(x) for x in groups.values()}) > 1:
    sizes = ", ".join(str(len(x)) for _, x in sorted(groups.items()))
    raise ConfigError(
      f"config.mesh.fast={fast!r} makes groups of {sizes} devices with fast links, which must be "
      "equally many; 'all' takes no heed of them."
    )
  # Prime by prime the groups are dealt out in full, since they divide the devices evenly.
  left, slow = len(groups), []
  for size in shape:
    slow.append(math.gcd(left, size))
    left //= slow[-1]
  inner = tuple(size // outer for size, outer in zip(shape, slow, strict=True))
  blocks = [_block(groups[number], inner) for number in sorted(groups)]
  # A group's place among workers, chips and shards, and then a device's within it.
  grid = np.stack(blocks).reshape(*slow, *inner).transpose(0, 3, 1, 4, 2, 5)
  return Mesh(grid.reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def _grouping(devices: Sequence[Any], fast: str) -> Callable[[Any], int]:
  of_slice = lambda x: getattr(x, "slice_index", None) or 0
  if fast == "auto":
    one = "all" if devices[0].platform == "tpu" else "process"
    fast = "slice" if len({of_slice(x) for x in devices}) > 1 else one
  return {"slice": of_slice, "process": lambda x: x.process_index, "all": lambda x: 0}[fast]


def _block(devices: list[Any], shape: tuple[int, ...]) -> np.ndarray:
  """The devices of one group, laid out as its links are."""
  return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def local_workers(mesh: Mesh) -> tuple[int, ...]:
  """The workers of whom this process has a device, and whose batches it supplies."""
  here = jax.process_index()
  return tuple(
    i for i, own in enumerate(mesh.devices) if any(x.process_index == here for x in own.flat)
  )


def param_specs(mesh: Mesh, params: Any) -> Any:
  """How parameters lie over shards: by their longest axis that can be dealt; small ones are whole.

  Args:
    mesh: of ``make_mesh``.
    params: arrays or ``ShapeDtypeStruct``.

  Returns:
    A ``PartitionSpec`` for each.
  """
  count = mesh.shape[SHARDS]

  def spec(x: Any) -> P:
    fits = [axis for axis, size in enumerate(x.shape) if size % count == 0]
    if count == 1 or x.size < _LARGE or not fits:
      return P()
    longest = max(fits, key=lambda axis: x.shape[axis])
    return P(*(SHARDS if axis == longest else None for axis in range(longest + 1)))

  return jax.tree.map(spec, params)


def piece(mesh: Mesh | None, params: Any) -> Any:
  """The shapes of what one shard has of parameters; None is the mesh of simulated workers."""
  if mesh is None:
    return params
  part = lambda x, spec: jax.ShapeDtypeStruct(
    NamedSharding(mesh, spec).shard_shape(x.shape), x.dtype
  )
  return jax.tree.map(part, params, param_specs(mesh, params))


def described(mesh: Mesh | None) -> str:
  """What a worker is, in words that follow "workers"."""
  if mesh is None:
    return "simulated on one device"
  chips, shards = mesh.shape[CHIPS], mesh.shape[SHARDS]
  if chips * shards == 1:
    return "one a device"
  parts = [f"{chips} chips"] * (chips > 1) + [f"{shards} shards"] * (shards > 1)
  return f"each {' of '.join(parts)}"


def specs_like(tree: Any, params: Any, specs: Any) -> Any:
  """Specs of what workers have of a tree between exchanges: rows, over shards where they are a parameter's.

  A leaf is like the parameter of its shape whose path ends as its own does.

  Args:
    tree: of all workers, arrays ``(num_workers, …)`` or ``ShapeDtypeStruct``.
    params: the parameters, likewise.
    specs: of ``param_specs``.

  Returns:
    A spec for each leaf of the tree.
  """
  known = [
    (path[::-1], x.shape, spec)
    for (path, x), spec in zip(
      jax.tree.leaves_with_path(params), jax.tree.leaves(specs, is_leaf=is_spec), strict=True
    )
  ]

  def spec(path: tuple[Any, ...], x: Any) -> P:
    ends = path[::-1]
    alike = [of for end, shape, of in known if shape == x.shape[1:] and ends[: len(end)] == end]
    return P(AXIS, *(alike[0] if alike else ()))

  return jax.tree.map_with_path(spec, tree)


def is_spec(x: Any) -> bool:
  """Whether this is a ``PartitionSpec``, a leaf among specs."""
  return isinstance(x, P)


def by_worker(specs: Any) -> Any:
  """The part of specs that is about workers: what is mapped where the rest is the compiler's."""
  own = lambda spec: P(AXIS) if len(spec) and spec[0] == AXIS else P()
  return jax.tree.map(own, specs, is_leaf=is_spec)


def shardings(mesh: Mesh, specs: Any, tree: Any) -> Any:
  """Specs, which may be those of whole subtrees, as the shardings of a tree's leaves."""
  place = lambda spec, part: jax.tree.map(lambda _: NamedSharding(mesh, spec), part)
  return jax.tree.map(place, specs, tree, is_leaf=is_spec)


def constrain(mesh: Mesh, specs: Any, tree: Any) -> Any:
  """The tree where specs say, within a program."""
  return lax.with_sharding_constraint(tree, shardings(mesh, specs, tree))


def place_batch(mesh: Mesh, workers: Sequence[int], batch: Any) -> Any:
  """Batches on the devices of their workers.

  Args:
    mesh: of ``make_mesh``.
    workers: whose batches this process has.
    batch: theirs, arrays ``(len(workers), …)``.

  Returns:
    Arrays ``(num_workers, …)``. Where the next axis can be dealt, a worker's devices have a part of it each.
  """
  rows = {worker: row for row, worker in enumerate(workers)}

  def put(x: Any) -> jax.Array:
    x = np.asarray(x)
    sharding = NamedSharding(mesh, _batch_spec(mesh, x.shape))

    def part(index: Any) -> np.ndarray:
      # On one worker there is no slice, but all of them.
      row = rows[index[0].start or 0]
      return x[row : row + 1][(slice(None), *index[1:])]

    return jax.make_array_from_callback((mesh.shape[AXIS], *x.shape[1:]), sharding, part)

  return jax.tree.map(put, batch)


def _batch_spec(mesh: Mesh, shape: tuple[int, ...]) -> P:
  each = mesh.shape[CHIPS] * mesh.shape[SHARDS]
  if each > 1 and len(shape) > 1 and shape[1] % each == 0:
    return P(AXIS, (CHIPS, SHARDS))
  return P(AXIS)


def here(mesh: Mesh, params: Any, specs: Any) -> Any:
  """What all workers have alike as arrays of this process: on as many devices as there are shards.

  Args:
    mesh: of ``make_mesh``.
    params: arrays on it.
    specs: how each lies over shards.

  Returns:
    The arrays. Where no chip of any worker has all of its shards in this process, they are put together on one
    device.
  """
  process = jax.process_index()
  places = mesh.devices.reshape(-1, mesh.shape[SHARDS])
  whole = [x for x in places if all(device.process_index == process for device in x)]
  if mesh.shape[SHARDS] == 1 or not whole:
    if not whole:
      params = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(params)
    return jax.tree.map(lambda x: x.addressable_data(0), params)
  own = Mesh(whole[0], (SHARDS,), axis_types=(AxisType.Auto,))

  def local(x: jax.Array, spec: P) -> jax.Array:
    data = {shard.device: shard.data for shard in x.addressable_shards}
    pieces = [data[device] for device in whole[0]]
    return jax.make_array_from_single_device_arrays(x.shape, NamedSharding(own, spec), pieces)

  return jax.tree.map(local, params, specs)
