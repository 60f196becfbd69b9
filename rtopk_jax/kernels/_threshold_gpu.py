"""The exact threshold on GPUs: digit by digit, so that no loop asks the host whether it is done."""

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels._threshold import RaggedRows, Threshold, choose

# Keys times thresholds that a GPU compares at once.
_AT_ONCE = 1 << 23


def by_digits(
  keys: jax.Array,
  rows: RaggedRows,
  count: jax.Array,
  everything: Threshold,
  nothing: Threshold,
  slack: jax.Array | int,
) -> Threshold:
  """As ``_threshold.by_guesses``, always exact."""
  del slack
  found = _by_digits(keys, rows, count, everything.value, nothing.value)
  return choose(count == 0, nothing, found)


def _by_digits(
  keys: jax.Array, rows: RaggedRows, count: jax.Array, low: jax.Array, limit: jax.Array
) -> Threshold:
  """As many thresholds at once as a GPU counts in no time: the value digit by digit, then how many keys equal to it.

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
    thresholds = value[None] + offset(number, step[None], rest[None])
    found = rows.total(count_rows(jnp.greater_equal, thresholds))
    part = (found >= count[None]).sum(axis=0, dtype=jnp.int32)
    return value + offset(part), offset(part + 1) - offset(part)

  start = jax.tree.map(lambda x: _axis.varying_like(x, keys), (low, limit - low))
  value, _ = fori_loop(0, _turns(1 << 31, parts), narrow, start, unroll=True)

  more = rows.total(count_rows(jnp.greater, value))
  equal = count_rows(jnp.equal, value)
  ends = jnp.cumsum(equal, axis=-1, dtype=jnp.int32)
  # The last equal key that is above the threshold, counted through all lists; its row; and the same in the row.
  last = rows.before_each(equal) + count - more
  row = (ends[..., None, :] < last[..., None]).sum(axis=-1, dtype=jnp.int32)
  row = jnp.minimum(row, rows.shape[0] - 1)
  last -= jnp.take_along_axis(ends - equal, row, axis=-1)
  passed = jnp.cumsum(keys[row] == value[..., None], axis=-1, dtype=jnp.int32)
  index = rows.WIDTH * row + (passed < last[..., None]).sum(axis=-1, dtype=jnp.int32) + 1
  return Threshold.of(value, index, count)


def _turns(gap: int, parts: int) -> int:
  """How often a gap has to be divided, the larger parts being rounded up, until nothing is in it."""
  turns = 0
  while gap > 1:
    gap, turns = -(-gap // parts), turns + 1
  return turns
