"""From a config to the optimizer of a method: what is exchanged, and what is done with the mean."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import rtopk_jax

AXIS = "workers"

_SELECTORS = {
  "rtopk": lambda density, subsample: rtopk_jax.rtop_k(density, subsample),
  "topk": lambda density, subsample: rtopk_jax.top_k(density),
  "randomk": lambda density, subsample: rtopk_jax.random_k(density),
}
METHODS = ("none", *_SELECTORS)

SCHEDULES = ("cosine", "zaremba")


def learning_rate(config: Any, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
  """The learning rate of each step.

  "cosine" falls from ``learning_rate`` to 0 along a cosine; "zaremba" stays for ``constant_epochs`` epochs
  and is then divided by ``decay`` at the beginning of each (Zaremba et al., 2014).

  Args:
    config: the experiment.
    steps_per_epoch: exchanges an epoch.
    total_steps: of the run.

  Returns:
    A function of the step.
  """
  if config.schedule == "cosine":
    return optax.cosine_decay_schedule(config.learning_rate, total_steps)
  return optax.exponential_decay(
    config.learning_rate,
    steps_per_epoch,
    1 / config.decay,
    transition_begin=(config.constant_epochs - 1) * steps_per_epoch,
    staircase=True,
  )


def optimizer(
  config: Any, method: str, steps_per_epoch: int, total_steps: int
) -> Callable[[int | jax.Array], optax.GradientTransformationExtraArgs]:
  """The optimizer of a method, for any seed of the selector.

  Args:
    config: the experiment.
    method: one of ``METHODS``.
    steps_per_epoch: exchanges an epoch, for warm-up and learning rate.
    total_steps: of the run, for the learning rate.

  Returns:
    A function of the seed, which may be traced.
  """
  common = dict(
    average=config.average,
    momentum=config.momentum,
    nesterov=config.nesterov,
    clip_norm=config.clip_norm,
  )
  density = config.density
  if config.warmup_epochs:
    # One stage more than epochs of warm-up: the stage at the final density is not one of them.
    density = rtopk_jax.warmup_density(density, steps_per_epoch, config.warmup_epochs + 1)

  def make(seed):
    if method == "none":
      exchange = rtopk_jax.dense_exchange(AXIS, **common)
    else:
      exchange = rtopk_jax.sparse_exchange(
        _SELECTORS[method](density, config.subsample),
        AXIS,
        scope=config.scope,
        error_feedback=config.error_feedback,
        momentum_masking=config.momentum_masking,
        dense=config.dense,
        seed=seed,
        **common,
      )
    parts: list[optax.GradientTransformation] = [exchange]
    if config.weight_decay:
      parts.append(
        rtopk_jax.add_decayed_weights(
          config.weight_decay, config.momentum, nesterov=config.nesterov
        )
      )
    rate = learning_rate(config, steps_per_epoch, total_steps)
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))

  return make
