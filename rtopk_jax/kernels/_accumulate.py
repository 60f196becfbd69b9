"""Arrays that messages are added up in; only the entries that somebody sent are touched.

How many entries differ from zero in the end comes out of the same touch: an entry counts when it leaves zero
and is taken back when it returns there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels import _bitpack
from rtopk_jax.kernels._dispatch import here
from rtopk_jax.kernels._scatter import Share, Shares, add_counted, window
from rtopk_jax.vector import _vector
from rtopk_jax.vector._vector import Place

# Entries that are added to a leaf at a time where that is done in turns.
_CHUNK = 1024
# Entries of a row that are counted together.
_ROW = 512
# Entries that a GPU copies in the time that one leaf more costs it, for the messages of a few workers.
_COPIED_PER_LEAF = 1 << 22


class Sums(NamedTuple):
  """Flat arrays of sums, and how many entries of them are not zero."""

  arrays: list[jax.Array]
  nonzero: jax.Array


class Part(NamedTuple):
  """A message, and which of its entries a leaf takes.

  Attributes:
    positions: all of the message, ascending.
    values: all of the message.
    share: those that lie in the leaf.
  """

  positions: jax.Array
  values: jax.Array
  share: Share

  def window(self, begin: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``length`` entries of the message: from number ``begin`` on, or its last ones where too few follow.

    Returns:
      Their indices in the leaf, their values, and which of them are the leaf's and not before ``begin``.
    """
    start, (positions, values) = window(begin, length, self.positions, self.values)
    number = start + lax.iota(jnp.int32, length)
    taken = (number >= begin) & (number < self.share.end)
    return positions - jnp.int32(self.share.first), values, taken


class InPlace:
  """A flat array for each leaf.

  Args:
    where: the places of the leaves.
    counts_late: whether entries that are not zero are counted at the end, in a read of all sums.
  """

  def __init__(self, where: Sequence[Place], counts_late: bool = False):
    self.where = where
    self.counts_late = counts_late
    self.sizes = [place.size for place in where]
    self._shares = Shares(where)

  def add(self, sums: Sums, positions: jax.Array, values: jax.Array, wanted: jax.Array) -> Sums:
    """Adds values at strictly ascending positions, if they are wanted at all."""
    arrays, nonzero = [], sums.nonzero
    for array, share in zip(sums.arrays, self._shares.of(positions, wanted), strict=True):
      part = Part(positions, values, share)
      if self.counts_late:
        arrays.append(add_uncounted(array, part))
        continue
      array, change = here().add_part(array, part)
      arrays.append(array)
      nonzero += change
    return Sums(arrays, nonzero)

  def nonzero(self, sums: Sums) -> jax.Array:
    """How many entries are not zero."""
    if not self.counts_late:
      return sums.nonzero
    return sums.nonzero + sum(_nonzero(x) for x in sums.arrays)

  def leaves(self, arrays: list[jax.Array]) -> list[jax.Array]:
    """The arrays as leaves."""
    return [x.reshape(place.shape) for x, place in zip(arrays, self.where, strict=True)]


class InOneArray:
  """One flat array, out of which leaves are cut: for GPUs, to which each leaf is some kernels more.

  Args:
    where: the places of the leaves.
  """

  def __init__(self, where: Sequence[Place]):
    self._where = where
    self.sizes = [_vector.span(where)]

  @staticmethod
  def is_quicker(where: Sequence[Place]) -> bool:
    """Whether there are so many leaves that cutting them out takes less than what all of them would."""
    return _vector.span(where) < _COPIED_PER_LEAF * len(where)

  def add(self, sums: Sums, positions: jax.Array, values: jax.Array, wanted: jax.Array) -> Sums:
    """As ``InPlace.add``."""
    wanted = jnp.broadcast_to(wanted, positions.shape)
    array, change = add_counted(sums.arrays[0], positions, values, wanted, unique=True)
    return Sums([array], sums.nonzero + change)

  def nonzero(self, sums: Sums) -> jax.Array:
    """As ``InPlace.nonzero``."""
    return sums.nonzero

  def leaves(self, arrays: list[jax.Array]) -> list[jax.Array]:
    """As ``InPlace.leaves``."""
    cut = lambda place: arrays[0][place.first : place.first + place.size]
    return [cut(place).reshape(place.shape) for place in self._where]


def add_at_once(leaf: jax.Array, part: Part) -> tuple[jax.Array, jax.Array]:
  """A part added to a flat leaf by one window, long enough for all that the leaf may take.

  Returns:
    The leaf, and by how many its entries that are not zero have become more.
  """
  length = min(part.positions.size, leaf.size)
  index, values, taken = part.window(part.share.begin, length)
  return add_counted(leaf, index, values, taken & (index < leaf.size), unique=True)


def add_in_turns(leaf: jax.Array, part: Part) -> tuple[jax.Array, jax.Array]:
  """``add_at_once`` a chunk at a time: no more is looked at than the leaf takes."""
  length = min(_CHUNK, part.positions.size, leaf.size)

  def turn(state):
    leaf, nonzero, begin = state
    index, values, taken = part.window(begin, length)
    leaf, change = add_counted(leaf, index, values, taken & (index < leaf.size), unique=True)
    return leaf, nonzero + change, begin + length

  none = _axis.varying_like(jnp.int32(0), leaf)
  begin = _axis.varying_like(part.share.begin, leaf)
  leaf, nonzero, _ = lax.while_loop(
    lambda state: state[2] < part.share.end, turn, (leaf, none, begin)
  )
  return leaf, nonzero


def add_uncounted(leaf: jax.Array, part: Part) -> jax.Array:
  """``add_in_turns`` without a count."""
  length = min(_CHUNK, part.positions.size, leaf.size)

  def turn(state):
    leaf, begin = state
    index, values, taken = part.window(begin, length)
    index = jnp.where(taken, index, np.int32(leaf.size))
    return leaf.at[index].add(values, mode="drop", unique_indices=True), begin + length

  begin = _axis.varying_like(part.share.begin, leaf)
  return lax.while_loop(lambda state: state[1] < part.share.end, turn, (leaf, begin))[0]


def _nonzero(array: jax.Array) -> jax.Array:
  """How many entries are not zero, by rows, which compilers for CPUs make vector instructions of."""
  whole = array.size // _ROW * _ROW
  count = lambda x: (x != 0).astype(jnp.int32)
  by_row = _bitpack.by_halves(lax.add, count(array[:whole].reshape(-1, _ROW)), axis=1)
  return jnp.sum(by_row) + jnp.sum(count(array[whole:]))
