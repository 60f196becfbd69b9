"""From a config to a method: what is exchanged and how, and what is done with the mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import rtopk_jax
from configs.schema import ConfigError
from train.steps import links
from train.steps.layout import AXIS, CHIPS
from train.steps.optimizers import optimizer
from train.steps.rounds import Distributed, Federated, Loss, Rounds
from train.steps.schedules import learning_rate

_SELECTORS = {
  "rtopk": lambda density, config: rtopk_jax.rtop_k(
    density, config.subsample, unbiased=config.unbiased
  ),
  "topk": lambda density, config: rtopk_jax.top_k(density),
  "randomk": lambda density, config: rtopk_jax.random_k(density, unbiased=config.unbiased),
}

Seed = int | jax.Array


def _scope(name: str) -> Any:
  """A scope by its name: "global", "leaf", or "block:SIZE" for ``rtopk_jax.Block``."""
  kind, _, size = name.partition(":")
  if kind != "block":
    return name
  try:
    return rtopk_jax.Block(int(size))
  except ValueError as error:
    more = f": {error}" if size.isdigit() else "."
    raise ConfigError(
      f'config.scope must be "global", "leaf" or "block:SIZE", got {name!r}{more}'
    ) from error


def _density(config: Any, per_epoch: int) -> Any:
  if not config.warmup_epochs:
    return config.density
  # One stage more than epochs of warm-up: the stage at the final density is not one of them.
  return rtopk_jax.warmup_density(config.density, per_epoch, config.warmup_epochs + 1)


def densities(config: Any, per_epoch: int) -> list[float]:
  """The share of entries that is sent in each of the first epochs, of which the last stays."""
  density = _density(config, per_epoch)
  return list(density.densities) if config.warmup_epochs else [density]


def exchange(
  config: Any, method: str, per_epoch: int, seed: Seed, **local: Any
) -> optax.GradientTransformationExtraArgs:
  """The exchange of a method: the one place where fields of a config become objects of the library.

  Args:
    config: the experiment.
    method: one of ``configs.rows.METHODS``.
    per_epoch: exchanges an epoch, for the warm-up.
    seed: of the selector.
    **local: what is done to gradients before, momentum for example.

  Returns:
    The exchange.
  """
  if method == "none":
    return rtopk_jax.dense_exchange(AXIS, average=config.average, inner_axis=CHIPS, **local)
  return rtopk_jax.sparse_exchange(
    _SELECTORS[method](_density(config, per_epoch), config),
    AXIS,
    scope=_scope(config.scope),
    average=config.average,
    error_feedback=config.error_feedback,
    momentum_masking=config.momentum_masking,
    dense=config.dense,
    collective=links.collective(config),
    wire=rtopk_jax.Wire(config.wire_values, config.wire_indices),
    memory_decay=config.memory_decay,
    memory_dtype=config.memory_dtype,
    delay=config.delay,
    seed=seed,
    **local,
  )


def _distributed(
  config: Any, method: str, loss: Loss, per_epoch: int, total: int, batches: int, seed: Seed
) -> Rounds:
  own = optimizer(config)
  before = exchange(
    config, method, per_epoch, seed, clip_norm=config.clip_norm, **own.before(config)
  )
  after = own.after(config, learning_rate(config, per_epoch, total))
  # A step that is skipped moves neither decay nor schedule.
  return Distributed(loss, rtopk_jax.lockstep(optax.chain(before, after), AXIS), batches)


def _federated(
  config: Any, method: str, loss: Loss, per_epoch: int, total: int, batches: int, seed: Seed
) -> Rounds:
  rate = learning_rate(config, per_epoch * batches, total * batches)

  def local(count: jax.Array) -> optax.GradientTransformation:
    # An optimizer that is kept has counted the local steps of all rounds so far.
    own = lambda i: rate(count * batches + jnp.asarray(i) % batches)
    step = optimizer(config).local(config, own)
    if config.clip_norm is None:
      return step
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), step)

  outer = optax.sgd(
    config.outer_learning_rate, config.outer_momentum or None, config.outer_nesterov
  )
  rounds = rtopk_jax.federated(
    loss,
    local,
    exchange(config, method, per_epoch, seed),
    AXIS,
    outer=outer,
    keep_inner=config.keep_local_optimizer,
    has_aux=True,
    has_model_state=True,
  )
  return Federated(loss, rounds, batches)


def make_rounds(
  config: Any, method: str, loss: Loss, per_epoch: int, total: int, batches: int
) -> Callable[[Seed], Rounds]:
  """How a config's method trains, for any seed of the selector.

  Args:
    config: the experiment.
    method: one of ``configs.rows.METHODS``.
    loss: of one worker's batch, as a task has it.
    per_epoch: exchanges an epoch, for warm-up and learning rate.
    total: exchanges of the run, for the learning rate.
    batches: a worker's batches between two exchanges.

  Returns:
    A function of the seed, which may be traced.
  """
  make = {"distributed": _distributed, "federated": _federated}[config.setting]
  return lambda seed: make(config, method, loss, per_epoch, total, batches, seed)
