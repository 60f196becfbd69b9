"""What is done with a gradient: the optimizer of the step after an exchange, and of local steps.

    distributed: gradient ─▶ clip ─▶ momentum ─▶ exchange ─▶ weight decay ─▶ step
    federated:   gradient ─▶ clip ─▶ weight decay, momentum ─▶ local step; ─▶ exchange ─▶ outer step

SGD's momentum stands before the exchange, where error feedback keeps what of it was not sent (momentum correction).
AdamW and Muon have momentum of their own, of the mean gradient: theirs stands after the exchange, and none before.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import rtopk_jax

Rate = float | optax.Schedule


class Optimizer(NamedTuple):
  """One of those that a config may name.

  Attributes:
    before: what the exchange is told of the config's momentum.
    after: config and learning rate to what follows the exchange.
    local: config and learning rate to what a worker does by itself.
  """

  before: Callable[[Any], dict[str, Any]]
  after: Callable[[Any, Rate], optax.GradientTransformation]
  local: Callable[[Any, Rate], optax.GradientTransformation]


def _momentum(config: Any) -> dict[str, Any]:
  return dict(momentum=config.momentum, nesterov=config.nesterov)


def _after_momentum(config: Any, rate: Rate) -> optax.GradientTransformation:
  """SGD's step along a mean that has its momentum; the decay gets its own."""
  step = optax.scale_by_learning_rate(rate)
  if not config.weight_decay:
    return step
  return optax.chain(rtopk_jax.add_decayed_weights(config.weight_decay, **_momentum(config)), step)


def _sgd(config: Any, rate: Rate) -> optax.GradientTransformation:
  sgd = optax.sgd(rate, config.momentum or None, config.nesterov)
  if not config.weight_decay:
    return sgd
  return optax.chain(optax.add_decayed_weights(config.weight_decay), sgd)


def _matrices(params: Any) -> Any:
  """Which leaves decay: not those of one dimension, scales and biases."""
  return jax.tree.map(lambda x: x.ndim > 1, params)


def _adamw(config: Any, rate: Rate) -> optax.GradientTransformation:
  own = config.optimizer
  return optax.adamw(
    rate, own.b1, own.b2, own.eps, weight_decay=config.weight_decay, mask=_matrices
  )


def _hidden(params: Any) -> Any:
  """How Muon takes each leaf; None for those that AdamW takes: all but matrices between hidden layers."""
  outside = {"embedding", "head"}

  def of_leaf(path: Any, x: jax.Array) -> Any:
    names = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}
    return optax.contrib.MuonDimensionNumbers() if x.ndim == 2 and not names & outside else None

  return jax.tree.map_with_path(of_leaf, params)


def _muon(config: Any, rate: Rate) -> optax.GradientTransformation:
  own = config.optimizer
  return optax.contrib.muon(
    rate,
    ns_steps=own.iterations,
    beta=own.momentum,
    eps=own.eps,
    weight_decay=config.weight_decay,
    adam_b1=own.b1,
    adam_b2=own.b2,
    consistent_rms=own.rms,
    muon_weight_dimension_numbers=_hidden,
  )


_OPTIMIZERS = {
  "sgd": Optimizer(_momentum, _after_momentum, _sgd),
  "adamw": Optimizer(lambda config: {}, _adamw, _adamw),
  "muon": Optimizer(lambda config: {}, _muon, _muon),
}


def optimizer(config: Any) -> Optimizer:
  """The optimizer that a config names.

  Args:
    config: the experiment.

  Returns:
    It.
  """
  return _OPTIMIZERS[config.optimizer.name]
