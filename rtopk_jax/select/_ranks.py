"""Which of the r largest of each row are sent: a uniformly random k of the numbers below r, for many rows at once.

There are two ways, which are those of ``_subset``:

1. Every number gets a random key. Those with the largest keys are taken.
2. Where most numbers are left out, a few more than are wanted are drawn one by one and marked. The first way then
   picks a subset of those that are marked. Rows where too few differ draw again.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels import here
from rtopk_jax.kernels._bitset import BitSet
from rtopk_jax.kernels._offsets import made_once
from rtopk_jax.select import _rows, _subset
from rtopk_jax.select._keys import random_keys
from rtopk_jax.select._rows import Chunk, Rows

# With fewer than one number in so many taken, marking is less work.
_MARKED_ABOVE = 8


def draw(key: jax.Array, k: np.ndarray, r: np.ndarray, like: jax.Array) -> jax.Array:
  """A random k of r numbers for each row, ascending; anything where one has less than most have.

  Args:
    key: a PRNG key.
    k: how many are drawn, shape (rows,).
    r: of how many, likewise.
    like: an array that differs between workers as the numbers do.

  Returns:
    int32, shape (rows, largest k).
  """
  if np.array_equal(k, r):
    ranks = _first(k)
  elif here().has_bits and r.sum() > _MARKED_ABOVE * k.sum():
    ranks = _by_marks(key, k, r)
  else:
    ranks = _by_keys(key, k, jnp.asarray(r, jnp.int32), int(max(r)))
  return _axis.varying_like(ranks, like)


def _by_keys(key: jax.Array, k: np.ndarray, r: jax.Array, width: int) -> jax.Array:
  """The first way: arguments as of ``draw``, and what no r is above."""

  def read(first: jax.Array, count: int) -> Chunk:
    size = lax.dynamic_slice(r, (first,), (count,))

    def keys():
      drawn = random_keys(jax.random.fold_in(key, first), count * width).reshape(count, width)
      return jnp.where(lax.iota(jnp.int32, width)[None] < size[:, None], drawn, -1)

    once = made_once(keys)
    return Chunk(lambda: once, lambda _: ())

  return _rows.largest(Rows(read, k, width), _axis.varying_like(_first(k), key))[0]


def _by_marks(key: jax.Array, k: np.ndarray, r: np.ndarray) -> jax.Array:
  """The second way."""
  kinds, kind_of = np.unique(np.stack([r, k], axis=1), axis=0, return_inverse=True)
  draws = np.array([_subset.draws(*kind) for kind in kinds.tolist()])[kind_of.reshape(-1)]
  width, most = int(max(r)), int(max(draws))
  of_rows = [jnp.asarray(x, jnp.int32) for x in (r, draws)]

  def attempt(state):
    turn, words, different = state

    def mark(first, count):
      size, drawn = (lax.dynamic_slice(x, (first,), (count,))[:, None] for x in of_rows)
      of_chunk = jax.random.fold_in(jax.random.fold_in(key, turn), first)
      numbers = jax.random.randint(of_chunk, (count, most), 0, size, jnp.int32)
      numbers = jnp.where(lax.iota(jnp.int32, most)[None] < drawn, numbers, np.int32(width))
      row = lax.iota(jnp.int32, count)[:, None]
      marked = jnp.zeros((count, width), jnp.bool_).at[row, numbers].set(True, mode="drop")
      return _rows.as_words(marked)

    drawn, count = _rows.in_chunks(mark, k.size, width, key)
    is_done = different >= wanted
    words = jnp.where(is_done[:, None], words, drawn)
    return turn + 1, words, jnp.where(is_done, different, count)

  wanted = jnp.asarray(k, jnp.int32)
  words = jnp.zeros((k.size, -(-width // 32)), jnp.uint32)
  start = (jnp.int32(0), words, jnp.zeros(k.shape, jnp.int32))
  start = jax.tree.map(lambda x: _axis.varying_like(x, key), start)
  enough = lambda state: jnp.all(state[2] >= wanted)
  turns, words, different = here().once_or_more(enough, attempt, start)
  ranks = _by_keys(jax.random.fold_in(key, turns), k, different, most)

  def locate(first, count):
    marked, among_them = (lax.dynamic_slice_in_dim(x, first, count) for x in (words, ranks))
    return (BitSet(marked, 1).locate_in_rows(among_them),)

  return _rows.in_chunks(locate, k.size, width, key)[0]


def _first(k: np.ndarray) -> jax.Array:
  """The first so many numbers for each row, shape (rows, largest k)."""
  most = int(max(k))
  return jnp.broadcast_to(lax.iota(jnp.int32, most)[None], (k.size, most))
