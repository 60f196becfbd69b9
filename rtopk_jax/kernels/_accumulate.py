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
from rtopk_jax.kernels import _prefix_sum
from rtopk_jax.kernels._dispatch import here
from rtopk_jax.kernels._offsets import offsets
from rtopk_jax.kernels._scatter import add_counted
from rtopk_jax.vector import _vector
from rtopk_jax.vector._vector import Place

# Entries that are added to a leaf at a time where that is done in turns.
_CHUNK = 1024
# Entries that a GPU copies in the time that the messages of a few workers take it for one leaf more.
_OF_LEAF = 1 << 22


class Sums(NamedTuple):
  """Flat arrays of sums, and how many entries of them are not zero."""

  arrays: list[jax.Array]
  nonzero: jax.Array


class Part(NamedTuple):
  """Some entries of a message: from one on, up to another; their numbers in a leaf, beyond it after its end."""

  index: jax.Array
  values: jax.Array
  begin: jax.Array
  end: jax.Array


class InPlace:
  """A flat array for each leaf.

  Args:
    where: the places of the leaves.
  """

  def __init__(self, where: Sequence[Place]):
    self.where = where
    self.sizes = [place.size for place in where]
    # Out of the loop over workers that adds.
    self._numbers = offsets(range(len(where)))
    self._firsts = offsets([place.first for place in where])

  def add(self, sums: Sums, positions: jax.Array, values: jax.Array, wanted: jax.Array) -> Sums:
    """Adds values at strictly ascending positions, if they are wanted at all."""
    firsts = [*(place.first for place in self.where), np.iinfo(np.int32).max]
    begins = _prefix_sum.count_below(positions, jnp.array(firsts, jnp.int32))
    ends = jnp.where(wanted, begins[1:], begins[:-1])
    arrays, nonzero = [], sums.nonzero
    for array, number, first in zip(sums.arrays, self._numbers, self._firsts, strict=True):
      begin, end = (lax.dynamic_index_in_dim(x, number, keepdims=False) for x in (begins, ends))
      part = Part(positions - jnp.int32(first), values, begin, end)
      array, change = here().add_part(array, part)
      arrays.append(array)
      nonzero += change
    return Sums(arrays, nonzero)

  def leaves(self, arrays: list[jax.Array]) -> list[jax.Array]:
    """The arrays as leaves."""
    return [x.reshape(place.shape) for x, place in zip(arrays, self.where, strict=True)]


class InOne:
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
    return _vector.span(where) < _OF_LEAF * len(where)

  def add(self, sums: Sums, positions: jax.Array, values: jax.Array, wanted: jax.Array) -> Sums:
    """As ``InPlace.add``."""
    wanted = jnp.broadcast_to(wanted, positions.shape)
    array, change = add_counted(sums.arrays[0], positions, values, wanted, unique=True)
    return Sums([array], sums.nonzero + change)

  def leaves(self, arrays: list[jax.Array]) -> list[jax.Array]:
    """As ``InPlace.leaves``."""
    cut = lambda place: arrays[0][place.first : place.first + place.size]
    return [cut(place).reshape(place.shape) for place in self._where]


def add_at_once(leaf: jax.Array, part: Part) -> tuple[jax.Array, jax.Array]:
  """Those from one on, up to another, by a window that is long enough for all that a leaf may take."""
  length = min(part.index.size, leaf.size)
  return _add_window(leaf, part, length)


def add_in_turns(leaf: jax.Array, part: Part) -> tuple[jax.Array, jax.Array]:
  """The same a chunk at a time, for what does one thing after another."""
  length = min(_CHUNK, part.index.size, leaf.size)

  def turn(state):
    leaf, nonzero, begin = state
    window = part._replace(begin=begin, end=jnp.minimum(begin + length, part.end))
    leaf, change = _add_window(leaf, window, length)
    return leaf, nonzero + change, begin + length

  none = _axis.varying_like(jnp.int32(0), leaf)
  begin = _axis.varying_like(part.begin, leaf)
  leaf, nonzero, _ = lax.while_loop(lambda state: state[2] < part.end, turn, (leaf, none, begin))
  return leaf, nonzero


def _add_window(leaf: jax.Array, part: Part, length: int) -> tuple[jax.Array, jax.Array]:
  """Adds up to so many entries, and says by how many the entries that are not zero have become more."""
  start = jnp.minimum(part.begin, part.index.size - length)
  at, new = (lax.dynamic_slice(x, (start,), (length,)) for x in (part.index, part.values))
  number = start + lax.iota(jnp.int32, length)
  here = (number >= part.begin) & (number < part.end) & (at < leaf.size)
  return add_counted(leaf, at, new, here, unique=True)
