"""Short lists of keys, one a group, side by side in rows, and the exact cut in each of them at once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels._gpu_loops import on_gpus
from rtopk_jax.vector._vector import MAX_SIZE

# What chance may add to so many keys or take away does not make them uneven.
_FEW = 4
# Keys times cuts that a GPU compares at once.
_AT_ONCE = 1 << 23


class Rows:
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


class EachRow:
  """Every row a list of its own, of any width.

  Args:
    shape: of the rows.
  """

  def __init__(self, shape: tuple[int, ...]):
    self.shape, self.WIDTH = shape, shape[-1]

  def spread(self, values: jax.Array) -> jax.Array:
    """As ``Rows.spread``."""
    return values[:, None]

  def total(self, rows: jax.Array) -> jax.Array:
    """As ``Rows.total``."""
    return rows

  def position(self) -> jax.Array:
    """Where in its list each key stands."""
    return lax.iota(jnp.int32, self.WIDTH)[None]


class Cut(NamedTuple):
  """A place in the order of the keys of each list or group, and how many are above it.

  Indices are above 0: no key lies between (value, 0) and (value + 1, beyond all indices), and of two names
  for one place ``between`` knows the second.
  """

  value: jax.Array
  index: jax.Array
  count: jax.Array


def cut(value, index, count) -> Cut:
  return Cut(*(jnp.asarray(x, jnp.int32) for x in (value, index, count)))


def above(keys: jax.Array, rows: Rows | EachRow, c: Cut) -> jax.Array:
  """Which keys are above the cut of their list."""
  value, index = rows.spread(c.value), rows.spread(c.index)
  return (keys > value) | ((keys == value) & (rows.position() < index))


def choose(condition: jax.Array, a: Cut, b: Cut) -> Cut:
  return Cut(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def part(low: Cut, high: Cut, count: jax.Array) -> jax.Array:
  """How far up from the lower cut a cut with so many keys above it lies, if they are spread evenly."""
  distance = jnp.maximum(low.count - high.count, 1).astype(jnp.float32)
  return (low.count - count).astype(jnp.float32) / distance


def log_part(low: Cut, high: Cut, count: jax.Array) -> jax.Array:
  """The same, if their numbers fall off evenly in the logarithm, as they do among the largest."""
  log = lambda number: jnp.log(jnp.maximum(number, 0).astype(jnp.float32) + 0.5)
  top = log(low.count)
  return (top - log(count)) / jnp.maximum(top - log(high.count), 1e-6)


def between(low: Cut, high: Cut, share: jax.Array, size: int, unit: int) -> Cut:
  """A cut strictly between two, ``share`` of the way up, by values and then by indices.

  Args:
    low: the lower cut.
    high: the higher cut.
    share: from 0 to 1.
    size: beyond all indices.
    unit: indices are multiples of it.

  Returns:
    The cut, not counted.
  """
  by_value = high.value - low.value > 1
  # The lower cut takes in more of the equal keys; none of them are above a higher value.
  first = jnp.where(high.value == low.value, high.index, 0)
  start = jnp.where(by_value, low.value, low.index)
  stop = jnp.where(by_value, high.value, first)
  step = (share * (stop - start).astype(jnp.float32)).astype(jnp.int32)
  value = jnp.clip(start + step, start + 1, stop - 1)
  index = jnp.clip((start + step) // unit * unit, stop + unit, start - unit)
  return Cut(
    jnp.where(by_value, value, low.value),
    jnp.where(by_value, jnp.int32(size), index),
    jnp.zeros_like(low.count),
  )


def exact_cut(
  keys: jax.Array,
  rows: Rows | EachRow,
  count: jax.Array,
  there: jax.Array,
  low: jax.Array,
  high: jax.Array,
  slack: jax.Array | int = 0,
) -> Cut:
  """The cut of each list with exactly so many keys above it, by counting again and again.

  Args:
    keys: of the shape of ``rows``, int32; -1 for what is not there.
    rows: how they lie.
    count: how many keys of each list are to be above, shape (lists,), or (cuts, lists) for several at once.
    there: how many there are, shape (lists,).
    low: no key of the list is below, shape (lists,).
    high: nor above; from 0 to 2³¹ − 2 more than ``low``.
    slack: how many more or fewer will do, of the shape of ``count`` or one for all.

  Returns:
    The ``Cut``.
  """
  size = _beyond(rows)
  there, low, high = (jnp.broadcast_to(x, count.shape) for x in (there, low, high))
  everything = Cut(low, jnp.full_like(low, size), there)
  # A value higher than any key: below it, cuts among keys that equal the highest can be reached.
  nothing = Cut(high + 1, jnp.full_like(high, size), jnp.zeros_like(high))
  everything, nothing = jax.tree.map(lambda x: _axis.varying_like(x, keys), (everything, nothing))
  one_by_one = lambda: _by_guesses(keys, rows, count, everything, nothing, slack)
  if isinstance(rows, EachRow):
    return one_by_one()
  digits = lambda: choose(count == 0, nothing, _by_digits(keys, rows, count, low, high))
  return on_gpus(gpu=digits, default=one_by_one)


def _beyond(rows: Rows | EachRow) -> int:
  """Beyond all places that are in use."""
  return min(rows.shape[0] * rows.WIDTH, MAX_SIZE)


def _by_guesses(
  keys: jax.Array,
  rows: Rows | EachRow,
  count: jax.Array,
  everything: Cut,
  nothing: Cut,
  slack: jax.Array | int,
) -> Cut:
  """One cut after another between those that are known, as far up as what they count makes likely."""

  def probe(state):
    turn, even, lower, higher, best = state
    # Between close cuts keys are nearly even; as long as they are not, halving gets there sooner. Every
    # fourth turn halves all the same, since a few keys apart from all others look even for long.
    guess = even & (turn % 4 != 3)
    share = jnp.where(guess, part(lower, higher, count), jnp.float32(0.5))
    new = between(lower, higher, share, _beyond(rows), 1)
    new = new._replace(count=_count_above(keys, rows, new))
    best = choose(near(best), best, new)
    gap = lower.count - higher.count
    below = (share * gap.astype(jnp.float32)).astype(jnp.int32)
    miss = jnp.abs(lower.count - new.count - below)
    even = 2 * miss <= jnp.minimum(below, gap - below) + _FEW
    lower = choose(new.count >= count, new, lower)
    return turn + 1, even, lower, choose(new.count <= count, new, higher), best

  near = lambda c: jnp.abs(c.count - count) <= slack
  best = choose(count == 0, nothing, everything)
  start = (jnp.int32(0), jnp.ones_like(count, jnp.bool_), everything, nothing, best)
  start = jax.tree.map(lambda x: _axis.varying_like(x, keys), start)
  return lax.while_loop(lambda state: ~jnp.all(near(state[-1])), probe, start)[-1]


def _by_digits(
  keys: jax.Array, rows: Rows, count: jax.Array, low: jax.Array, high: jax.Array
) -> Cut:
  """As many cuts at once as a GPU counts in no time: the value digit by digit, then how many keys equal to it.

  The turns are so many that the gap closes whatever the keys are, and nobody has to ask whether it has.
  """
  size = rows.shape[0] * rows.WIDTH
  # Parts of a gap: the fewer, the more keys.
  parts = next(1 << bits for bits in (6, 5, 4, 3, 2) if size << bits <= _AT_ONCE or bits == 2)
  number = lax.iota(jnp.int32, parts - 1).reshape(-1, *(1,) * count.ndim) + 1

  def count_rows(compare, values):
    """How many keys of each row compare with values of its list: shape (…, rows)."""
    beside = rows.spread(values)
    found = compare(keys.reshape((1,) * (beside.ndim - 2) + keys.shape), beside)
    return found.sum(axis=-1, dtype=jnp.int32)

  def narrow(_, state):
    # As many keys as are wanted are not below the value, but fewer are not below the value and the gap.
    value, gap = state
    step, rest = gap // parts, gap % parts
    offset = lambda part, step=step, rest=rest: step * part + jnp.minimum(part, rest)
    cuts = value[None] + offset(number, step[None], rest[None])
    found = rows.total(count_rows(jnp.greater_equal, cuts))
    part = (found >= count[None]).sum(axis=0, dtype=jnp.int32)
    return value + offset(part), offset(part + 1) - offset(part)

  start = jax.tree.map(lambda x: _axis.varying_like(x, keys), (low, high + 1 - low))
  value, _ = fori_loop(0, _turns(1 << 31, parts), narrow, start, unroll=True)

  more = rows.total(count_rows(jnp.greater, value))
  equal = count_rows(jnp.equal, value)
  ends = jnp.cumsum(equal, axis=-1, dtype=jnp.int32)
  # The last equal key that is above the cut, counted through all lists; its row; and the same in the row.
  last = rows.before_each(equal) + count - more
  row = (ends[..., None, :] < last[..., None]).sum(axis=-1, dtype=jnp.int32)
  row = jnp.minimum(row, rows.shape[0] - 1)
  last -= jnp.take_along_axis(ends - equal, row, axis=-1)
  passed = jnp.cumsum(keys[row] == value[..., None], axis=-1, dtype=jnp.int32)
  index = rows.WIDTH * row + (passed < last[..., None]).sum(axis=-1, dtype=jnp.int32) + 1
  return Cut(value, index, count)


def _turns(gap: int, parts: int) -> int:
  """How often a gap has to be divided, the larger parts being rounded up, until nothing is in it."""
  turns = 0
  while gap > 1:
    gap, turns = -(-gap // parts), turns + 1
  return turns


def _count_above(keys: jax.Array, rows: Rows | EachRow, c: Cut) -> jax.Array:
  """How many keys of each list are above its cuts: of the shape of the cuts.

  All cuts are counted in one read, higher keys and equal ones apart, as one reduction of several numbers.
  That is what compilers for CPUs make vector instructions of, and many times as fast as the sum of a condition.
  """
  lists = c.value.shape[-1]
  terms = []
  for value, index in zip(c.value.reshape(-1, lists), c.index.reshape(-1, lists), strict=True):
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
  return jnp.stack(counts).reshape(c.value.shape)
