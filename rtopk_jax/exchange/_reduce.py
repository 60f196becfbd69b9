"""What all workers sent, added up to one update.

Sums are made in flat arrays, of which only the entries that somebody sent are touched. How many
entries differ from zero in the end comes out of the same touch: an entry counts when it leaves zero and is
taken back when it returns there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.exchange._collective import Contributions
from rtopk_jax.kernels import _scatter
from rtopk_jax.kernels._gpu_loops import on_gpus
from rtopk_jax.kernels._spent_old import zeros_in
from rtopk_jax.vector import _vector
from rtopk_jax.vector._vector import Place

# Entries that are added to a leaf at a time where that is done in turns.
_STRETCH = 1024
# Entries that a GPU copies in the time that the messages of a few workers take it for one leaf more.
_OF_LEAF = 1 << 22


class _Sums(NamedTuple):
  """Flat arrays of sums, and how many entries of them are not zero."""

  arrays: list[jax.Array]
  nonzero: jax.Array


def reduce(
  contributions: Contributions,
  where: Sequence[Place],
  keep: jax.Array,
  weights: jax.Array | None,
  average: str,
  cleared: Sequence[jax.Array] = (),
) -> tuple[list[jax.Array], jax.Array]:
  """The mean of all contributions, leaf by leaf.

  Args:
    contributions: what is added.
    where: the places of the leaves.
    keep: whether anything is added at all, a bool scalar.
    weights: a factor for each contribution, 0 for a worker that is absent; None for 1.
    average: "workers" divides by their number, "senders" each entry by the number of workers that sent
      it, "sum" does not divide.
    cleared: an array a leaf, of its shape, in whose memory its sums may be made, float32; on CPUs all are zeros.
      Empty where there are none.

  Returns:
    Leaves in float32, and how many of their entries are not zero.
  """
  by_senders = average == "senders"
  present = jnp.float32(contributions.count) if weights is None else weights.sum()
  divisor = jnp.maximum(present, 1) if average == "workers" else jnp.float32(1)

  def added_up(form, cleared=()):
    def add(worker, state):
      totals, senders = state
      positions, values = contributions.read(worker)
      wanted = keep if weights is None else keep & (weights[worker] > 0)
      totals = form.add(totals, positions, values / divisor, wanted)
      if by_senders:
        senders = form.add(senders, positions, jnp.ones(values.shape, jnp.int32), wanted)
      return totals, senders

    # Zeros that the compiler does not know for such: of constants it would keep one for all arrays of a size,
    # and copy it for each.
    positions, values = contributions.read(jnp.int32(0))
    count = len(form.sizes)
    nothing = jnp.zeros_like(values, shape=(count,)).at[positions[0] + 1 + count].set(1)
    zeros = lambda dtype: [
      jnp.broadcast_to(nothing[i].astype(dtype), (size,)) for i, size in enumerate(form.sizes)
    ]
    none = _axis.varying_like(jnp.int32(0), nothing)
    counted = _Sums(zeros(jnp.int32) if by_senders else [], none)
    over = [_axis.varying_like(zeros_in(x.reshape(-1)), nothing) for x in cleared]
    start = (_Sums(over or zeros(jnp.float32), none), counted)
    totals, senders = fori_loop(0, contributions.count, add, start)
    leaves = form.leaves(totals.arrays)
    if by_senders:
      divided = zip(leaves, form.leaves(senders.arrays), strict=True)
      leaves = [total / jnp.maximum(count, 1).astype(jnp.float32) for total, count in divided]
    return leaves, totals.nonzero

  in_place = _InPlace(where)
  in_tiles = _InTiles(where) if _scatter.Tiled.fits(where) else in_place
  in_one = _InOne(where) if _InOne.is_quicker(where) else in_place
  return on_gpus(
    gpu=lambda: added_up(in_one),
    default=lambda: lax.platform_dependent(
      tpu=lambda: added_up(in_tiles), default=lambda: added_up(in_place, cleared)
    ),
  )


class _Part(NamedTuple):
  """Some entries of a message: from one on, up to another; their numbers in a leaf, beyond it after its end."""

  index: jax.Array
  values: jax.Array
  begin: jax.Array
  end: jax.Array


class _InPlace:
  """A flat array for each leaf.

  Args:
    where: the places of the leaves.
  """

  def __init__(self, where: Sequence[Place]):
    self.where = where
    self.sizes = [place.size for place in where]

  def add(self, sums: _Sums, positions: jax.Array, values: jax.Array, wanted: jax.Array) -> _Sums:
    """Adds values at strictly ascending positions, if they are wanted at all."""
    firsts = [*(place.first for place in self.where), np.iinfo(np.int32).max]
    begins = _vector.begins(positions, jnp.array(firsts, jnp.int32))
    ends = jnp.where(wanted, begins[1:], begins[:-1])
    arrays, nonzero = [], sums.nonzero
    for i, (array, place) in enumerate(zip(sums.arrays, self.where, strict=True)):
      part = _Part(positions - np.int32(place.first), values, begins[i], ends[i])
      array, change = on_gpus(array, part, gpu=_add_at_once, default=_add_in_turns)
      arrays.append(array)
      nonzero += change
    return _Sums(arrays, nonzero)

  def leaves(self, arrays: list[jax.Array]) -> list[jax.Array]:
    """The arrays as leaves."""
    return [x.reshape(place.shape) for x, place in zip(arrays, self.where, strict=True)]


class _InOne:
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

  def add(self, sums: _Sums, positions: jax.Array, values: jax.Array, wanted: jax.Array) -> _Sums:
    """As ``_InPlace.add``."""
    wanted = jnp.broadcast_to(wanted, positions.shape)
    array, change = _scatter.add_counted(sums.arrays[0], positions, values, wanted, unique=True)
    return _Sums([array], sums.nonzero + change)

  def leaves(self, arrays: list[jax.Array]) -> list[jax.Array]:
    """As ``_InPlace.leaves``."""
    cut = lambda place: arrays[0][place.first : place.first + place.size]
    return [cut(place).reshape(place.shape) for place in self._where]


class _InTiles:
  """One array for all leaves, which TPUs can write single entries to."""

  def __init__(self, where: Sequence[Place]):
    self._tiled = _scatter.Tiled(where)
    self.sizes = [self._tiled.size]

  def add(self, sums: _Sums, positions: jax.Array, values: jax.Array, wanted: jax.Array) -> _Sums:
    """As ``_InPlace.add``."""
    array, change = self._tiled.add(sums.arrays[0], positions, values, wanted)
    return _Sums([array], sums.nonzero + change)

  def leaves(self, arrays: list[jax.Array]) -> list[jax.Array]:
    """As ``_InPlace.leaves``."""
    return self._tiled.leaves(arrays[0])


def _add_at_once(leaf: jax.Array, part: _Part) -> tuple[jax.Array, jax.Array]:
  """Those from one on, up to another, by a window that is long enough for all that a leaf may take."""
  length = min(part.index.size, leaf.size)
  return _add_window(leaf, part, length)


def _add_in_turns(leaf: jax.Array, part: _Part) -> tuple[jax.Array, jax.Array]:
  """The same a stretch at a time, for what does one thing after another."""
  length = min(_STRETCH, part.index.size, leaf.size)

  def turn(state):
    leaf, nonzero, begin = state
    window = part._replace(begin=begin, end=jnp.minimum(begin + length, part.end))
    leaf, change = _add_window(leaf, window, length)
    return leaf, nonzero + change, begin + length

  none = _axis.varying_like(jnp.int32(0), leaf)
  begin = _axis.varying_like(part.begin, leaf)
  leaf, nonzero, _ = lax.while_loop(lambda state: state[2] < part.end, turn, (leaf, none, begin))
  return leaf, nonzero


def _add_window(leaf: jax.Array, part: _Part, length: int) -> tuple[jax.Array, jax.Array]:
  """Adds up to so many entries, and says by how many the entries that are not zero have become more."""
  start = jnp.minimum(part.begin, part.index.size - length)
  at, new = (lax.dynamic_slice(x, (start,), (length,)) for x in (part.index, part.values))
  number = start + lax.iota(jnp.int32, length)
  here = (number >= part.begin) & (number < part.end) & (at < leaf.size)
  return _scatter.add_counted(leaf, at, new, here, unique=True)
