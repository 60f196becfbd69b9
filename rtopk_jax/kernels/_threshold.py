"""The threshold above which exactly so many keys of a list are, for many lists at once.

Keys are int32 from 0 on. Ties go to the lowest position, so that a threshold is a pair (value, index), and
what is above it is

    key > value,  or  key == value and position < index.

Lists lie side by side as rows of one array (``RaggedRows``).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels._dispatch import here
from rtopk_jax.vector._vector import MAX_SIZE

# What chance may add to so many keys or take away does not make them uneven.
_FEW = 4


class RaggedRows:
  """Lists of different lengths as rows of one array, each list a whole number of rows.

  Args:
    sizes: how long the lists may become.
  """

  WIDTH = 512

  def __init__(self, sizes: Sequence[int]):
    rows = [-(-size // self.WIDTH) for size in sizes]
    self.capacities = tuple(self.WIDTH * count for count in rows)
    self.shape = (sum(rows), self.WIDTH)
    self._list_of = np.repeat(np.arange(len(rows)), rows)
    self._begin_of = np.repeat(np.cumsum(self.capacities) - self.capacities, rows).astype(np.int32)

  def spread(self, values: jax.Array) -> jax.Array:
    """Values with lists as their last axis, to stand beside the rows: shape (…, rows, 1), or one row for all."""
    if values.shape[-1] == 1:
      return values[..., None]
    return values[..., self._list_of][..., None]

  def total(self, rows: jax.Array) -> jax.Array:
    """Sums over the rows of each list, of numbers with rows as their last axis."""
    lists = len(self.capacities)
    if lists == 1:
      return rows.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    zeros = _axis.varying_like(jnp.zeros((*rows.shape[:-1], lists), jnp.int32), rows)
    return zeros.at[..., self._list_of].add(rows, mode="promise_in_bounds")

  def before_each(self, rows: jax.Array) -> jax.Array:
    """Sums over the rows of all lists before each one, likewise."""
    ends = jnp.cumsum(rows, axis=-1, dtype=jnp.int32)
    first = np.cumsum(self.capacities)[:-1] // self.WIDTH - 1
    return jnp.pad(ends[..., first], [(0, 0)] * (rows.ndim - 1) + [(1, 0)])

  def number(self) -> jax.Array:
    """Where in its list each key stands."""
    return self.position() - self._begin_of[:, None]

  def position(self) -> jax.Array:
    """Where among all keys each key stands."""
    return lax.iota(jnp.int32, self.shape[0] * self.WIDTH).reshape(self.shape)

  def padding(self, positions: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """How many places before some positions belong to no key, when lists have so many."""
    if len(sizes) == 1:
      return jnp.zeros_like(positions)
    missing = np.array(self.capacities) - np.array(sizes)
    before = (np.cumsum(missing) - missing).astype(np.int32)
    return jnp.asarray(before[self._list_of])[positions // self.WIDTH]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Threshold:
  """A place in the order of the keys of each list or group, and how many are above it.

  Indices are above 0: no key lies between (value, 0) and (value + 1, beyond all indices), and of two names
  for one place ``between`` knows the second.

  Attributes:
    packed: value, index and count, int32, shape (3, …). One array, since a compiler makes a kernel of each.
  """

  packed: jax.Array

  @classmethod
  def of(cls, value: jax.Array, index: jax.Array, count: jax.Array) -> "Threshold":
    """A threshold out of its parts, one shape for all."""
    return cls(jnp.stack([value, index, count]))

  @property
  def value(self) -> jax.Array:
    """The key at the threshold."""
    return self.packed[0]

  @property
  def index(self) -> jax.Array:
    """The position below which a key of this value is above the threshold."""
    return self.packed[1]

  @property
  def count(self) -> jax.Array:
    """How many keys are above."""
    return self.packed[2]

  def __getitem__(self, groups) -> "Threshold":
    """The thresholds of some groups."""
    return Threshold(self.packed[:, groups])

  def with_value(self, value: jax.Array) -> "Threshold":
    """The same index and count at another key."""
    return Threshold.of(value, self.index, self.count)

  def with_count(self, count: jax.Array) -> "Threshold":
    """The same place, of which the count is known."""
    return Threshold.of(self.value, self.index, count)


def above(keys: jax.Array, rows: RaggedRows, threshold: Threshold) -> jax.Array:
  """Which keys are above the threshold of their list."""
  value, index = rows.spread(threshold.value), rows.spread(threshold.index)
  return (keys > value) | ((keys == value) & (rows.position() < index))


def choose(condition: jax.Array, a: Threshold, b: Threshold) -> Threshold:
  """The one where a condition holds, else the other."""
  return Threshold(jnp.where(condition[None], a.packed, b.packed))


def fraction(low: Threshold, high: Threshold, count: jax.Array) -> jax.Array:
  """How far up from the lower one a threshold with so many keys above lies, if keys are spread evenly."""
  distance = jnp.maximum(low.count - high.count, 1).astype(jnp.float32)
  return (low.count - count).astype(jnp.float32) / distance


def log_fraction(low: Threshold, high: Threshold, count: jax.Array) -> jax.Array:
  """The same, if their numbers fall off evenly in the logarithm, as they do among the largest."""
  log = lambda number: jnp.log(jnp.maximum(number, 0).astype(jnp.float32) + 0.5)
  top = log(low.count)
  return (top - log(count)) / jnp.maximum(top - log(high.count), 1e-6)


def between(low: Threshold, high: Threshold, share: jax.Array, size: int, unit: int) -> Threshold:
  """A threshold strictly between two, ``share`` of the way up, by values and then by indices.

  Args:
    low: the lower one.
    high: the higher one.
    share: from 0 to 1.
    size: a number above all indices.
    unit: indices are multiples of it.

  Returns:
    The threshold, not counted.
  """
  by_value = high.value - low.value > 1
  # The lower threshold takes in more of the equal keys; none of them are above a higher value.
  first = jnp.where(high.value == low.value, high.index, 0)
  start = jnp.where(by_value, low.value, low.index)
  stop = jnp.where(by_value, high.value, first)
  step = (share * (stop - start).astype(jnp.float32)).astype(jnp.int32)
  value = jnp.clip(start + step, start + 1, stop - 1)
  index = jnp.clip((start + step) // unit * unit, stop + unit, start - unit)
  return Threshold.of(
    jnp.where(by_value, value, low.value),
    jnp.where(by_value, jnp.int32(size), index),
    jnp.zeros_like(low.count),
  )


def exact_threshold(
  keys: jax.Array,
  rows: RaggedRows,
  count: jax.Array,
  there: jax.Array,
  low: jax.Array,
  high: jax.Array,
  slack: jax.Array | int = 0,
) -> Threshold:
  """The threshold of each list with exactly so many keys above it, by counting again and again.

  Args:
    keys: of the shape of ``rows``, int32; -1 for what is not there.
    rows: how they lie.
    count: how many keys of each list are to be above, shape (lists,), or (thresholds, lists) for several at once.
    there: how many keys each list has, shape (lists,).
    low: a number that no key of the list is below, shape (lists,).
    high: one that no key is above, likewise; from 0 to 2³¹ − 2 more than ``low``.
    slack: how many more or fewer will do, of the shape of ``count`` or one for all.

  Returns:
    The ``Threshold``.
  """
  there, low, high = (jnp.broadcast_to(x, count.shape) for x in (there, low, high))
  # A value higher than any key: below it, places among keys that equal the highest can be reached.
  nothing = Threshold.of(high + 1, jnp.full_like(high, position_limit(rows)), jnp.zeros_like(high))
  everything = Threshold.of(low, jnp.full_like(low, position_limit(rows)), there)
  return here().exact_threshold(keys, rows, count, everything, nothing, slack)


def position_limit(rows: RaggedRows) -> int:
  """A number above all positions that are in use."""
  return min(rows.shape[0] * rows.WIDTH, MAX_SIZE)


def by_guesses(
  keys: jax.Array,
  rows: RaggedRows,
  count: jax.Array,
  everything: Threshold,
  nothing: Threshold,
  slack: jax.Array | int,
) -> Threshold:
  """One threshold after another between those that are known, as far up as what they count makes likely."""

  def probe(state):
    turn, even, known = state
    lower, higher, best = (Threshold(x) for x in known)
    # Between close thresholds keys are nearly even; as long as they are not, halving gets there sooner. Every
    # fourth turn halves all the same, since a few keys apart from all others look even for long.
    guess = even & (turn % 4 != 3)
    share = jnp.where(guess, fraction(lower, higher, count), jnp.float32(0.5))
    new = between(lower, higher, share, position_limit(rows), 1)
    new = new.with_count(_count_above(keys, rows, new))
    gap = lower.count - higher.count
    below = (share * gap.astype(jnp.float32)).astype(jnp.int32)
    miss = jnp.abs(lower.count - new.count - below)
    even = 2 * miss <= jnp.minimum(below, gap - below) + _FEW
    best = choose(near(best), best, new)
    lower = choose(new.count >= count, new, lower)
    higher = choose(new.count <= count, new, higher)
    return turn + 1, even, jnp.stack([lower.packed, higher.packed, best.packed])

  near = lambda threshold: jnp.abs(threshold.count - count) <= slack
  best = choose(count == 0, nothing, everything)
  known = jnp.stack([everything.packed, nothing.packed, best.packed])
  start = (jnp.int32(0), jnp.ones_like(count, jnp.bool_), known)
  start = jax.tree.map(lambda x: _axis.varying_like(x, keys), start)
  is_open = lambda state: ~jnp.all(near(Threshold(state[-1][2])))
  return Threshold(lax.while_loop(is_open, probe, start)[-1][2])


def _count_above(keys: jax.Array, rows: RaggedRows, threshold: Threshold) -> jax.Array:
  """How many keys of each list are above its thresholds: of the shape of the thresholds.

  All are counted in one read, higher keys and equal ones apart, as one reduction of several numbers.
  That is what compilers for CPUs make vector instructions of, and many times as fast as the sum of a condition.
  """
  lists = threshold.value.shape[-1]
  values, indices = (x.reshape(-1, lists) for x in (threshold.value, threshold.index))
  terms = []
  for value, index in zip(values, indices, strict=True):
    value, index = rows.spread(value), rows.spread(index)
    terms += [keys > value, (keys == value) & (rows.position() < index)]
  zero = _axis.varying_like(jnp.int32(0), keys)
  sums = lax.reduce(
    tuple(term.astype(jnp.int32) for term in terms),
    (zero,) * len(terms),
    lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
    (1,),
  )
  counts = [rows.total(more + equal) for more, equal in zip(sums[::2], sums[1::2], strict=True)]
  return jnp.stack(counts).reshape(threshold.value.shape)
