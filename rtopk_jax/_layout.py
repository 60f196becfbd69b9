"""Which leaves of a gradient are compressed together, which are sent dense, and how they line up.

A layout is static: it is worked out from shapes at trace time and turns lists of leaves into the vectors
that are selected from, and back.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SCOPES = ("global", "leaf")
DENSE_BELOW = 1024

Dense = bool | Callable[[Any, Any], bool] | Any | None


@dataclasses.dataclass(frozen=True)
class Segment:
  """Leaves that form one vector, in order.

  Attributes:
    leaves: their positions in the flattened gradient.
    shapes: their shapes.
  """

  leaves: tuple[int, ...]
  shapes: tuple[tuple[int, ...], ...]

  @property
  def size(self) -> int:
    """d, the entries of the vector."""
    return sum(math.prod(shape) for shape in self.shapes)

  def join(self, leaves: list[jax.Array]) -> jax.Array:
    """The vector of this segment's leaves, out of all leaves."""
    parts = [leaves[i].reshape(-1) for i in self.leaves]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

  def split(self, vector: jax.Array, into: list) -> None:
    """Writes the pieces of a vector to their places in a list of all leaves."""
    start = 0
    for i, shape in zip(self.leaves, self.shapes, strict=True):
      stop = start + math.prod(shape)
      into[i] = vector[start:stop].reshape(shape)
      start = stop


@dataclasses.dataclass(frozen=True)
class Layout:
  """The segments that are compressed, and the one that is sent dense (it may have no leaves).

  Attributes:
    compressed: one segment a selection.
    dense: the rest.
  """

  compressed: tuple[Segment, ...]
  dense: Segment


def layout(tree: Any, scope: str, dense: Dense) -> Layout:
  """The layout of a gradient.

  Args:
    tree: a tree of arrays, or of anything with a shape.
    scope: "global" makes one vector of the compressed leaves, "leaf" one of each.
    dense: which leaves are sent dense: None for those of fewer than two dimensions or fewer than 1,024
      entries; a bool for all or none; a tree of bools; or a function of path and leaf.

  Returns:
    The ``Layout``.

  Raises:
    TypeError: when ``dense`` is, or yields, something else than bools.
    ValueError: when its tree has another structure.
  """
  paths_and_leaves = jax.tree.leaves_with_path(tree)
  shapes = [tuple(leaf.shape) for _, leaf in paths_and_leaves]
  is_dense = _dense_flags(tree, paths_and_leaves, dense)
  # Nothing is done to leaves without entries.
  filled = [i for i, shape in enumerate(shapes) if math.prod(shape)]
  sparse = [i for i in filled if not is_dense[i]]
  groups = [sparse] if scope == "global" else [[i] for i in sparse]
  segment = lambda group: Segment(tuple(group), tuple(shapes[i] for i in group))
  return Layout(
    tuple(segment(group) for group in groups if group),
    segment([i for i in filled if is_dense[i]]),
  )


def _dense_flags(tree: Any, paths_and_leaves: list, dense: Dense) -> list[bool]:
  if dense is None:
    return [x.ndim < 2 or math.prod(x.shape) < DENSE_BELOW for _, x in paths_and_leaves]
  if isinstance(dense, bool):
    return [dense] * len(paths_and_leaves)
  if callable(dense):
    flags = [dense(path, leaf) for path, leaf in paths_and_leaves]
  else:
    flags, structure = jax.tree.flatten(dense)
    if structure != jax.tree.structure(tree):
      raise ValueError(
        f"dense is a tree of another structure than the gradient: {structure} instead of "
        f"{jax.tree.structure(tree)}."
      )
  checked = []
  for (path, _), flag in zip(paths_and_leaves, flags, strict=True):
    if not isinstance(flag, bool):
      raise TypeError(
        f"dense must say True or False for every leaf, got {flag!r} for {jax.tree_util.keystr(path)}."
      )
    checked.append(flag)
  return checked
