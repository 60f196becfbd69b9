"""Learning rates: what each step's is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def _cosine(config: Any, per_epoch: int, total: int, rise: int) -> optax.Schedule:
  last = config.learning_rate_end / config.learning_rate if config.learning_rate else 0.0
  fall = optax.cosine_decay_schedule(config.learning_rate, max(1, total - rise), last)
  return (lambda count: fall(jnp.maximum(count - rise, 0))) if rise else fall


def _step(config: Any, per_epoch: int, total: int, rise: int) -> optax.Schedule:
  # What comes after the end may be too far for an int32.
  ends = [epoch * per_epoch for epoch in config.step_epochs if epoch * per_epoch < total]
  drops = dict.fromkeys(ends, float(config.step_factor))
  return optax.piecewise_constant_schedule(config.learning_rate, drops)


def _zaremba(config: Any, per_epoch: int, total: int, rise: int) -> optax.Schedule:
  return optax.exponential_decay(
    config.learning_rate,
    per_epoch,
    1 / config.decay,
    transition_begin=min((config.constant_epochs - 1) * per_epoch, total),
    staircase=True,
  )


SCHEDULES: dict[str, Callable[[Any, int, int, int], optax.Schedule]] = {
  "cosine": _cosine,
  "step": _step,
  "zaremba": _zaremba,
}


def learning_rate(config: Any, per_epoch: int, total: int) -> optax.Schedule:
  """The learning rate of each step: of an exchange, or of a local step.

  It rises in a line to ``learning_rate`` in the first ``learning_rate_warmup`` of a run. Then "cosine" falls to
  ``learning_rate_end`` along a cosine; "step" is multiplied by ``step_factor`` after each of ``step_epochs``;
  "zaremba" stays for ``constant_epochs`` epochs and is then divided by ``decay`` at the beginning of each
  (Zaremba et al., 2014).

  Args:
    config: the experiment.
    per_epoch: steps an epoch.
    total: steps of the run.

  Returns:
    A function of the steps before.
  """
  rise = round(config.learning_rate_warmup * total)
  rate = SCHEDULES[config.schedule](config, per_epoch, total, rise)
  if not rise:
    return rate

  def risen(count: Any) -> jax.Array:
    share = (jnp.asarray(count, jnp.float32) + 1) / (rise + 1)
    return jnp.minimum(share, 1) * rate(count)

  return risen


def of_exchanges(config: Any, per_epoch: int, total: int, batches: int) -> optax.Schedule:
  """The learning rate that the first step of each exchange has.

  Args:
    config: the experiment.
    per_epoch: exchanges an epoch.
    total: exchanges of the run.
    batches: a worker's batches between two exchanges, of which each is a step in the federated setting.

  Returns:
    A function of the exchanges before.
  """
  steps = batches if config.setting == "federated" else 1
  rate = learning_rate(config, per_epoch * steps, total * steps)

  def schedule(count):
    return rate(count * steps)

  return schedule
