"""A mesh as the library's programs see it, and arrays in their places on it.

``jax.make_mesh`` makes axes of explicit type, for which every array has to be where a program wants it and no
axis can be left to the compiler. Programs here are written for automatic axes. They take arrays from anywhere
and return them on the mesh that they were given, so that what a user does next is of one kind.
"""

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rtopk_jax import _axis, _checks
from rtopk_jax._axis import AxisName


def is_spec(x: Any) -> bool:
  """Whether this is a ``PartitionSpec``, a leaf among specs."""
  return isinstance(x, P)


def check_mesh(mesh: Mesh, axis_name: AxisName) -> int:
  """The number of workers on a mesh; refused when it lacks an axis of theirs."""
  _checks.axis_name(axis_name)
  size = 1
  for name in _axis.names(axis_name):
    if name not in mesh.shape:
      raise ValueError(
        f"axis_name={name!r} is not an axis of the mesh, which has {mesh.axis_names}."
      )
    size *= mesh.shape[name]
  return size


class Placement:
  """Puts arrays on a mesh and runs programs there.

  Args:
    mesh: the user's mesh, with axes of any type.
  """

  def __init__(self, mesh: Mesh):
    self.mesh = mesh
    automatic = (AxisType.Auto,) * len(mesh.axis_names)
    self.automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=automatic)

    # The results of a step, which share memory with nothing.
    self._fresh: dict[int, weakref.ref] = {}

  def shardings(self, specs: Any) -> Any:
    """Specs as shardings on the user's mesh."""
    return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=is_spec)

  def put(self, tree: Any, specs: Any) -> Any:
    """A tree with every array in its place; what is there already is not touched.

    Args:
      tree: arrays, or ``ShapeDtypeStruct``, which get the sharding.
      specs: a tree of specs of the same structure.

    Returns:
      The tree.
    """
    leaves, structure = jax.tree.flatten(tree)
    wanted = jax.tree.leaves(self.shardings(specs))
    placed = [_put(x, sharding) for x, sharding in zip(leaves, wanted, strict=True)]
    return jax.tree.unflatten(structure, placed)

  def put_to_donate(self, tree: Any, specs: Any) -> Any:
    """The same, with memory that nobody else has: of no leaf twice, and of no array that was elsewhere."""
    leaves, structure = jax.tree.flatten(tree)
    placed = jax.tree.leaves(self.put(tree, specs))
    shared, taken = [], set()
    for i, (x, there) in enumerate(zip(leaves, placed, strict=True)):
      own = _memory_of(there)
      # On its own device an array that was elsewhere keeps its memory. All processes copy it, whether it did
      # on their devices or not, so that all run the same programs.
      if (isinstance(x, jax.Array) and x is not there) or own & taken:
        shared.append(i)
      taken |= own
    if shared:
      copies = [placed[i] for i in shared]
      with jax.set_mesh(self.mesh):
        copy = jax.jit(
          lambda arrays: [jnp.copy(x) for x in arrays],
          out_shardings=[x.sharding for x in copies],
        )
        copies = copy(copies)
      for i, x in zip(shared, copies, strict=True):
        placed[i] = x
    return jax.tree.unflatten(structure, placed)

  def note_fresh(self, tree: Any) -> None:
    """Notes that these arrays are a step's results."""
    self._fresh = {id(x): weakref.ref(x) for x in jax.tree.leaves(tree)}

  def is_fresh(self, tree: Any) -> bool:
    """Whether all of these arrays are results of the last step, each of them once."""
    leaves = jax.tree.leaves(tree)
    known = (self._fresh.get(id(x)) for x in leaves)
    return len({id(x) for x in leaves}) == len(leaves) and all(
      reference is not None and reference() is x for x, reference in zip(leaves, known, strict=True)
    )

  def run(self, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a jitted function whose ``shard_map`` are over ``automatic``."""
    with self.context():
      return function(*args)

  def context(self) -> contextlib.AbstractContextManager[Any]:
    """Within this context no mesh of the user's is in the way."""
    if jax.sharding.get_abstract_mesh().empty:
      return contextlib.nullcontext()
    return jax.set_mesh(self.automatic)

  def trace(self, function: Callable[..., Any], out_specs: Any, *args: Any) -> Any:
    """Calls such a function as a part of a program that is being traced.

    Its results have the types of the mesh that is set, and where none is those of the arguments.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty and _is_explicit(args):
      mesh = self.mesh.abstract_mesh
    if AxisType.Explicit not in mesh.axis_types:
      return function(*args)
    with jax.sharding.use_abstract_mesh(mesh):
      return jax.sharding.auto_axes(function, out_sharding=out_specs)(*args)


def is_traced(tree: Any) -> bool:
  """Whether some array of a tree is a tracer."""
  return any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def _is_explicit(tree: Any) -> bool:
  """Whether some array of a tree has the type of a mesh with explicit axes."""
  kinds = [jax.typeof(x).sharding for x in jax.tree.leaves(tree)]
  return any(AxisType.Explicit in kind.mesh.axis_types for kind in kinds)


def _put(x: Any, sharding: NamedSharding) -> Any:
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  if isinstance(x, jax.Array) and x.sharding == sharding:
    return x
  if isinstance(x, float | complex | int | bool):
    x = np.asarray(x, jnp.result_type(x))
  # Of an array on this process's devices alone, device_put makes one for all processes that cannot be read.
  if isinstance(x, jax.Array) and x.is_fully_addressable and not sharding.is_fully_addressable:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = _put(jax.random.key_data(x), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    x = np.asarray(x)
  return jax.device_put(x, sharding)


def _memory_of(x: Any) -> set[int]:
  """Where the parts of an array lie that this process has; nothing for those without entries."""
  if not isinstance(x, jax.Array) or not x.size:
    return set()
  return {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}
