"""What all workers sent, added up to one update.

Sums are made in flat arrays, of which only the entries that somebody sent are touched. How many
entries differ from zero in the end comes out of the same touch: an entry counts when it leaves zero and is
taken back when it returns there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.exchange._message import Contributions
from rtopk_jax.kernels._accumulate import Sums
from rtopk_jax.kernels._dispatch import here
from rtopk_jax.kernels._offsets import offsets
from rtopk_jax.kernels._zeros import zeros_after
from rtopk_jax.vector._vector import Place


def reduce(
  contributions: Contributions,
  where: Sequence[Place],
  keep: jax.Array,
  weights: jax.Array | None,
  average: str,
  made: Sequence[jax.Array] = (),
) -> tuple[list[jax.Array], jax.Array]:
  """The mean of all contributions, leaf by leaf.

  Args:
    contributions: what is added.
    where: the places of the leaves.
    keep: whether anything is added at all, a bool scalar.
    weights: a factor for each contribution, 0 for a worker that is absent; None for 1.
    average: "workers" divides by their number, "senders" each entry by the number of workers that sent
      it, "sum" does not divide.
    made: an array a leaf, of its shape, after which its sums may be begun: then the gradient is not needed any
      more. Empty where there are none.

  Returns:
    Leaves in float32, and how many of their entries are not zero.
  """
  by_senders = average == "senders"
  short = np.min_scalar_type(contributions.count)
  count_dtype = short if here().counts_are_short else jnp.int32
  present = jnp.float32(contributions.count) if weights is None else weights.sum()
  divisor = jnp.maximum(present, 1) if average == "workers" else jnp.float32(1)

  def add(worker, state):
    totals, senders = state
    positions, values = contributions.read(worker)
    wanted = keep if weights is None else keep & (weights[worker] > 0)
    totals = sums.add(totals, positions, values / divisor, wanted)
    if by_senders:
      senders = sums.add(senders, positions, jnp.ones(values.shape, count_dtype), wanted)
    return totals, senders

  # Zeros that the compiler does not know for such: of constants it would keep one for all arrays of a size,
  # and copy it for each.
  positions, values = contributions.read(jnp.int32(0))
  sums = here().sums(where, contributions.count * values.size)
  count = len(sums.sizes)
  nothing = jnp.zeros_like(values, shape=(count,)).at[positions[0] + 1 + count].set(1)
  numbers = offsets(range(count))
  zeros = lambda dtype: [
    jnp.broadcast_to(lax.dynamic_index_in_dim(nothing, i).astype(dtype), (size,))
    for i, size in zip(numbers, sums.sizes, strict=True)
  ]
  none = _axis.varying_like(jnp.int32(0), nothing)
  counted = Sums(zeros(count_dtype) if by_senders else [], none)
  if made and here().makes_zeros_late:
    late = [_axis.varying_like(zeros_after(x.reshape(-1)), nothing) for x in made]
    start = (Sums(late, none), counted)
  else:
    start = (Sums(zeros(jnp.float32), none), counted)
  totals, senders = fori_loop(0, contributions.count, add, start)
  leaves = sums.leaves(totals.arrays)
  if by_senders:
    divided = zip(leaves, sums.leaves(senders.arrays), strict=True)
    leaves = [total / jnp.maximum(count, 1).astype(jnp.float32) for total, count in divided]
  return leaves, sums.nonzero(totals)
