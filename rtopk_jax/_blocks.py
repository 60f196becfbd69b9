"""Selection within blocks of a leaf: each run of so many entries has a k of its own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax._keys import magnitude_keys, random_keys, top_k_of_keys
from rtopk_jax._select import Selection, Selector
from rtopk_jax._vector import Vector
from rtopk_jax._wire import Blocks


def select(
  selector: Selector,
  vector: Vector,
  size: int,
  key_of: Callable[[int], jax.Array],
  num_workers: int,
) -> tuple[Selection, Blocks, jax.Array | None]:
  """Selects in every block of a vector in pieces; the last block of a piece may be shorter.

  Args:
    selector: of one density.
    vector: d entries.
    size: entries of a block.
    key_of: PRNG keys by number.
    num_workers: stands in for r/k.

  Returns:
    The selection, each entry's block, and the factor of each value, if any.
  """
  positions, begins, lengths = [], [], []
  for i, place in enumerate(vector.where):
    keys = magnitude_keys(vector.read(i))
    whole = place.size // size * size
    for begin, end, length in ((0, whole, size), (whole, place.size, place.size - whole)):
      if begin == end:
        continue
      k, r = selector.counts(length, num_workers)
      key = jax.random.fold_in(key_of(i), begin)
      rows = keys[begin:end].reshape(-1, length)
      first = place.first + begin + length * np.arange(rows.shape[0], dtype=np.int32)
      chosen = _in_rows(rows, key, k, r)
      positions.append((chosen + first[:, None]).reshape(-1))
      begins.append(np.repeat(first, k))
      lengths += [length] * rows.shape[0]
  selection = Selection.of(vector, jnp.concatenate(positions))
  blocks = Blocks(np.concatenate(begins).astype(np.int32), size)
  return selection, blocks, selector.scales(lengths, num_workers)


def _in_rows(keys: jax.Array, key: jax.Array, k: int, r: int) -> jax.Array:
  """Ascending numbers of the k chosen in every row, shape (rows, k)."""
  rows, length = keys.shape
  if k == length:
    return jnp.broadcast_to(lax.iota(jnp.int32, length)[None], keys.shape)
  if r == length:
    return jnp.sort(top_k_of_keys(random_keys(key, rows * length).reshape(keys.shape), k))
  chosen = jnp.sort(top_k_of_keys(keys, r))
  if k < r:
    drawn = jnp.sort(top_k_of_keys(random_keys(key, rows * r).reshape(rows, r), k))
    chosen = jnp.take_along_axis(chosen, drawn, axis=1, mode="promise_in_bounds")
  return chosen
