"""A collective of one's own: messages go round a ring, from each worker to the next.

    tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data", collective=Ring())

``docs/extending.md`` walks through it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

import rtopk_jax


@dataclasses.dataclass(frozen=True)
class Ring(rtopk_jax.Collective):
  """In each of n − 1 turns every worker passes on what it got in the turn before."""

  def gather(self, words: jax.Array, axis_name: str) -> jax.Array:
    """A row of words of every worker."""
    n, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
    next_one = [(worker, (worker + 1) % n) for worker in range(n)]

    def turn(number, state):
      rows, passed = state
      passed = lax.ppermute(passed, axis_name, next_one)
      # What comes in the first turn is of the worker before this one, then of the one before that.
      return rows.at[(me - 1 - number) % n].set(passed), passed

    rows = jnp.zeros_like(words, shape=(n, words.size)).at[me].set(words)
    return lax.fori_loop(0, n - 1, turn, (rows, words))[0]

  def traffic(self, size: int, num_workers: int) -> rtopk_jax.Traffic:
    """N − 1 messages, each of them as long as one worker's."""
    others = num_workers - 1
    return rtopk_jax.Traffic(messages=others, sent=size, received=others * size, link=others * size)
