"""Which leaves of a gradient are compressed together, which are sent dense, and how they line up.

A layout is static: it is worked out from shapes and types at trace time. A *segment* is what is exchanged
in one message: leaves that differ between the same devices. Leaves that are sharded over an axis of the
model must not share one with leaves that are the same along it, or those would no longer be.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rtopk_jax import _checks
from rtopk_jax._vector import Place, places, span

DENSE_BELOW = 1024
# Positions are int32.
MAX_SPAN = 2**31 - 1

Dense = bool | Callable[[Any, Any], bool] | Any | None


@dataclasses.dataclass(frozen=True)
class Block:
  """A scope: every run of ``size`` entries of a leaf selects its own share.

  Args:
    size: entries of a block, from 2 to 65,536.

  Raises:
    TypeError: when the size is not an integer.
    ValueError: when it is out of range.

  Examples:
    >>> import rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.top_k(0.01),
    ...   "data",
    ...   scope=rtopk_jax.Block(4096),
    ...   wire=rtopk_jax.Wire(values="int8", indices="block"),
    ... )
  """

  size: int

  def __post_init__(self):
    _checks.at_least("size", self.size, 2, integer=True)
    if self.size > 1 << 16:
      raise ValueError(f"size must be at most 65536, got {self.size!r}.")


Scope = str | Block
SCOPES = ("global", "leaf")


def check_scope(scope: Any) -> None:
  if not isinstance(scope, Block) and scope not in SCOPES:
    raise ValueError(f"scope must be 'global', 'leaf' or a rtopk_jax.Block, got {scope!r}.")


@dataclasses.dataclass(frozen=True)
class Segment:
  """Leaves that form one vector, in order.

  Attributes:
    leaves: their positions in the flattened gradient.
    where: their places in the vector.
    axes: the axes of the model that they are sharded over.
  """

  leaves: tuple[int, ...]
  where: tuple[Place, ...]
  axes: frozenset[str]

  @property
  def size(self) -> int:
    """d, the entries of the vector."""
    return sum(place.size for place in self.where)

  def join(self, leaves: Sequence[jax.Array]) -> jax.Array:
    """The vector of this segment's leaves, out of all leaves."""
    parts = [leaves[i].reshape(-1) for i in self.leaves]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)

  def split(self, vector: jax.Array, into: list) -> None:
    """Writes the pieces of a vector to their places in a list of all leaves."""
    start = 0
    for i, place in zip(self.leaves, self.where, strict=True):
      into[i] = vector[start : start + place.size].reshape(into[i].shape)
      start += place.size


@dataclasses.dataclass(frozen=True)
class Layout:
  """The segments that are compressed, and those that are sent dense.

  Attributes:
    compressed: a message each.
    dense: an all-reduce each.
  """

  compressed: tuple[Segment, ...]
  dense: tuple[Segment, ...]


def layout(
  tree: Any,
  shapes: Sequence[tuple[int, ...]],
  scope: Scope,
  dense: Dense,
  axes: Sequence[frozenset[str]] | None = None,
) -> Layout:
  """The layout of a gradient.

  Args:
    tree: a tree of arrays, or of anything with a shape.
    shapes: in which each leaf is to lie, of one axis at least.
    scope: "global" makes one selection of the compressed leaves, "leaf" one of each, a ``Block`` one of every
      run of so many entries.
    dense: which leaves are sent dense: None for those of fewer than two dimensions or fewer than 1,024
      entries; a bool for all or none; a tree of bools; or a function of path and leaf.
    axes: the axes of the model that each leaf is sharded over; None for no leaf being.

  Returns:
    The ``Layout``.

  Raises:
    TypeError: when ``dense`` is, or yields, something else than bools.
    ValueError: when its tree has another structure, or a vector is too long.
  """
  paths_and_leaves = jax.tree.leaves_with_path(tree)
  axes = [frozenset()] * len(shapes) if axes is None else list(axes)
  is_dense = _dense_flags(tree, paths_and_leaves, dense)
  # Nothing is done to leaves without entries.
  filled = [i for i, shape in enumerate(shapes) if math.prod(shape)]

  def segments(leaves: list[int], split: bool) -> list[Segment]:
    found = []
    for key in sorted({axes[i] for i in leaves}, key=sorted):
      for group in _fitting([i for i in leaves if axes[i] == key], shapes, split):
        numbers = range(len(group)) if scope == "leaf" else None
        found.append(Segment(tuple(group), places([shapes[i] for i in group], numbers), key))
    return found

  sparse = [i for i in filled if not is_dense[i]]
  return Layout(
    tuple(segments(sparse, split=scope != "global")),
    tuple(segments([i for i in filled if is_dense[i]], split=False)),
  )


def _fitting(leaves: list[int], shapes: list[tuple[int, ...]], split: bool) -> list[list[int]]:
  """The leaves as one list, or where they may be split as several that int32 can index."""
  lists: list[list[int]] = [[]]
  for i in leaves:
    if split and lists[-1] and span(places([shapes[j] for j in (*lists[-1], i)])) > MAX_SPAN:
      lists.append([])
    lists[-1].append(i)
  return lists


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
