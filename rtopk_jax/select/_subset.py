"""Uniformly random subsets of sets, of exactly so many members, without a sort.

There are two ways:

1. Every member gets a random key. Those with the largest keys are taken; they are found by counting.
2. Where most members are left out (random-k), a few more numbers than wanted are drawn one by one and marked. How
   many of them differ is left to chance. Given that count, every set of that size is equally likely. The first way
   then picks a subset of it. Where too few differ, all are drawn again.

The second needs a bit for every member, and is left out on platforms where those are not cheap.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rtopk_jax import _axis
from rtopk_jax.kernels import here
from rtopk_jax.kernels._bitset import GROUP, BitSet
from rtopk_jax.kernels._flat_packing import FlatPacking
from rtopk_jax.kernels._threshold import RaggedRows, above, exact_threshold
from rtopk_jax.kernels._tiled_packing import TiledPacking
from rtopk_jax.select._keys import RANDOM_BELOW, random_keys

# With fewer than one member in so many taken, and not only a few, marking is less work.
_MARKED_ABOVE = 16
_MANY = 1 << 16
# Standard deviations of the number of different ones that are drawn more than are wanted.
_SIGMAS = 6


def draw(
  key: jax.Array, sizes: Sequence[int], counts: Sequence[int], packing: FlatPacking | TiledPacking
) -> jax.Array:
  """A uniformly random subset of each of some sets, their members numbered through.

  Args:
    key: a PRNG key.
    sizes: of the sets.
    counts: of the subsets, from 1 to the size.
    packing: how words are made on this platform.

  Returns:
    The numbers, ascending, shape (sum(counts),).
  """
  if here().has_bits and sum(sizes) > max(_MANY, _MARKED_ABOVE * sum(counts)):
    return _by_marks(key, sizes, counts)
  found = packing.numbers(_taken(key, sizes, jnp.array(sizes, jnp.int32), counts), sum(counts))
  return found - RaggedRows(sizes).padding(found, sizes)


def _taken(
  key: jax.Array, rooms: Sequence[int], sizes: jax.Array, counts: Sequence[int]
) -> jax.Array:
  """The first way: which places of the rows of sets are taken. A set has its members in its first places.

  Args:
    key: a PRNG key.
    rooms: places of each set, before they are rounded up to whole rows.
    sizes: members of each set, int32.
    counts: how many of them are taken.
  """
  rows = RaggedRows(rooms)
  number, size = rows.number(), rows.spread(sizes)
  keys = random_keys(key, math.prod(rows.shape)).reshape(rows.shape)
  keys = jnp.where(number < size, keys, -1)
  zero = jnp.zeros(len(rooms), jnp.int32)
  highest = jnp.full_like(zero, RANDOM_BELOW)
  threshold = exact_threshold(keys, rows, jnp.array(counts, jnp.int32), sizes, zero, highest)
  return above(keys, rows, threshold)


def _by_marks(key: jax.Array, sizes: Sequence[int], counts: Sequence[int]) -> jax.Array:
  """The second way: by marking what is drawn one by one."""
  total, drawn = sum(sizes), [draws(*x) for x in zip(sizes, counts, strict=True)]
  begins = np.cumsum(sizes) - np.array(sizes)
  set_of = np.repeat(np.arange(len(sizes)), drawn)
  first = jnp.asarray(begins[set_of], jnp.int32)
  below = jnp.asarray(np.array(sizes)[set_of], jnp.int32)
  wanted = jnp.array(counts, jnp.int32)
  # So that the members of a set are those up to its end, less those up to its beginning.
  ends = jnp.asarray(np.cumsum(sizes), jnp.int32)
  words = -(-total // (32 * GROUP)) * GROUP

  def attempt(state):
    turn, _, _ = state
    numbers = jax.random.randint(jax.random.fold_in(key, turn), first.shape, 0, below, jnp.int32)
    # By word and bit: there may be more places than int32 counts.
    place = first + numbers
    marked = jnp.zeros((words, 32), jnp.bool_).at[place // 32, place % 32].set(True)
    found = BitSet.of(marked)
    up_to = found.below(ends)
    return turn + 1, found.words, jnp.diff(up_to, prepend=jnp.zeros_like(up_to[:1]))

  start = (jnp.int32(0), jnp.zeros(words, jnp.uint32), jnp.zeros_like(wanted))
  start = jax.tree.map(lambda x: _axis.varying_like(x, key), start)
  enough = lambda state: jnp.all(state[2] >= wanted)
  turns, marked, different = here().once_or_more(enough, attempt, start)
  taken = _taken(jax.random.fold_in(key, turns), drawn, different, counts)
  taken = BitSet.of(taken.reshape(-1)).first(sum(counts))
  # From a place in the rows to a rank among all that are marked.
  set_of_taken = np.repeat(np.arange(len(sizes)), counts)
  rooms = np.array(RaggedRows(drawn).capacities)
  places = np.cumsum(rooms) - rooms
  shift = jnp.cumsum(different) - different - jnp.asarray(places, jnp.int32)
  return BitSet(marked, 1).locate(taken + shift[set_of_taken])


def draws(size: int, count: int) -> int:
  """How many numbers below ``size`` have to be drawn for ``count`` different ones, nearly always."""
  share = count / size
  # Of m = c·size draws 1 - exp(-c) of all numbers are among them, with the variance below over the size.
  c = -math.log1p(-min(share, 1 - 0.5 / size))
  variance = size * (math.exp(-c) - (1 + c) * math.exp(-2 * c))
  target = min(count + _SIGMAS * math.sqrt(max(variance, 0.0)) + 1, size - 0.5)
  return math.ceil(-size * math.log1p(-target / size))
