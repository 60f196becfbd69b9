"""Entries of leaves set at positions, and added to flat arrays.

Leaves are written to where they lie: reshaped, they could not be updated in place.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._precision import as_bits
from rtopk_jax.kernels import _prefix_sum
from rtopk_jax.kernels._dispatch import here
from rtopk_jax.kernels._offsets import Offset, offsets
from rtopk_jax.vector import _vector
from rtopk_jax.vector._vector import Place

# Bits of a word.
_WORD = 32
# Entries that are put to a leaf at a time where that is done in turns.
_CHUNK = 1024
# From so many entries on the last axis of a leaf is long.
_LONG = 128

# From the places of leaves in some shape, and lists of leaves in it, to such lists.
OfLeaves = Callable[[Sequence[Place], list[list[jax.Array]]], Sequence[Sequence[jax.Array]]]


def put(
  leaves: Sequence[jax.Array],
  where: Sequence[Place],
  positions: jax.Array,
  values: jax.Array,
  *,
  keep: jax.Array | bool = True,
  are_zero: bool = False,
) -> list[jax.Array]:
  """Leaves with new values at some positions, in place where their memory may be used again.

  Args:
    leaves: one a place.
    where: their places.
    positions: shape (m,), int32, strictly ascending.
    values: shape (m,), or a scalar, float32; what is finite stays so in the leaves' dtype.
    keep: which are written at all, shape (m,) or a scalar.
    are_zero: whether all values are known to be zero, which saves TPUs an array of them.

  Returns:
    The leaves.
  """
  return here().put(leaves, where, positions, values, keep, are_zero)


class Share(NamedTuple):
  """Which of some positions lie in a leaf.

  Attributes:
    place: the leaf's.
    first: the position of its first entry.
    begin: the number of the first position in it.
    end: and of the first one after it that is not.
  """

  place: Place
  first: Offset
  begin: jax.Array
  end: jax.Array


class Shares:
  """Which of ascending positions lie in which leaf; made out of loops in which it is asked.

  Args:
    where: the places of the leaves.
  """

  def __init__(self, where: Sequence[Place]):
    self._where = where
    self._numbers = offsets(range(len(where)))
    self._firsts = offsets([place.first for place in where])

  def of(self, positions: jax.Array, wanted: jax.Array | bool = True) -> list[Share]:
    """The share of each leaf, in their order.

    Args:
      positions: strictly ascending, int32.
      wanted: whether they have any; if not, all end where they begin.
    """
    firsts = [*(place.first for place in self._where), np.iinfo(np.int32).max]
    begins = _prefix_sum.count_below(positions, jnp.array(firsts, jnp.int32))
    begins, ends = begins[:-1], jnp.where(wanted, begins[1:], begins[:-1])
    at = lambda x, number: lax.dynamic_index_in_dim(x, number, keepdims=False)
    return [
      Share(place, first, at(begins, number), at(ends, number))
      for place, first, number in zip(self._where, self._firsts, self._numbers, strict=True)
    ]


def window(begin: jax.Array, length: int, *arrays: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
  """``length`` items of flat arrays of one size: from number ``begin`` on, or the last ones where too few follow.

  Returns:
    The number of the first, and the items of each array.
  """
  (size,) = arrays[0].shape
  start = jnp.minimum(begin, np.int32(size - length))
  cut = lambda x: lax.dynamic_slice(x, (start,), (length,)) if length < size else x
  return start, [cut(x) for x in arrays]


def put_in_place(
  leaves: Sequence[jax.Array],
  where: Sequence[Place],
  positions: jax.Array,
  values: jax.Array,
  keep: jax.Array | bool,
) -> list[jax.Array]:
  """``put``, each leaf by a scatter of its own."""
  keep = jnp.broadcast_to(jnp.asarray(keep), positions.shape)
  values = jnp.broadcast_to(values, positions.shape)
  written = []
  for leaf, share in zip(leaves, Shares(where).of(positions), strict=True):
    # No leaf takes more entries than it has: a window of that length, from its first entry on, will do.
    length = min(positions.size, share.place.size)
    written.append(_put_window(leaf, share, share.begin, length, positions, values, keep))
  return written


def put_in_turns(
  leaves: Sequence[jax.Array],
  where: Sequence[Place],
  positions: jax.Array,
  values: jax.Array,
  keep: jax.Array | bool,
) -> list[jax.Array]:
  """``put`` a chunk at a time, for many positions: of each leaf as many are looked at as it takes."""
  keep = jnp.broadcast_to(jnp.asarray(keep), positions.shape)
  values = jnp.broadcast_to(values, positions.shape)
  written = []
  for leaf, share in zip(leaves, Shares(where).of(positions), strict=True):
    length = min(_CHUNK, positions.size, share.place.size)

    def turn(state, share=share, length=length):
      leaf, begin = state
      # What was put before is put again.
      leaf = _put_window(leaf, share, begin, length, positions, values, keep)
      return leaf, begin + length

    begin = _axis.varying_like(share.begin, leaf)
    is_open = lambda state, end=share.end: state[1] < end
    written.append(lax.while_loop(is_open, turn, (leaf, begin))[0])
  return written


def _put_window(
  leaf: jax.Array,
  share: Share,
  begin: jax.Array,
  length: int,
  positions: jax.Array,
  values: jax.Array,
  keep: jax.Array,
) -> jax.Array:
  """A leaf with those put that lie in it of so many, from one on or before it where there are too few."""
  _, (here, new, kept) = window(begin, length, positions, values, keep)
  index = share.place.index(jnp.where(kept, here, np.int32(-1)), share.first)
  return _set(leaf, index, cast(new, leaf.dtype))


def put_zeros_by_words(
  leaves: Sequence[jax.Array],
  where: Sequence[Place],
  positions: jax.Array,
  keep: jax.Array | bool,
) -> list[jax.Array]:
  """Zeros put to leaves while they are written anyway: each entry looks at a bit of its own."""
  count = -(-_vector.span(where) // _WORD)
  word = jnp.where(keep, positions // _WORD, np.int32(count))
  bit = jnp.uint32(1) << (positions % _WORD).astype(jnp.uint32)
  words = _axis.varying_like(jnp.zeros(count, jnp.uint32), word)
  words = words.at[word].add(bit, mode="drop")
  begins = offsets([place.first // _WORD for place in where])
  written = []
  for leaf, place, begin in zip(leaves, where, begins, strict=True):
    mine = lax.dynamic_slice(words, (begin,), (-(-place.size // _WORD),))
    bits = mine[:, None] >> lax.iota(jnp.uint32, _WORD)[None] & np.uint32(1)
    is_zero = (bits > 0).reshape(-1)[: place.size].reshape(place.shape)
    if place.shape[-1] < _LONG:
      # Worked out along short axes it would take ten times as long.
      is_zero = lax.optimization_barrier(is_zero)
    # In the leaf's own shape: reshaped it could not be updated in place.
    written.append(jnp.where(is_zero, jnp.zeros_like(leaf), leaf))
  return written


def _set(leaf: jax.Array, index: tuple[jax.Array, ...], values: jax.Array) -> jax.Array:
  """A leaf with values at distinct places."""
  put = lambda leaf, values: leaf.at[index].set(values, mode="drop", unique_indices=True)
  return as_bits(put, leaf, values)


def in_folds(
  where: Sequence[Place],
  lists: Sequence[Sequence[jax.Array]],
  function: OfLeaves,
) -> list[list[jax.Array]]:
  """What a function makes of leaves that puts entries to them.

  On TPUs it works on leaves in a shape in which the rows that share words are an axis of their own. In a leaf's own
  shape, a word would be materialised for every entry first if its rows are no whole tiles.

  Args:
    where: the places of leaves.
    lists: leaves, one a place each.
    function: from the places of leaves in some shape, and lists of leaves in it, to such lists.

  Returns:
    The lists that it makes.
  """
  return here().in_folds(where, lists, function)


def add_counted(
  array: jax.Array, index: jax.Array, values: jax.Array, keep: jax.Array, unique: bool = False
) -> tuple[jax.Array, jax.Array]:
  """A flat array with values added at distinct places, and by how many its entries that are not zero are more.

  Args:
    array: shape (n,).
    index: shape (m,), int32.
    values: shape (m,).
    keep: which are added, shape (m,).
    unique: whether the compiler is told that places are distinct.
  """
  at = array.at[jnp.where(keep, index, np.int32(array.size))]
  old = at.get(mode="fill", fill_value=0, unique_indices=unique)
  new = old + values
  change = (keep & (new != 0)).astype(jnp.int32) - (keep & (old != 0)).astype(jnp.int32)
  return at.set(new, mode="drop", unique_indices=unique), jnp.sum(change)


def cast(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """float32 numbers in another dtype; what is finite stays so (an infinite memory would never end)."""
  largest = jnp.finfo(dtype).max
  if largest < jnp.finfo(jnp.float32).max:
    x = jnp.clip(x, -float(largest), float(largest))
  return x.astype(dtype)
