"""The r largest of d numbers without sorting them: exact, in a little over one read of the vector.

``largest`` works on non-negative int32 keys (the bits of a float's magnitude spell one). Ties go to the
lowest index, so that a cut of the order is a pair (value, index), and what lies above it is

    key > value,  or  key == value and position < index.

1. A sample of the keys puts the wanted cut between two others, close together.
2. One read of all keys sorts entries into three kinds, two bits each, 16 to a word: above both cuts,
   between them, below both. Where the sample misled, the two cuts are moved and the keys read again;
   each time the gap shrinks, down to single positions among equal keys, so this ends.
3. The few entries between the cuts are listed, the exact cut is found among them by counting, and those
   that lost are struck from the words.

The result is a ``Positions``: a set as words, whose n-th member is found by the running count of its group
of words. A random subset then takes no more than the ranks of its members.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._positions import GROUP, Positions

# Bits of an entry: the kinds are 0, 1 and 2.
_WIDTH = 2
_PER_WORD = 32 // _WIDTH
# Below this size sampling does not pay: all entries are between the cuts.
_SMALL = 1 << 16
_SAMPLE = 1 << 16
# Cuts are put this many standard deviations of the sample's error to both sides.
_SIGMAS = 4.5
_EVEN_BITS = np.uint32(0x5555_5555)
# What all NaN are taken for. Keys stay below 2³¹ by so much that differences of any two fit into int32.
LARGEST_KEY = 0x7F80_0001


class Cut(NamedTuple):
  """A place in the order of the keys, and how many are above it."""

  value: jax.Array
  index: jax.Array
  count: jax.Array


def _above(keys: jax.Array, positions: jax.Array, cut: Cut) -> jax.Array:
  return (keys > cut.value) | ((keys == cut.value) & (positions < cut.index))


def _cut(value, index, count) -> Cut:
  return Cut(*(jnp.asarray(x, jnp.int32) for x in (value, index, count)))


def _choose(condition: jax.Array, a: Cut, b: Cut) -> Cut:
  return Cut(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def _between(low: Cut, high: Cut, part: jax.Array, size: int) -> Cut:
  """A cut strictly between two, ``part`` of the way up, by values and then by indices."""
  by_value = high.value - low.value > 1
  # The lower cut takes in more of the equal keys; none of them are above a higher value.
  first = jnp.where(high.value == low.value, high.index, 0)
  start, stop = jnp.where(by_value, low.value, low.index), jnp.where(by_value, high.value, first)
  distance = (stop - start).astype(jnp.float32)
  step = (part * distance).astype(jnp.int32)
  point = jnp.where(
    by_value,
    jnp.clip(start + step, start + 1, stop - 1),
    jnp.clip(start + step, stop + 1, start - 1),
  )
  return _cut(jnp.where(by_value, point, low.value), jnp.where(by_value, jnp.int32(size), point), 0)


def _part(low: Cut, high: Cut, count: jax.Array) -> jax.Array:
  """How far up from the lower cut a cut with so many keys above it lies, if they are spread evenly."""
  return (low.count - count).astype(jnp.float32) / (low.count - high.count).astype(jnp.float32)


def exact_cut(keys: jax.Array, count: jax.Array | int) -> Cut:
  """The cut with exactly so many keys above it, by counting again and again.

  Args:
    keys: shape (d,), int32, from -1 to ``LARGEST_KEY``; small enough to be read many times.
    count: how many keys are to be above, from 0 to d.

  Returns:
    The ``Cut``.
  """
  (size,) = keys.shape
  positions = lax.iota(jnp.int32, size)
  count = jnp.asarray(count, jnp.int32)

  def probe(state):
    turn, low, high, _ = state
    # Keys are nearly even between close cuts; halving guards against those that are not.
    part = jnp.where(turn % 3 == 2, jnp.float32(0.5), _part(low, high, count))
    cut = _between(low, high, part, size)
    cut = cut._replace(count=jnp.sum(_above(keys, positions, cut), dtype=jnp.int32))
    return (
      turn + 1,
      _choose(cut.count >= count, cut, low),
      _choose(cut.count <= count, cut, high),
      cut,
    )

  everything, nothing = _cut(jnp.min(keys), size, size), _cut(jnp.max(keys) + 1, size, 0)
  low = _choose(count == 0, nothing, everything)
  start = (jnp.int32(0), low, nothing, low)
  start = jax.tree.map(lambda x: _axis.varying_like(x, keys), start)
  return lax.while_loop(lambda state: state[-1].count != count, probe, start)[-1]


def _pack(keys: jax.Array, low: Cut, high: Cut) -> jax.Array:
  """Words of two bits an entry: 2 above the higher cut, 1 between the cuts, 0 below the lower one."""
  (size,) = keys.shape
  whole = size // _PER_WORD * _PER_WORD

  def words(keys, start):
    positions = start + lax.iota(jnp.int32, keys.size)
    code = _above(keys, positions, low).astype(jnp.uint32)
    code += _above(keys, positions, high).astype(jnp.uint32)
    code = code.reshape(-1, min(keys.size, _PER_WORD))
    shifts = 2 * lax.iota(jnp.uint32, code.shape[1])
    return jnp.sum(code << shifts[None], axis=1, dtype=jnp.uint32)

  parts = [words(keys[:whole], 0)] if whole else []
  if whole < size:
    parts.append(words(keys[whole:], whole))
  missing = -sum(part.size for part in parts) % GROUP
  if missing:
    parts.append(jnp.zeros(missing, jnp.uint32))
  return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _pack_size(size: int) -> int:
  return -(-size // (_PER_WORD * GROUP)) * GROUP


def _sample(vector: jax.Array, count: int) -> jax.Array:
  """One entry out of each of ``count`` equal stretches, at a place that a hash of its number names."""
  stretch = vector.size // count
  number = lax.iota(jnp.uint32, count)
  mixed = number * np.uint32(0x9E37_79B1)
  mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x85EB_CA77)
  offset = (mixed ^ (mixed >> np.uint32(13))) % np.uint32(stretch)
  positions = (number * np.uint32(stretch) + offset).astype(jnp.int32)
  return vector.at[positions].get(mode="promise_in_bounds", unique_indices=True)


def largest(
  vector: jax.Array, count: int, view: Callable[[jax.Array], jax.Array] = lambda x: x
) -> Positions:
  """The positions of the largest keys, the lowest positions of equal ones.

  Args:
    vector: shape (d,).
    count: r, how many, from 1 to d.
    view: from entries of the vector to their keys, int32 from 0 to ``LARGEST_KEY``. It is applied wherever keys
      are read, so that they are never stored.

  Returns:
    The set of exactly r positions.
  """
  (size,) = vector.shape
  if size <= _SMALL:
    keys = view(vector)
    cut = exact_cut(keys, count)
    return Positions(_pack(keys, cut, _cut(LARGEST_KEY + 1, 0, 0)), _WIDTH)

  density = count / size
  error = _SIGMAS * math.sqrt(_SAMPLE * density * (1 - density)) + 2
  capacity = min(size, math.ceil(3 * error * size / _SAMPLE))
  words, low, high = _three_kinds(vector, view, count, error, capacity)

  # Those between the cuts, of which the largest are still to be taken.
  doubtful = Positions(words & ~(words >> np.uint32(1)) & _EVEN_BITS, _WIDTH)
  ranks = lax.iota(jnp.int32, capacity)
  positions = doubtful.locate(ranks)
  there = ranks < low.count - high.count
  # A key of -1 is below all others, so that what is not there is never above the cut.
  their_keys = jnp.where(there, view(vector.at[positions].get(mode="promise_in_bounds")), -1)
  cut = exact_cut(their_keys, count - high.count)
  lost = there & ~_above(their_keys, ranks, cut)
  bits = np.uint32(1) << (2 * (positions % _PER_WORD)).astype(jnp.uint32)
  words = words.at[jnp.where(lost, positions // _PER_WORD, words.size)].add(
    jnp.uint32(0) - bits, mode="drop"
  )
  return Positions(words, _WIDTH)


def _three_kinds(
  vector: jax.Array,
  view: Callable[[jax.Array], jax.Array],
  count: int,
  error: float,
  capacity: int,
) -> tuple[jax.Array, Cut, Cut]:
  """The words of two cuts around the wanted one with at most ``capacity`` keys between them."""
  (size,) = vector.shape
  everything, nothing = _cut(0, size, size), _cut(LARGEST_KEY + 1, 0, 0)
  sample = view(_sample(vector, _SAMPLE))
  expected = count * _SAMPLE / size
  lower, higher = math.ceil(expected + error), math.floor(expected - error)
  guesses = jax.vmap(lambda x: exact_cut(sample, x).value)(
    jnp.array([min(lower, _SAMPLE), max(higher, 0)], jnp.int32)
  )
  low_guess = _cut(guesses[0], size, 0) if lower < _SAMPLE else everything
  high_guess = _cut(guesses[1], size, 0) if higher > 0 else nothing

  def read(state):
    turn, low, high, _, _ = state
    halving = turn % 3 == 2
    slack = jnp.int32(capacity // 3)
    low_part = jnp.where(halving, jnp.float32(1 / 3), _part(low, high, count + slack))
    high_part = jnp.where(halving, jnp.float32(2 / 3), _part(low, high, count - slack))
    lower, higher = _between(low, high, low_part, size), _between(low, high, high_part, size)
    # Zero is the one value that very many entries share.
    lower = _choose((low.value == 0) & (high.value > 1), _cut(1, size, 0), lower)
    settled = low.count - high.count <= capacity
    lower, higher = _choose(settled, low, lower), _choose(settled, high, higher)
    lower, higher = _choose(turn == 0, low_guess, lower), _choose(turn == 0, high_guess, higher)

    # Keys that don't depend on the turn would be moved out of the loop, and stored.
    entries, _ = lax.optimization_barrier((vector, turn))
    words = _pack(view(entries), lower, higher)
    twos = lax.population_count((words >> np.uint32(1)) & _EVEN_BITS).astype(jnp.int32)
    marks = lax.population_count(words).astype(jnp.int32)
    lower = lower._replace(count=jnp.sum(marks, dtype=jnp.int32))
    higher = higher._replace(count=jnp.sum(twos, dtype=jnp.int32))
    for cut in (lower, higher):
      low = _choose((cut.count >= count) & (cut.count <= low.count), cut, low)
    for cut in (higher, lower):
      high = _choose((cut.count <= count) & (cut.count >= high.count), cut, high)
    # Settled are the cuts that the words are of, or the next turn makes them so.
    wanted = (lower.count >= count) & (higher.count <= count)
    done = wanted & (lower.count - higher.count <= capacity)
    return turn + 1, low, high, words, done

  words = jnp.zeros(_pack_size(size), jnp.uint32)
  start = (jnp.int32(0), everything, nothing, words, jnp.bool_(False))
  start = jax.tree.map(lambda x: _axis.varying_like(x, vector), start)
  _, low, high, words, _ = lax.while_loop(lambda state: ~state[-1], read, start)
  return words, low, high
