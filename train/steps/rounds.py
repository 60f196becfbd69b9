"""What workers do between two exchanges: take gradients (distributed) or local steps (federated).

Both have the same shape: ``begin``, then some ``local_step`` each of one batch, then ``exchange``. Only
the last knows that there are other workers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

import rtopk_jax

Loss = Callable[[Any, Any, Any], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]


class Rounds(Protocol):
  """A way to train.

  Weights that ``local_step`` is given are typed as a worker's own where types say so.

  Attributes:
    tx: what is done with what the workers came to, an exchange first.
    loss: of one worker's batch, as a task has it.
    batches: a worker's batches between two exchanges.
    begins_alone: whether ``begin`` and ``local_step`` know nothing of the optimizer and its state, so that
      they are the same program whatever the method.
  """

  tx: optax.GradientTransformation
  loss: Loss
  batches: int
  begins_alone: bool

  def begin(self, params: Any, opt_state: Any, model_state: Any) -> Any:
    """What a worker has before its first batch; states with this worker's rows."""
    ...

  def local_step(self, params: Any, local: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
    """What it has after one more, and metrics of the batch."""
    ...

  def exchange(
    self, params: Any, opt_state: Any, model_state: Any, local: Any, present: jax.Array | None
  ) -> tuple[Any, Any, Any]:
    """Weights, optimizer's state and model's state after the exchange; inside the mapped axis."""
    ...


class Gradients(NamedTuple):
  """What a worker of ``Distributed`` has so far.

  Attributes:
    total: the sum of the gradients.
    model_state: what its model keeps beside the weights.
  """

  total: Any
  model_state: Any


class Distributed:
  """One exchange of gradients, each the mean over a few micro-batches of a worker.

  Args:
    loss: of one worker's batch.
    tx: an exchange, and what is done with the mean.
    batches: micro-batches of an exchange.
  """

  begins_alone = True

  def __init__(self, loss: Loss, tx: optax.GradientTransformation, batches: int):
    self.loss, self.tx, self.batches = loss, tx, batches
    self._gradient = jax.grad(loss, has_aux=True)

  def begin(self, params: Any, opt_state: Any, model_state: Any) -> Gradients:
    """No gradient yet."""
    return Gradients(jax.tree.map(jnp.zeros_like, params), model_state)

  def local_step(
    self, params: Any, local: Gradients, batch: Any
  ) -> tuple[Gradients, dict[str, jax.Array]]:
    """Adds a gradient."""
    gradient, (model_state, metrics) = self._gradient(params, local.model_state, batch)
    return Gradients(jax.tree.map(jnp.add, local.total, gradient), model_state), metrics

  def exchange(
    self, params: Any, opt_state: Any, model_state: Any, local: Gradients, present: Any
  ) -> tuple[Any, Any, Any]:
    """One step along the mean; a step that was skipped leaves the models' state as it was, too."""
    gradient = jax.tree.map(lambda total: total / self.batches, local.total)
    updates, after = self.tx.update(gradient, opt_state, params)
    skipped = lambda state: rtopk_jax.exchange_metrics(state)["skipped_steps"]
    done = skipped(after) == skipped(opt_state)
    model_state = jax.tree.map(lambda x, y: jnp.where(done, x, y), local.model_state, model_state)
    return optax.apply_updates(params, updates), after, model_state


class Federated:
  """Local steps, exchanged as one update (``rtopk_jax.federated``).

  Args:
    loss: of one worker's batch.
    rounds: what ``rtopk_jax.federated`` made of it, with auxiliary results and model state.
    batches: local steps of a round.
  """

  begins_alone = False

  def __init__(self, loss: Loss, rounds: rtopk_jax.Federated, batches: int):
    self.loss, self.batches = loss, batches
    self.tx: optax.GradientTransformation = rounds.tx
    self._rounds = rounds

  def begin(self, params: Any, opt_state: Any, model_state: Any) -> Any:
    """The common weights."""
    return self._rounds.begin(params, opt_state, model_state)

  def local_step(self, params: Any, local: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
    """One local step."""
    local, (_, metrics) = self._rounds.local_step(local, batch)
    return local, metrics

  def exchange(
    self,
    params: Any,
    opt_state: Any,
    model_state: Any,
    local: Any,
    present: jax.Array | None,
  ) -> tuple[Any, Any, Any]:
    """One step for all of what the workers came to."""
    return self._rounds.exchange(params, opt_state, model_state, local, present)
