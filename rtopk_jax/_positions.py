"""Sets of positions as bits of words, and their members by number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis

# Words that share one running count.
GROUP = 8


@dataclasses.dataclass(frozen=True)
class Positions:
  """A set of positions, each with some bits of a word, of which one is set for a member.

  Attributes:
    words: uint32, as many as a whole number of groups.
    width: bits of a position, 1 or 2; the lowest bits of a word are the lowest position.
  """

  words: jax.Array
  width: int

  @classmethod
  def of(cls, members: jax.Array) -> "Positions":
    """The set of positions where a bool is true; their number is a multiple of a group's bits."""
    bits = members.astype(jnp.uint32).reshape(-1, 32) << lax.iota(jnp.uint32, 32)[None]
    return cls(jnp.sum(bits, axis=1, dtype=jnp.uint32), 1)

  def locate(self, ranks: jax.Array) -> jax.Array:
    """The positions of some members.

    Args:
      ranks: which, counted from 0 in ascending order of position; int32, shape (m,).

    Returns:
      Their positions, int32; something in range for a rank that is not there.
    """
    members = lambda words: lax.population_count(words).astype(jnp.int32)
    in_group = members(self.words).reshape(-1, GROUP).sum(axis=1, dtype=jnp.int32)
    ends = jnp.cumsum(in_group)
    group = jnp.searchsorted(ends, ranks, side="right", method="scan").astype(jnp.int32)
    group = jnp.minimum(group, ends.size - 1)
    ranks = ranks - (ends - in_group).at[group].get(mode="promise_in_bounds")

    # A loop, because unrolled it would be one fusion that works out each step again for the next.
    def next_word(i, state):
      word, left = state
      here = members(self.words.at[GROUP * group + i].get(mode="promise_in_bounds"))
      passed = (word == i) & (left >= here)
      return jnp.where(passed, word + 1, word), jnp.where(passed, left - here, left)

    start = _axis.varying_like(jnp.zeros_like(ranks), self.words)
    word, left = lax.fori_loop(0, GROUP - 1, next_word, (start, ranks))
    word = GROUP * group + word
    in_word = self._in_word(self.words.at[word].get(mode="promise_in_bounds"), left)
    return (32 // self.width) * word + in_word

  def _in_word(self, words: jax.Array, n: jax.Array) -> jax.Array:
    """Where in its word the n-th member is, by halving the word."""
    position = jnp.zeros_like(n)
    half = 16 // self.width
    while half:
      low = words & np.uint32((1 << self.width * half) - 1)
      below = lax.population_count(low).astype(jnp.int32)
      up = n >= below
      n = jnp.where(up, n - below, n)
      words = jnp.where(up, words >> np.uint32(self.width * half), low)
      position = jnp.where(up, position + half, position)
      half //= 2
    return position
