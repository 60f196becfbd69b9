"""The one update of what a worker remembers: momentum and residual of some leaves, after a step.

The equations are those of ``_rule``. An update is entry by entry, but for the entries of which something was sent:
they are set afterwards, in place, so that k entries are touched and not d. A step that is not taken leaves
everything as it was, bit for bit.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rtopk_jax.kernels import _scatter
from rtopk_jax.kernels._scatter import cast
from rtopk_jax.memory._rule import Memory
from rtopk_jax.vector._vector import Place


class Leaves(NamedTuple):
  """A list over the leaves of a gradient each; what there is no memory of is empty."""

  gradient: list[jax.Array]
  momentum: list[jax.Array]
  residual: list[jax.Array]

  def of(self, numbers: Sequence[int]) -> "Leaves":
    """Some of the leaves."""
    return Leaves(*([x[i] for i in numbers] if x else [] for x in self))


class Sent(NamedTuple):
  """What the memory has to know of an exchange.

  Attributes:
    settle: from the leaves of v, their places and whether the step is taken at all, to the leaves of the new
      residual.
    positions: entries of which something was sent, so that they lose their momentum: ascending positions, and
      which of them count.
  """

  settle: Callable[[list[jax.Array], Sequence[Place], jax.Array], list[jax.Array]]
  positions: tuple[tuple[jax.Array, jax.Array | bool], ...]


def after_exchange(
  rule: Memory,
  before: Leaves,
  where: Sequence[Place],
  local: Callable[[jax.Array], jax.Array],
  taken: jax.Array,
  sent: Sent,
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Momentum and residual of leaves of which something was sent.

  Args:
    rule: the equations.
    before: leaves before the step.
    where: their places.
    local: from a leaf of the gradient to g in float32: clipped, weighted.
    taken: whether the step is taken by this worker, a bool scalar.
    sent: what was sent of them.

  Returns:
    The new leaves, in the shapes and dtypes they had; nothing for what there is not.
  """

  def new_leaves(where, lists):
    leaves = Leaves(*lists)
    gradients = [local(x) for x in leaves.gradient]
    momenta = _momenta(rule, gradients, leaves.momentum, taken)
    # In the dtype that they are kept in before anything is put to them: what is put to is materialised.
    kept = _as_before(momenta, leaves.momentum)
    if rule.masks:
      for positions, keep in sent.positions:
        zero = jnp.float32(0)
        kept = _scatter.put(kept, where, positions, zero, keep=taken & keep, are_zero=True)
    if not leaves.residual:
      return kept, []
    # Made of the new momentum, so that each array is updated in place. Where momentum was cleared the residual is
    # set below, so the one will do for the other.
    exact = all(x.dtype == jnp.float32 for x in kept)
    residuals = _residuals(rule, gradients, kept if exact else momenta, leaves.residual, taken)
    return kept, sent.settle(_as_before(residuals, leaves.residual), where, taken)

  momenta, residuals = _scatter.in_folds(where, before, new_leaves)
  return momenta, residuals


def after_mean(
  rule: Memory,
  before: Leaves,
  local: Callable[[jax.Array], jax.Array],
  taken: jax.Array,
) -> list[jax.Array]:
  """Momentum of leaves that were sent as they are; arguments as of ``after_exchange``."""
  gradients = [local(x) for x in before.gradient]
  return _as_before(_momenta(rule, gradients, before.momentum, taken), before.momentum)


def _momenta(
  rule: Memory, gradients: list[jax.Array], old: list[jax.Array], taken: jax.Array
) -> list[jax.Array]:
  """The new u, float32, before entries that were sent lose theirs."""
  found = []
  for gradient, momentum in zip(gradients, old, strict=bool(old)):
    momentum = momentum.astype(jnp.float32)
    found.append(jnp.where(taken, rule.correct(gradient, momentum), momentum))
  return found


def _residuals(
  rule: Memory,
  gradients: list[jax.Array],
  momenta: list[jax.Array],
  old: list[jax.Array],
  taken: jax.Array,
) -> list[jax.Array]:
  """The new v, float32, before anything is taken from it; ``momenta`` are those after the step."""
  found = []
  for i, (gradient, residual) in enumerate(zip(gradients, old, strict=True)):
    residual = residual.astype(jnp.float32)
    direction = rule.direction(gradient, momenta[i] if momenta else None)
    found.append(jnp.where(taken, rule.accumulate(direction, residual), residual))
  return found


def _as_before(new: list[jax.Array], old: list[jax.Array]) -> list[jax.Array]:
  """In the dtypes in which they are kept."""
  return [cast(x, y.dtype) for x, y in zip(new, old, strict=True)]
