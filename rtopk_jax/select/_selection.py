"""What a selector found in a vector: which entries are sent, and what of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax.kernels import _gather
from rtopk_jax.kernels._statistics import Statistics
from rtopk_jax.select import _search
from rtopk_jax.select._keys import magnitude_keys
from rtopk_jax.select._slices import Blocks
from rtopk_jax.vector._vector import Vector


class Selection(NamedTuple):
  """Which entries of a vector are sent, and their values.

  A message has room for k of them. Where there are fewer, it is short: what is not there comes last, with positions
  beyond the vector that ascend, and values of zero. Whatever writes to a vector drops them.

  Attributes:
    positions: theirs, ascending, shape (k,), int32.
    entries: the vector's there, shape (k,).
    values: those to be sent, shape (k,); ``entries`` but where a selector changes them.
    statistics: of the vector, a by-product.
    blocks: the block of each, where there are blocks that all have as many.
    is_short: whether there may be fewer than k.
  """

  positions: jax.Array
  entries: jax.Array
  values: jax.Array
  statistics: Statistics
  blocks: Blocks | None = None
  is_short: bool = False

  @classmethod
  def of(cls, vector: Vector, positions: jax.Array) -> "Selection":
    """The entries at ascending positions, and a statistics in a read of its own."""
    entries = _gather.take(vector, positions)
    return cls(positions, entries, entries, _search.statistics_of(vector, magnitude_keys))

  def scaled(self, scales: jax.Array | None) -> "Selection":
    """The same, with values times some factors."""
    return self if scales is None else self._replace(values=self.values * scales)

  def room(self, vector: Vector) -> int:
    """How many different positions a message has to be able to name."""
    return vector.span + (self.positions.size if self.is_short else 0)

  def is_there(self, vector: Vector) -> jax.Array | bool:
    """Which of the k are there."""
    return self.positions < vector.span if self.is_short else True


def with_distinct_ends(vector: Vector, positions: jax.Array) -> jax.Array:
  """Ascending positions with those that are beyond the vector made different from each other."""
  number = lax.iota(jnp.int32, positions.size)
  return jnp.where(positions < vector.span, positions, number + vector.span)
