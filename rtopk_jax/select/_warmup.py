"""Density warm-up: which density a step uses, as a short list of static stages.

A density fixes the shapes of everything behind it (k entries, k words), so it cannot be a traced
number. A warm-up is therefore a handful of stages, each compiled once as a branch of one program and
chosen by the step count.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rtopk_jax import _checks, _modes


@dataclasses.dataclass(frozen=True)
class Stages:
  """Densities that follow one another, a fixed number of steps each; the last one stays.

  Args:
    densities: the density of each stage, every one in (0, 1].
    steps_per_stage: how many steps every stage but the last one lasts.

  Raises:
    ValueError: for an empty list, a density outside (0, 1] or a stage without steps.

  Examples:
    >>> import rtopk_jax
    >>> stages = rtopk_jax.Stages((0.25, 0.01), steps_per_stage=100)
    >>> int(stages.stage(99)), int(stages.stage(100)), int(stages.stage(10_000))
    (0, 1, 1)
  """

  densities: tuple[float, ...]
  steps_per_stage: int

  def __post_init__(self):
    object.__setattr__(self, "densities", tuple(self.densities))
    if not self.densities:
      raise ValueError("densities is empty; give at least one density in (0, 1].")
    for i, density in enumerate(self.densities):
      _checks.density(f"densities[{i}]", density)
    _checks.at_least("steps_per_stage", self.steps_per_stage, 1, integer=True)

  def stage(self, count: jax.typing.ArrayLike) -> jax.Array:
    """The number of the stage that a step belongs to.

    Args:
      count: how many steps came before, an integer scalar.

    Returns:
      An int32 scalar in [0, len(densities)).
    """
    stage = jnp.asarray(count, jnp.int32) // jnp.int32(self.steps_per_stage)
    return jnp.minimum(stage, jnp.int32(len(self.densities) - 1))


def warmup_density(
  final: float, steps_per_epoch: int, epochs: int = 5, initial: float = 0.25
) -> Stages:
  r"""Density warm-up, falling exponentially from ``initial`` to ``final`` (paper, Section III-A).

  Epoch :math:`i = 0, 1, …` uses

  .. math::
    \rho_i = \max\bigl(\rho,\; \rho_0 (\rho/\rho_0)^{i/(E-1)}\bigr)

  with :math:`\rho` the final density, :math:`\rho_0` the initial one and :math:`E` epochs; from the
  last of them on it is :math:`\rho`. It goes wherever a density goes, costs one compilation in all,
  and every stage sends its own number of bytes.

  Args:
    final: the density after the warm-up, in (0, 1].
    steps_per_epoch: exchanges an epoch.
    epochs: how many epochs the warm-up has, the last one being at ``final`` already; 1 is no warm-up.
    initial: the density of the first epoch, in (0, 1]. Below ``final`` it has no effect.

  Returns:
    The ``Stages``.

  Raises:
    ValueError: for a density outside (0, 1], or fewer than one step or epoch.

  Examples:
    >>> import rtopk_jax
    >>> [round(100 * x, 1) for x in rtopk_jax.warmup_density(0.001, 78).densities]
    [25.0, 6.3, 1.6, 0.4, 0.1]
    >>> rtopk_jax.rtop_k(rtopk_jax.warmup_density(0.001, 78)).at(4).density
    0.001
  """
  _checks.density("final", final)
  _checks.density("initial", initial)
  _checks.at_least("steps_per_epoch", steps_per_epoch, 1, integer=True)
  _checks.at_least("epochs", epochs, 1, integer=True)
  falling = (initial * (final / initial) ** (i / (epochs - 1)) for i in range(epochs - 1))
  return Stages((*(max(final, x) for x in falling), final), steps_per_epoch)


def switch(stages: Stages, count: jax.Array, branch: Callable[[int], Any]) -> Any:
  """``branch(stage)`` for the stage of this step, each stage traced once.

  The predicate is the replicated step count, so that a collective may sit in a branch.
  """
  return choose(stages, stages.stage(count), branch)


def choose(stages: Stages, stage: jax.Array, branch: Callable[[int], Any]) -> Any:
  """``branch(stage)`` for a stage that is the same on all workers; in a dry run for the stage of its step."""
  last = len(stages.densities) - 1
  measurement = _modes.measurement()
  if measurement is not None:
    step = measurement.step
    return branch(last if step is None else min(step // stages.steps_per_stage, last))
  if last == 0:
    return branch(0)
  return jax.lax.switch(stage, [lambda i=i: branch(i) for i in range(last + 1)])
