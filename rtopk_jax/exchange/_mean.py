"""The plain mean of leaves over workers: what is not compressed.

Small leaves travel together, since every array that is sent takes its time; long ones as they are. Joined, they
would take a compiler and a memory longer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._axis import AxisName
from rtopk_jax.kernels._offsets import offsets, settled

_SMALL = 1 << 16


class Mean(NamedTuple):
  """A mean over workers.

  Attributes:
    leaves: the means, of the shapes of the leaves.
    wrong: how many entries are not finite, int32.
    square: the sum of all squares.
  """

  leaves: list[jax.Array]
  wrong: jax.Array
  square: jax.Array


def _look_over(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """How many entries are not finite, and the sum of all squares, in one read."""
  terms = (~jnp.isfinite(x)).astype(jnp.int32), jnp.square(x)
  zeros = tuple(_axis.varying_like(jnp.zeros((), term.dtype), x) for term in terms)
  add = lambda a, b: (a[0] + b[0], a[1] + b[1])
  wrong, square = lax.reduce(terms, zeros, add, tuple(range(x.ndim)))
  return wrong, square


def total_of(numbers: Sequence[jax.Array]) -> jax.Array:
  """The sum of scalars, worked out once: a chain of sums would be a part of every kernel that reads it."""
  return numbers[0] if len(numbers) == 1 else settled(jnp.stack(numbers).sum())


def mean_dense(
  leaves: Sequence[jax.Array], axis_name: AxisName, present: jax.Array | None, average: str
) -> Mean:
  """The mean of some leaves over the workers that are present, in one collective; their sum for "sum".

  Args:
    leaves: of one worker.
    axis_name: the mapped axis of the workers.
    present: whether this worker counts, a bool scalar, or how many it is the sum of; None: one each.
    average: as of ``sparse_exchange``.
  """
  small = [i for i, x in enumerate(leaves) if x.size < _SMALL]
  small = small if len(small) > 1 else []
  long = [i for i in range(len(leaves)) if i not in set(small)]
  arrays = [leaves[i] for i in long]
  if small:
    arrays.append(jnp.concatenate([leaves[i].reshape(-1) for i in small]))
  if present is None:
    totals, count = _axis.psum(arrays, axis_name), _axis.size(axis_name)
  else:
    own_count = present.astype(jnp.float32)
    # A product would let through what is not finite.
    arrays = [jnp.where(own_count > 0, x, jnp.float32(0)) for x in arrays]
    *totals, present_count = _axis.psum([*arrays, own_count], axis_name)
    count = jnp.maximum(present_count, 1)
  means = totals if average == "sum" else [total / count for total in totals]
  wrong, square = (total_of(numbers) for numbers in zip(*map(_look_over, means), strict=True))
  found = dict(zip(long, means, strict=False))
  begins, begin = [], 0
  for i in small:
    begins.append(begin)
    begin += leaves[i].size
  for i, start in zip(small, offsets(begins), strict=True):
    part = lax.dynamic_slice(means[-1], (start,), (leaves[i].size,))
    found[i] = part.reshape(leaves[i].shape)
  return Mean([found[i] for i in range(len(leaves))], wrong, square)
