"""Rounds of local steps that are exchanged as one update.

    common weights ─▶ H local steps ─▶ weights before − after ─▶ exchange ─▶ outer step ─▶ common weights
                      (per worker)      (pseudo-gradient)        (once a round)

The left part knows no other worker, the right part no data: simulated workers can run the first one
after another and map the second alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rtopk_jax import _axis, _checks
from rtopk_jax._axis import AxisName
from rtopk_jax.transform import _gradients, _loss, _state
from rtopk_jax.transform._lockstep import lockstep
from rtopk_jax.transform._metrics import find_metrics, was_taken

Inner = optax.GradientTransformation | Callable[[jax.Array], optax.GradientTransformation]


class FederatedState(NamedTuple):
  """State of the rounds of ``federated``.

  Attributes:
    count: rounds so far, int32, the same on all workers.
    outer: state of the exchange and of the outer optimizer.
    inner: state of this worker's local optimizer, a row a leaf; ``()`` where it starts anew every round.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "data")
    >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"] - 1) ** 2)
    >>> rounds = rtopk_jax.federated(loss_fn, optax.sgd(0.1), exchange, "data")
    >>> params = {"w": jnp.zeros((40, 30))}
    >>> state = rounds.tx.init(params)
    >>> int(state.count), state.inner
    (0, ())
  """

  count: jax.Array
  outer: Any
  inner: Any

  per_worker = ("inner",)
  memory = ()


class Local(NamedTuple):
  """What one worker changes during a round.

  Attributes:
    params: its weights.
    inner: the state of its local optimizer.
    model_state: what its model keeps beside the weights.
    round: the number of the round, int32.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "data")
    >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"] - 1) ** 2)
    >>> rounds = rtopk_jax.federated(loss_fn, optax.sgd(0.1), exchange, "data")
    >>> params = {"w": jnp.zeros((40, 30))}
    >>> def train(x):
    ...   local = rounds.begin(params, rounds.tx.init(params))
    ...   local, (loss, _) = rounds.local_step(local, x)
    ...   return local.params["w"], loss
    >>> weights, losses = jax.jit(jax.vmap(train, axis_name="data"))(jnp.ones((2, 8, 40)))
    >>> weights.shape, losses.tolist()
    ((2, 40, 30), [1.0, 1.0])
  """

  params: Any
  inner: Any
  model_state: Any
  round: jax.Array


class Round(NamedTuple):
  """What a round ends with.

  Attributes:
    params: the new weights, the same on all workers.
    state: the new ``FederatedState``.
    model_state: this worker's.
    loss: mean over the local steps of all workers present, by their weights, the same on all workers.
    aux: this worker's auxiliary results, stacked over the local steps.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "data")
    >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"] - 1) ** 2)
    >>> rounds = rtopk_jax.federated(loss_fn, optax.sgd(0.1), exchange, "data")
    >>> params = {"w": jnp.zeros((40, 30))}
    >>> def train(x):
    ...   done = rounds.round(params, rounds.tx.init(params), x)
    ...   return done.loss, done.params["w"]
    >>> batches = jnp.ones((2, 3, 8, 40))  # 2 workers, 3 local steps of 8 examples
    >>> every = jax.vmap(train, out_axes=None, axis_name="data")
    >>> loss, weights = jax.jit(every)(batches)
    >>> weights.shape, bool(0 < loss < 1)
    ((40, 30), True)
  """

  params: Any
  state: FederatedState
  model_state: Any
  loss: jax.Array
  aux: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Federated:
  """Federated training in pieces; ``federated`` makes one.

  ``round`` is all of them in one. Where workers are simulated on one device it is quicker to train them
  one after another with ``begin`` and ``local_step``, and to ``vmap`` only ``exchange``.

  Attributes:
    tx: what is done with pseudo-gradients, as an optax transformation with ``FederatedState``: exchange,
      then outer optimizer. ``rtopk_jax.init``, ``state_specs``, ``state_axes`` and ``wire_bytes`` take it.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "data")
    >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"] - 1) ** 2)
    >>> rounds = rtopk_jax.federated(loss_fn, optax.sgd(0.1), exchange, "data")
    >>> params = {"w": jnp.zeros((40, 30))}
    >>> rtopk_jax.wire_bytes(rounds.tx, params, num_workers=5).sent  # dense: 4,800
    1024
  """

  tx: optax.GradientTransformationExtraArgs
  _loss_fn: Callable[[Any, Any, Any], Any]
  _inner: Callable[[jax.Array], optax.GradientTransformation]
  _axis_name: AxisName
  _keep_inner: bool

  def begin(self, params: Any, state: FederatedState, model_state: Any = ()) -> Local:
    """Where a worker starts from in a round.

    Args:
      params: the common weights.
      state: the state of the rounds, with this worker's row where the local optimizer's state is kept.
      model_state: this worker's.

    Returns:
      Its ``Local``. Outside a mapped axis too, for one worker.
    """
    params = self._own(params)
    inner = self._inner(state.count).init(params)
    if self._keep_inner:
      inner = self._read(state.inner, inner)
    return Local(params, self._own(inner), self._own(model_state), state.count)

  def local_step(self, local: Local, batch: Any) -> tuple[Local, tuple[jax.Array, Any]]:
    """One step of one worker, as a body of ``lax.scan``.

    Args:
      local: where it is.
      batch: its batch.

    Returns:
      Where it is then, and the loss and auxiliary results before the step. No worker talks to another.
    """
    gradient = jax.value_and_grad(self._loss_fn, has_aux=True)
    (loss, (model_state, aux)), gradient = gradient(local.params, local.model_state, batch)
    updates, inner = self._inner(local.round).update(gradient, local.inner, local.params)
    params = optax.apply_updates(local.params, updates)
    return Local(params, self._own(inner), self._own(model_state), local.round), (loss, aux)

  def exchange(
    self,
    params: Any,
    state: FederatedState,
    model_state: Any,
    local: Local,
    present: jax.Array | None = None,
    weight: jax.Array | None = None,
  ) -> tuple[Any, FederatedState, Any]:
    """Makes one step for all of what the workers came to; inside the mapped axis.

    Args:
      params: the weights the round began with.
      state: the state it began with.
      model_state: this worker's, before the round.
      local: where this worker ended.
      present: whether it takes part, a bool scalar; None: all do.
      weight: how much it counts, a real scalar of at least 0, the number of its examples for instance; None:
        all count alike.

    Returns:
      Weights and state after the round, and this worker's model state: as it was where the worker is
      absent or the round was skipped for a weight that is not finite.
    """
    begun = self._own(params)
    pseudo_gradient = jax.tree.map(lambda before, after: before - after, begun, local.params)
    # Exchanges of others need not know the arguments.
    options = {"present": present, "weight": weight}
    participation = {name: value for name, value in options.items() if value is not None}
    new: Any
    updates, new = self.tx.update(pseudo_gradient, state, params, **participation)
    done = was_taken(new, state)
    if present is not None:
      done &= present
    keep = lambda after, before: jax.tree.map(
      lambda x, y: jnp.where(done, x.reshape(y.shape), y), after, before
    )
    if self._keep_inner:
      new = new._replace(inner=keep(local.inner, state.inner))
    stepped: Any = optax.apply_updates(params, updates)
    return stepped, new, keep(local.model_state, model_state)

  def round(
    self,
    params: Any,
    state: FederatedState,
    batches: Any,
    model_state: Any = (),
    present: jax.Array | None = None,
    weight: jax.Array | None = None,
  ) -> Round:
    """Local steps, exchange and outer step; inside the mapped axis.

    Args:
      params: the common weights.
      state: the state of the rounds, with this worker's row.
      batches: this worker's batches, a leading axis of H local steps on every array.
      model_state: what this worker's model keeps beside the weights.
      present: whether this worker takes part, a bool scalar; None: all do. One that does not may be
        given any batches: nothing of it is sent, its memory stays, and the mean is over the others.
      weight: how much this worker counts, a real scalar of at least 0, the number of its examples for
        instance; None: all count alike.

    Returns:
      A ``Round``.

    Raises:
      ValueError: for batches without local steps or with different numbers of them, and as the exchange
        does.
    """
    _check_batches(batches)
    local, (losses, aux) = lax.scan(
      self.local_step, self.begin(params, state, model_state), batches
    )
    params, state, model_state = self.exchange(params, state, model_state, local, present, weight)
    loss = jnp.mean(losses)
    counts = jnp.ones_like(loss) if weight is None else jnp.asarray(weight).astype(loss.dtype)
    if present is not None:
      counts = jnp.where(present, counts, jnp.zeros_like(counts))
    total = _axis.psum(_gradients.counted(loss, counts), self._axis_name)
    number = _axis.psum(counts, self._axis_name)
    mean = total / jnp.where(number > 0, number, jnp.ones_like(number))
    return Round(params, state, model_state, mean, aux)

  def _own(self, tree: Any) -> Any:
    return jax.tree.map(lambda x: _axis.to_varying(x, self._axis_name), tree)

  def _read(self, rows: Any, like: Any) -> Any:
    own = _state.read_rows(rows, like, self._axis_name, "inner")
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(
      structure, [row.reshape(jnp.shape(x)) for row, x in zip(own, leaves, strict=True)]
    )


def federated(
  loss_fn: Callable[..., Any],
  inner: Inner,
  exchange: optax.GradientTransformation,
  axis_name: AxisName,
  *,
  outer: optax.GradientTransformation | None = None,
  keep_inner: bool = False,
  has_aux: bool = False,
  has_model_state: bool = False,
) -> Federated:
  r"""Federated training: every worker takes H local steps, then all exchange how far they got.

  With w the common weights, :math:`w_i` worker i's after its local steps from w, and C the exchange with
  the memory of worker i,

  .. math::
    \Delta_i = w - w_i, \qquad w \leftarrow \mathrm{outer}\Big(w, \frac1n \sum_i C(\Delta_i)\Big)

  (the paper's federated setting, Section III-A, in which H is an epoch of the worker's data). The pseudo-gradient
  :math:`\Delta_i` points as a gradient does, and takes its place in everything the exchange does: error
  feedback, density warm-up (by rounds), clipping. With ``outer=None`` the step is
  :math:`w - \frac1n \sum_i C(\Delta_i)`, without compression the mean of the workers' weights. DiLoCo's is
  ``optax.sgd(0.7, momentum=0.9, nesterov=True)``. H = 1 with plain SGD inside and nothing left out is a
  dense SGD step.

  Args:
    loss_fn: ``loss_fn(params, batch)`` to the loss of one worker's batch. With ``has_model_state``
      ``loss_fn(params, model_state, batch)``, and the new model state is a second result; with
      ``has_aux`` auxiliary results are. With both the second result is the pair of them.
    inner: each worker's local optimizer, or a function from the round (an int32 scalar) to it, such as
      ``lambda round: optax.sgd(0.1 * 0.9**round)``.
    exchange: ``sparse_exchange(…)`` or ``dense_exchange(…)`` over ``axis_name``, or a chain with one.
    axis_name: the mapped axis of the workers.
    outer: what is done with the mean pseudo-gradient; None: ``optax.sgd(1.0)``.
    keep_inner: keep the state of the local optimizers from round to round, as state of each worker. By
      default it starts anew.
    has_aux: whether ``loss_fn`` has auxiliary results.
    has_model_state: whether the model has state beside its weights, batch statistics for example, which
      is each worker's own and goes through its local steps.

  Returns:
    A ``Federated``.

  Raises:
    TypeError: for arguments of a wrong type.
    ValueError: in ``tx.init`` when ``exchange`` has no exchange in it.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> loss_fn = lambda w, x: jnp.sum((w - x) ** 2)
    >>> exchange = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(1.0), "data", dense=False)
    >>> fed = rtopk_jax.federated(loss_fn, optax.sgd(0.1), exchange, "data")
    >>> w, batches = jnp.zeros(2), jnp.ones((4, 20, 2))  # 4 workers, 20 local steps
    >>> axes = rtopk_jax.state_axes(fed.tx, w)
    >>> run = jax.vmap(
    ...   lambda w, x: fed.round(w, fed.tx.init(w), x),
    ...   in_axes=(None, 0), out_axes=rtopk_jax.Round(None, axes, 0, None, 0), axis_name="data")
    >>> [f"{x:.3f}" for x in jax.jit(run)(w, batches).params]  # 1 - 0.8**20
    ['0.988', '0.988']
  """
  _checks.axis_name(axis_name)
  flags = {"keep_inner": keep_inner, "has_aux": has_aux, "has_model_state": has_model_state}
  for name, value in flags.items():
    _checks.flag(name, value)
  if not callable(loss_fn):
    raise TypeError(f"loss_fn must be a function, got {loss_fn!r}.")
  outer = optax.sgd(1.0) if outer is None else outer
  _checks.transformation("exchange", exchange)
  _checks.transformation("outer", outer)
  if isinstance(inner, optax.GradientTransformation):
    inner_of = lambda count: inner
  elif callable(inner):
    inner_of = inner
  else:
    raise TypeError(
      f"inner must be an optax.GradientTransformation, or a function of the round to one, got {inner!r}."
    )
  # A round that is skipped moves no outer momentum and no schedule either.
  plain = optax.chain(exchange, outer)
  chain = lockstep(plain, axis_name)

  def full_loss(params, model_state, batch):
    result = loss_fn(params, model_state, batch) if has_model_state else loss_fn(params, batch)
    return _loss.split(
      result,
      model_state,
      has_model_state=has_model_state,
      has_aux=has_aux,
      said_by=f"has_model_state={has_model_state} and has_aux={has_aux}",
    )

  def init(params):
    if not find_metrics(jax.eval_shape(plain.init, params)):
      raise ValueError(
        "exchange has no sparse_exchange or dense_exchange in it, and workers would part ways."
      )
    state, count = chain.init(params), jnp.zeros((), jnp.int32)
    rows = lambda tree: jax.tree.map(lambda x: _axis.as_row(jnp.asarray(x), axis_name), tree)
    return FederatedState(count, state, rows(inner_of(count).init(params)) if keep_inner else ())

  def update(updates, state, params=None, **extra_args):
    updates, outer_state = chain.update(updates, state.outer, params, **extra_args)
    return updates, FederatedState(_state.increment(state.count), outer_state, state.inner)

  tx = optax.GradientTransformationExtraArgs(init, update)
  return Federated(tx, full_loss, inner_of, axis_name, keep_inner)


def _check_batches(batches: Any) -> None:
  steps = {jnp.shape(x)[:1] for x in jax.tree.leaves(batches)}
  if len(steps) != 1 or steps in ({()}, {(0,)}):
    shapes = jax.tree.map(jnp.shape, batches)
    raise ValueError(
      f"batches must have one leading axis of at least 1 local step on every array, got {shapes}."
    )
