"""Running totals, and how many of some ascending numbers are at most another."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels._dispatch import here

# Counts of a row, which are added up together: the fewer, the less of a triangle there is.
_ROWS = (16, 32, 64)
_LONG_ROW = 512
# Sums below this are exact in float32.
_EXACT = 1 << 24
# Steps of a search that take as long as an entry of a table, and how many ranks are searched for in no time.
_STEPS_OF_TABLE, _FEW_RANKS = 2, 1 << 14


def running_total(counts: jax.Array, most: int) -> jax.Array:
  """The sum up to each count.

  Args:
    counts: int32, shape (m,).
    most: no count is above it.

  Returns:
    int32, shape (m,).
  """
  if counts.size <= _ROWS[-1]:
    return _by_comparing(counts)
  return here().running_total(counts, most)


def by_products(counts: jax.Array, most: int) -> jax.Array:
  """Rows of counts times a triangle of ones, twice: two calls of a matrix product instead of log₂ m kernels."""
  row = next((row for row in _ROWS if row**3 >= counts.size), _ROWS[-1])
  if row**2 * most >= _EXACT:
    return lax.associative_scan(jnp.add, counts)
  within = _times_triangle(counts, row)
  totals = within[:, -1]
  of_rows = _times_triangle(totals, row)
  ends = _by_comparing(of_rows[:, -1])
  before = (of_rows + (ends - of_rows[:, -1])[:, None]).reshape(-1)[: totals.size] - totals
  return (within + before[:, None]).reshape(-1)[: counts.size]


def _times_triangle(counts: jax.Array, row: int) -> jax.Array:
  """Running totals within rows, shape (rows, row)."""
  rows = jnp.pad(counts, (0, -counts.size % row)).reshape(-1, row).astype(jnp.float32)
  triangle = np.triu(np.ones((row, row), np.float32))
  return jnp.dot(rows, triangle, precision=lax.Precision.HIGHEST).astype(jnp.int32)


def _by_comparing(counts: jax.Array) -> jax.Array:
  """The sums of a few counts, each by a row of all."""
  number = lax.iota(jnp.int32, counts.size)
  up_to = number[None] <= number[:, None]
  return jnp.where(up_to, counts[None], np.int32(0)).sum(axis=1, dtype=jnp.int32)


def in_two_steps(counts: jax.Array, most: int) -> jax.Array:
  """Within rows, then over rows: work on all of it grows with the logarithm of its length."""
  del most
  rows = jnp.pad(counts, (0, -counts.size % _LONG_ROW)).reshape(-1, _LONG_ROW)
  within = jnp.cumsum(rows, axis=1)
  totals = within[:, -1]
  before = jnp.cumsum(totals) - totals
  return (within + before[:, None]).reshape(-1)[: counts.size]


def compact(members: jax.Array, count: int) -> jax.Array:
  """Where a list of bools is true, which it is so many times: int32, ascending, shape (count,)."""
  ends = running_total(members.astype(jnp.int32), 1)
  place = jnp.where(members, ends - 1, np.int32(count))
  numbers = lax.iota(jnp.int32, members.size)
  empty = _axis.varying_like(jnp.zeros(count, jnp.int32), members)
  return empty.at[place].set(numbers, mode="drop", unique_indices=True)


def count_at_most(ends: jax.Array, ranks: jax.Array, most: int | None = None) -> jax.Array:
  """How many of some ascending numbers are at most each rank.

  Args:
    ends: the numbers, int32, shape (m,).
    ranks: int32, of any shape.
    most: what all ranks are below, if it is known: then one table may serve many ranks.

  Returns:
    int32, of the shape of the ranks.
  """
  if most is None or ranks.size < _FEW_RANKS or not here().prefers_tables:
    return _by_halving(ends, ranks)
  steps = ranks.size * ends.size.bit_length()
  is_less_work = _STEPS_OF_TABLE * (ends.size + most) < steps
  return _by_table(ends, ranks, most) if is_less_work else _by_halving(ends, ranks)


def _by_table(ends: jax.Array, ranks: jax.Array, most: int) -> jax.Array:
  """An entry for every rank that there may be."""
  marks = _axis.varying_like(jnp.zeros(most, jnp.int32), ends)
  at_most = running_total(marks.at[ends].add(1, mode="drop"), ends.size)
  return at_most.at[ranks].get(mode="promise_in_bounds")


def _by_halving(ends: jax.Array, ranks: jax.Array) -> jax.Array:
  step = 1 << (ends.size.bit_length() - 1)

  def descend(turn, found):
    reached = found + (np.int32(step) >> turn)
    at = ends.at[jnp.minimum(reached, ends.size) - 1].get(mode="promise_in_bounds")
    return jnp.where((reached <= ends.size) & (at <= ranks), reached, found)

  start = _axis.varying_like(jnp.zeros_like(ranks), ends)
  return fori_loop(0, step.bit_length(), descend, start, unroll=here().unrolls_search)


def count_below(positions: jax.Array, firsts: jax.Array) -> jax.Array:
  """How many of some ascending positions are below each of a few numbers: int32, shape (len(firsts),)."""
  return here().count_below(jnp.asarray(positions), firsts)


def count_below_by_comparing(positions: jax.Array, firsts: jax.Array) -> jax.Array:
  """All with all: sooner done on a GPU than a few turns of a loop are started."""
  return (positions[None] < firsts[:, None]).sum(axis=1, dtype=jnp.int32)


def count_below_by_halving(positions: jax.Array, firsts: jax.Array) -> jax.Array:
  """By as many turns of a loop as a position has bits."""

  # Not jnp.searchsorted, which fails in a shard_map that leaves an axis of the mesh to the compiler.
  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    is_below = positions[jnp.minimum(middle, positions.size - 1)] < firsts
    is_open = low < high
    return jnp.where(is_open & is_below, middle + 1, low), jnp.where(is_below, high, middle)

  like = lambda x: _axis.varying_like(_axis.varying_like(x, positions), firsts)
  none = jnp.zeros(firsts.shape, jnp.int32)
  bounds = like(none), like(jnp.full_like(none, positions.size))
  return fori_loop(0, positions.size.bit_length(), halve, bounds)[0]
