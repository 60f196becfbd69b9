"""Weight decay that has momentum of its own, for updates whose momentum came before the exchange."""

from typing import Any, NamedTuple

import jax
import optax

from rtopk_jax import _checks


class DecayTrace(NamedTuple):
  """The momentum of weight decay alone; of another type than that of gradients."""

  trace: Any


def add_decayed_weights(
  weight_decay: optax.ScalarOrSchedule,
  momentum: float = 0.0,
  *,
  nesterov: bool = False,
  mask: Any = None,
) -> optax.GradientTransformation:
  r"""Adds weight decay with momentum to updates that had theirs already.

  .. math::
    s \leftarrow m s + \lambda w, \qquad \mathrm{update} \leftarrow \mathrm{update} + s

  Momentum is linear, so the momentum of gradient and decay is the sum of both. With momentum correction
  the gradient's comes before the exchange; the decay needs no exchange, since every worker can work it
  out, and gets its momentum here. With n = 1 and nothing left out, the two together are
  ``optax.chain(optax.add_decayed_weights(λ), optax.trace(m))``.

  Args:
    weight_decay: :math:`\lambda`, at least 0, or a schedule of it.
    momentum: m in [0, 1), the exchange's.
    nesterov: whether the exchange's momentum is Nesterov's.
    mask: which leaves decay, a tree of bools or a function of the parameters, as in
      ``optax.add_decayed_weights``.

  Returns:
    An ``optax.GradientTransformation``, whose state is the same on all workers.

  Raises:
    TypeError: when weight decay or momentum is not a number.
    ValueError: when one of them is out of range.

  Examples:
    >>> import jax.numpy as jnp, rtopk_jax
    >>> tx = rtopk_jax.add_decayed_weights(0.5, momentum=0.5)
    >>> weights, state = jnp.ones(1), tx.init(jnp.ones(1))
    >>> for _ in range(3):
    ...   updates, state = tx.update(jnp.zeros(1), state, weights)
    ...   print(updates.tolist())
    [0.5]
    [0.75]
    [0.875]
  """
  _checks.number_or_schedule("weight_decay", weight_decay)
  _checks.momentum("momentum", momentum)
  decay = optax.add_decayed_weights(weight_decay, mask)
  if momentum:
    decay = optax.chain(decay, _trace(momentum, nesterov))

  def update(updates, state, params=None):
    decayed, state = decay.update(optax.tree.zeros_like(updates), state, params)
    return jax.tree.map(lambda x, y: x + y, updates, decayed), state

  return optax.GradientTransformation(decay.init, update)


def _trace(momentum: float, nesterov: bool) -> optax.GradientTransformation:
  """``optax.trace`` with a state of its own type."""
  trace = optax.trace(momentum, nesterov)

  def update(updates, state, params=None):
    updates, after = trace.update(updates, optax.TraceState(state.trace), params)
    return updates, DecayTrace(after.trace)  # pyright: ignore[reportAttributeAccessIssue]

  return optax.GradientTransformation(lambda params: DecayTrace(trace.init(params).trace), update)  # pyright: ignore[reportAttributeAccessIssue]
