"""Learning rates: what each step's is."""

from collections.abc import Callable
from typing import Any

import optax


def _cosine(config: Any, per_epoch: int, total: int) -> optax.Schedule:
  return optax.cosine_decay_schedule(config.learning_rate, total)


def _step(config: Any, per_epoch: int, total: int) -> optax.Schedule:
  # What comes after the end may be too far for an int32.
  ends = (epoch * per_epoch for epoch in config.step_epochs)
  drops = {end: config.step_factor for end in ends if end < total}
  return optax.piecewise_constant_schedule(config.learning_rate, drops)


def _zaremba(config: Any, per_epoch: int, total: int) -> optax.Schedule:
  return optax.exponential_decay(
    config.learning_rate,
    per_epoch,
    1 / config.decay,
    transition_begin=min((config.constant_epochs - 1) * per_epoch, total),
    staircase=True,
  )


SCHEDULES: dict[str, Callable[[Any, int, int], optax.Schedule]] = {
  "cosine": _cosine,
  "step": _step,
  "zaremba": _zaremba,
}


def learning_rate(config: Any, per_epoch: int, total: int) -> optax.Schedule:
  """The learning rate of each step.

  "cosine" falls from ``learning_rate`` to 0 along a cosine; "step" is multiplied by ``step_factor`` after
  each of ``step_epochs``; "zaremba" stays for ``constant_epochs`` epochs and is then divided by ``decay``
  at the beginning of each (Zaremba et al., 2014).

  Args:
    config: the experiment.
    per_epoch: exchanges an epoch.
    total: exchanges of the run.

  Returns:
    A function of the exchanges before.
  """
  return SCHEDULES[config.schedule](config, per_epoch, total)
