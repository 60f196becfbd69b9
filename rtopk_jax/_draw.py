"""Uniformly random subsets: the members with the largest of random keys, without sorting them."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax._keys import RANDOM_BELOW, random_keys
from rtopk_jax._rows import Rows, above, exact_cut
from rtopk_jax._search import Form


def draw(key: jax.Array, sizes: Sequence[int], counts: Sequence[int], form: Form) -> jax.Array:
  """A uniformly random subset of each of some sets, their members numbered through.

  Args:
    key: a PRNG key.
    sizes: of the sets.
    counts: of the subsets, from 1 to the size.
    form: of words.

  Returns:
    The numbers, ascending, shape (sum(counts),).
  """
  rows = Rows(sizes)
  number, size = rows.number(), rows.spread(jnp.array(sizes, jnp.int32))
  keys = random_keys(key, math.prod(rows.shape)).reshape(rows.shape)
  keys = jnp.where(number < size, keys, -1)
  zero = jnp.zeros(len(sizes), jnp.int32)
  cut = exact_cut(
    keys,
    rows,
    jnp.array(counts, jnp.int32),
    jnp.array(sizes, jnp.int32),
    zero,
    jnp.full_like(zero, RANDOM_BELOW),
  )
  members = form.rows(above(keys, rows, cut))
  found = members.locate(lax.iota(jnp.int32, sum(counts)))
  return found - rows.padding(found, sizes)
