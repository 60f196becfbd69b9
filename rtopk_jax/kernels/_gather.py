"""Entries of a vector looked up at positions, and read as a whole."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels import _prefix_sum
from rtopk_jax.kernels._dispatch import here
from rtopk_jax.kernels._offsets import offsets
from rtopk_jax.vector._vector import ALIGN, Vector

# Entries that are taken from a piece at a time.
_CHUNK = 2048
# Entries of a piece that is read a chunk at a time.
_LONG = 1 << 17


def take(vector: Vector, positions: jax.Array, shares: Sequence[int] | None = None) -> jax.Array:
  """The entries of a vector at positions; for one that names nothing, some entry.

  Args:
    vector: d entries.
    positions: ascending, or as many of each piece as ``shares`` says.
    shares: how many there are of each piece, in order, if that is known; positions among them that are of no
      entry of that piece stand for any.

  Returns:
    Their values, of the shape of the positions.
  """
  return here().take(vector, positions, shares)


def take_from_all(vector: Vector, positions: jax.Array) -> jax.Array:
  """Every position looked up in every piece, of which one is right."""
  values = vector.take_from(0, jnp.clip(positions, 0, vector.where[0].size - 1))
  for i, place in enumerate(vector.where[1:], start=1):
    index = jnp.clip(positions - place.first, 0, place.size - 1)
    values = jnp.where(positions >= place.first, vector.take_from(i, index), values)
  return values


def take_shares(vector: Vector, positions: jax.Array, shares: Sequence[int]) -> jax.Array:
  """Piece by piece, all pieces at the same time if there are cores for them."""
  # What they are worked out of would be worked out for each piece anew.
  positions = lax.optimization_barrier(positions)
  begins = offsets((np.cumsum(shares) - shares).tolist())
  firsts = offsets([place.first for place in vector.where])
  taken = []
  pieces = zip(vector.where, firsts, begins, shares, strict=True)
  for i, (place, first, begin, share) in enumerate(pieces):
    index = lax.dynamic_slice(positions, (begin,), (share,)) - first
    taken.append(vector.take_from(i, jnp.clip(index, 0, place.size - 1)))
  return jnp.concatenate(taken)


def take_by_piece(vector: Vector, positions: jax.Array, in_place: bool = False) -> jax.Array:
  """Piece by piece a chunk of positions at a time, for what can't look at all pieces at once."""
  take_from = vector.take_from_in_place if in_place else vector.take_from
  flat = positions.reshape(-1)
  chunk = min(_CHUNK, flat.size)
  firsts = jnp.array([*(place.first for place in vector.where), vector.span], jnp.int32)
  first = _prefix_sum.count_below(flat, firsts).at[-1].set(flat.size)
  values = take_from(0, jnp.zeros_like(flat))
  numbers = offsets(range(len(vector.where)))
  hidden = offsets([place.first for place in vector.where])
  for i, (place, number, origin) in enumerate(zip(vector.where, numbers, hidden, strict=True)):
    start, end = (
      lax.dynamic_index_in_dim(x, number, keepdims=False) for x in (first[:-1], first[1:])
    )

    def step(turn, values, i=i, place=place, start=start, origin=origin):
      begin = jnp.minimum(start + turn * chunk, flat.size - chunk)
      index = lax.dynamic_slice(flat, (begin,), (chunk,)) - origin
      old = lax.dynamic_slice(values, (begin,), (chunk,))
      new = take_from(i, jnp.clip(index, 0, place.size - 1))
      new = jnp.where(index >= 0, new, old)
      return lax.dynamic_update_slice(values, new, (begin,))

    turns = lax.div(end - start + np.int32(chunk - 1), np.int32(chunk))
    values = fori_loop(0, turns, step, values)
  return values.reshape(positions.shape)


def read_all(vector: Vector, piece: int) -> jax.Array:
  """All entries of a piece, flat."""
  return here().read_all(vector, piece)


def read_in_chunks(vector: Vector, piece: int) -> jax.Array:
  """All entries of a piece, a chunk at a time where its last axis is no multiple of a word's entries.

  A compiler for CPUs would work out for each entry where in its leaf it lies, which takes ten times as long.
  """
  place = vector.where[piece]
  if place.size < _LONG or len(place.shape) == 1 or place.shape[-1] % ALIGN == 0:
    return vector.read_all(piece)
  vector, chunk = vector.flat(), _LONG // 2
  dtype = jax.eval_shape(lambda: vector.read(piece, jnp.int32(0), chunk)).dtype
  turn = lambda number, entries: lax.dynamic_update_slice(
    entries, vector.read(piece, number * chunk, chunk), (number * chunk,)
  )
  entries = _axis.varying_like(jnp.zeros(place.size, dtype), vector.arrays[piece][0])
  entries = fori_loop(0, place.size // chunk, turn, entries)
  last = vector.read(piece, jnp.int32(place.size - chunk), chunk)
  return lax.dynamic_update_slice(entries, last, (place.size - chunk,))
