"""Which leaves of a gradient are compressed together, which are sent dense, and how they line up.

A layout is static: shapes and types decide it when a program is traced. A *bundle* is a leaf, or several small
leaves as one array. A *segment* is the bundles that travel in one message: those whose leaves are sharded over the
same axes of the model. A leaf that is the same along an axis must not share a segment with one that is sharded
over it. It would no longer be the same.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _checks
from rtopk_jax.vector._vector import ALIGN, MAX_SIZE, Place, Run, aligned, places, span

# Leaves with fewer entries are sent dense, unless it is said otherwise; those of one dimension, which most often are
# biases and scales, up to many more.
DENSE_BELOW, FLAT_BELOW = 1024, 1 << 16
# Leaves with fewer entries are put together: what is done leaf by leaf takes time for each.
BUNDLED_BELOW = 1 << 18

# A function of numbers to the same numbers, perhaps hidden from a compiler.
Offsets = Callable[[Sequence[int]], Sequence[int | jax.Array]]
# A function of flat arrays to all of them in one.
Join = Callable[[Sequence[jax.Array]], jax.Array]

Dense = bool | Callable[[Any, Any], bool] | Any | None


@dataclasses.dataclass(frozen=True)
class Block:
  r"""A scope: a leaf is divided into blocks of ``size`` entries, each of which selects its own share.

  With :math:`x_1, x_2, \dots` the blocks of a leaf, of B entries each, the last one perhaps shorter,

  .. math::
    C(x) = \big(\mathrm{rTop}_{r,k}(x_1), \mathrm{rTop}_{r,k}(x_2), \dots\big), \qquad
    k = \max(1, \mathrm{round}(\rho B)), \quad r = \min(B, \mathrm{round}(\sigma k)),

  :math:`\rho` being the selector's density and :math:`\sigma` its subsample. An index within a block takes
  :math:`\lceil \log_2 B \rceil` bits, by ``Wire(indices="block")``.

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
  """Bundles that are one vector, in order.

  Attributes:
    leaves: the numbers of the bundles.
    where: their places in the vector.
    axes: the axes of the model that they are sharded over.
  """

  leaves: tuple[int, ...]
  where: tuple[Place, ...]
  axes: frozenset[str]

  @property
  def size(self) -> int:
    """d, the entries of the vector."""
    return sum(place.entries for place in self.where)


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A leaf, or several small ones as one array.

  Attributes:
    leaves: their positions in the flattened gradient.
    shapes: their shapes, of one axis at least.
    apart: whether each leaf is a group of its own. Then zeros fill it up to whole words.
  """

  leaves: tuple[int, ...]
  shapes: tuple[tuple[int, ...], ...]
  apart: bool

  @property
  def shape(self) -> tuple[int, ...]:
    """The bundle's shape. A single leaf keeps its own: reshaped it could not be updated in place."""
    return self.shapes[0] if len(self.shapes) == 1 else (self._begins[-1],)

  @property
  def _begins(self) -> list[int]:
    """Where each leaf begins, and the end of the last."""
    sizes = map(math.prod, self.shapes)
    lengths = map(aligned, sizes) if self.apart else sizes
    return list(itertools.accumulate(lengths, initial=0))

  def runs(self, group: int) -> tuple[Run, ...]:
    """The groups of its entries, the first of them ``group``; one for each leaf if they are apart."""
    if not self.apart:
      return (Run(0, math.prod(self.shape), group),)
    sizes = zip(self._begins, map(math.prod, self.shapes), strict=False)
    return tuple(Run(begin, size, group + i) for i, (begin, size) in enumerate(sizes))

  def join(self, leaves: Sequence[jax.Array], join: Join = jnp.concatenate) -> jax.Array:
    """The bundle out of all leaves; ``join`` puts flat arrays one after another."""
    if len(self.leaves) == 1:
      return leaves[self.leaves[0]].reshape(self.shape)
    parts = [leaves[i].reshape(-1) for i in self.leaves]
    # Gradients of different dtypes are worked on in float32.
    if len({x.dtype for x in parts}) > 1:
      parts = [x.astype(jnp.float32) for x in parts]
    if self.apart:
      ends = self._begins[1:]
      gaps = [
        end - begin - x.size for begin, end, x in zip(self._begins, ends, parts, strict=False)
      ]
      filled = zip(parts, gaps, strict=True)
      parts = [
        y for x, gap in filled for y in ([x, jnp.zeros_like(x, shape=(gap,))] if gap else [x])
      ]
    return join(parts)

  def begins(self, offsets: Offsets) -> Sequence[int | jax.Array]:
    """Where each leaf begins; ``offsets`` may hide numbers from a compiler."""
    return offsets(self._begins[:-1]) if len(self.leaves) > 1 else [0]

  def split(self, bundle: jax.Array, into: list, begins: Sequence[int | jax.Array]) -> None:
    """Writes the leaves, flat, to their places in a list of all."""
    if len(self.leaves) == 1:
      into[self.leaves[0]] = bundle
      return
    for i, shape, begin in zip(self.leaves, self.shapes, begins, strict=True):
      into[i] = lax.dynamic_slice(bundle, (begin,), (math.prod(shape),))


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a gradient is divided into.

  Attributes:
    bundles: all leaves, each in one of them.
    compressed: segments of bundles, a message each.
    dense: segments of bundles, an all-reduce each.
  """

  bundles: tuple[Bundle, ...]
  compressed: tuple[Segment, ...]
  dense: tuple[Segment, ...]

  def join(self, leaves: Sequence[jax.Array], join: Join = jnp.concatenate) -> list[jax.Array]:
    """All bundles out of all leaves; nothing out of nothing.

    Args:
      leaves: all of them.
      join: puts flat arrays one after another.
    """
    return [bundle.join(leaves, join) for bundle in self.bundles] if leaves else []

  def split(self, lists: Sequence[Sequence[jax.Array]], offsets: Offsets) -> list[list[jax.Array]]:
    """For each list of all bundles one of all leaves, in any shape; nothing out of nothing.

    Args:
      lists: bundles.
      offsets: hides numbers from a compiler.

    Returns:
      The lists.
    """
    found: list[list[Any]] = [[None] * self._size if bundles else [] for bundles in lists]
    for i, bundle in enumerate(self.bundles):
      begins = bundle.begins(offsets)
      for bundles, leaves in zip(lists, found, strict=True):
        if bundles:
          bundle.split(bundles[i], leaves, begins)
    return found

  @property
  def _size(self) -> int:
    """How many leaves there are."""
    return sum(len(bundle.leaves) for bundle in self.bundles)


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
    dense: which leaves are sent dense: None for those of fewer than 1,024 entries, and those of one dimension of
      fewer than 65,536; a bool for all or none; a tree of bools; or a function of path and leaf.
    axes: the axes of the model that each leaf is sharded over; None for no leaf being.

  Returns:
    The ``Layout``.

  Raises:
    TypeError: when ``dense`` is, or yields, something else than bools.
    ValueError: when its tree has another structure, or a vector is too long.
  """
  apart = scope != "global"
  is_dense = _dense_flags(tree, jax.tree.leaves_with_path(tree), dense)
  _check_sizes(tree, is_dense)
  axes = [frozenset()] * len(shapes) if axes is None else list(axes)
  small, bundles, kinds = {}, [], []
  for i, shape in enumerate(shapes):
    size = math.prod(shape)
    if not is_dense[i] and 0 < size < BUNDLED_BELOW:
      small.setdefault(axes[i], []).append(i)
      continue
    bundles.append(Bundle((i,), (tuple(shape),), apart))
    # Nothing is done to leaves without entries.
    kinds.append((is_dense[i], axes[i]) if size else None)
  together = [Bundle(tuple(x), tuple(tuple(shapes[i]) for i in x), apart) for x in small.values()]
  bundles = [*together, *bundles]
  kinds = [*((False, key) for key in small), *kinds]
  lie = [bundle.shape for bundle in bundles]

  def segments(is_dense: bool, split: bool) -> tuple[Segment, ...]:
    found = []
    keys = {kind[1] for kind in kinds if kind is not None and kind[0] == is_dense}
    for key in sorted(keys, key=sorted):
      members = [i for i, kind in enumerate(kinds) if kind == (is_dense, key)]
      for group in _fitting(members, lie, split):
        runs, count = [], 0
        for i in group:
          runs.append(bundles[i].runs(count))
          count += len(runs[-1]) if apart else 0
        where = places([lie[i] for i in group], runs)
        if not is_dense and not split and span(where) > MAX_SIZE:
          raise ValueError(
            f"scope='global' makes one vector of {span(where)} places, {ALIGN} to a word, which int32 "
            f'cannot index; it may have {MAX_SIZE}. For a larger model use scope="leaf".'
          )
        found.append(Segment(tuple(group), where, key))
    return tuple(found)

  return Layout(
    tuple(bundles),
    segments(False, split=scope != "global"),
    segments(True, split=False),
  )


def _check_sizes(tree: Any, is_dense: list[bool]) -> None:
  """Refuses leaves too long to be selected from, which no scope divides."""
  for (path, leaf), dense in zip(jax.tree.leaves_with_path(tree), is_dense, strict=True):
    size = math.prod(leaf.shape)
    if not dense and size > MAX_SIZE:
      where = jax.tree_util.keystr(path)
      raise ValueError(
        f"updates{where} has {size:,} entries, and in no scope may a leaf have more than the {MAX_SIZE:,} "
        "that int32 can index. Shard it over an axis of the mesh (param_specs), make it several parameters, "
        "or send it dense (dense=…)."
      )


def _fitting(leaves: list[int], shapes: Sequence[tuple[int, ...]], split: bool) -> list[list[int]]:
  """The leaves as one list, or where they may be split as several that int32 can index."""
  lists: list[list[int]] = [[]]
  for i in leaves:
    if split and lists[-1] and span(places([shapes[j] for j in (*lists[-1], i)])) > MAX_SIZE:
      lists.append([])
    lists[-1].append(i)
  return lists


def _dense_flags(tree: Any, paths_and_leaves: list, dense: Dense) -> list[bool]:
  if dense is None:
    sizes = [(x.ndim, math.prod(x.shape)) for _, x in paths_and_leaves]
    return [size < (DENSE_BELOW if ndim > 1 else FLAT_BELOW) for ndim, size in sizes]
  if isinstance(dense, bool | np.bool_):
    return [bool(dense)] * len(paths_and_leaves)
  # A tree may be callable too, an Equinox module for instance.
  if callable(dense) and jax.tree_util.all_leaves([dense]):
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
    if not isinstance(flag, bool | np.bool_):
      raise TypeError(
        f"dense must say True or False for every leaf, got {flag!r} for {jax.tree_util.keystr(path)}."
      )
    checked.append(bool(flag))
  return checked
