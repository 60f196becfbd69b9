"""What a training step does, as a function of global arrays: gradients, worker by worker, then the exchange."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rtopk_jax import _axis, _modes
from rtopk_jax._axis import AxisName
from rtopk_jax.mesh._local import local
from rtopk_jax.mesh._placement import is_spec
from rtopk_jax.mesh._specs import axes_of
from rtopk_jax.transform import _gradients, _loss
from rtopk_jax.transform._metrics import was_taken
from rtopk_jax.transform._optax import gradient_like

# What becomes of the state of a model beside its weights: one for all, or each worker's own.
MODEL_STATES = ("mean", "worker")


class Options(NamedTuple):
  """The arguments of ``make_train_step``; ``tx`` in lockstep."""

  loss_fn: Callable[..., Any]
  tx: optax.GradientTransformationExtraArgs
  axis_name: AxisName
  param_specs: Any
  has_aux: bool
  model_state: str | None
  rngs: bool
  weight: Callable[[Any], jax.Array] | None
  accumulate: int
  donate: bool


class LocalResult(NamedTuple):
  """What a worker gets out of its batch; all but the model's state are means over its micro-batches.

  Attributes:
    gradient: its gradient.
    loss: its loss.
    weight: how much it counts.
    model_state: what its model keeps.
    aux: auxiliary results, a row a micro-batch where there are several.
  """

  gradient: Any
  loss: jax.Array
  weight: jax.Array
  model_state: Any
  aux: Any


def mapped_step(
  options: Options, mesh: Mesh, param_specs: Any, specs_of_state: Any
) -> Callable[..., tuple[Any, ...]]:
  """The step, from global arrays to global arrays.

  Args:
    options: what it does.
    mesh: a mesh of automatic axes.
    param_specs: where parameters live.
    specs_of_state: where the state of ``tx`` lives.

  Returns:
    ``step(params, state, batch)``, with the model's state and a key after them where there are such, to what
    ``TrainStep`` returns.
  """
  axis_name = options.axis_name
  workers, rows = set(_axis.names(axis_name)), P(axis_name)
  of_model = P() if options.model_state == "mean" else rows
  local_step = jax.shard_map(
    lambda *arguments: _as_rows(_local_result(options, *arguments)),
    mesh=mesh,
    axis_names=workers,
    in_specs=(P(), of_model, rows, P()),
    out_specs=rows,
  )
  own = jax.tree.map(lambda spec: P(axis_name, *spec), param_specs, is_leaf=is_spec)
  common_step = jax.shard_map(
    lambda *arguments: _exchange_and_update(options, param_specs, *arguments),
    mesh=mesh,
    in_specs=(param_specs, specs_of_state, of_model, _result_specs(own, rows)),
    out_specs=(param_specs, specs_of_state, of_model, P()),
    # What differs between workers was found by tracing. Types would take optax's zeros for something
    # that does.
    check_vma=False,
  )

  def step(params, state, batch, *rest):
    # What there is none of has no leaves.
    given = iter(rest)
    model_state = next(given) if options.model_state else ()
    key = next(given) if options.rngs else ()
    result = local_step(params, model_state, batch, key)
    place = lambda x, spec: lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    fast = gradient_like(own)
    gradient = jax.tree.map(lambda spec, x: place(x, spec), fast, result.gradient, is_leaf=is_spec)
    aux = result.aux
    result = result._replace(gradient=gradient, aux=())
    params, state, model_state, loss = common_step(params, state, model_state, result)
    kept = (params, state, model_state) if options.model_state else (params, state)
    return (*kept, loss, aux) if options.has_aux else (*kept, loss)

  return step


def _result_specs(own: Any, rows: P) -> LocalResult:
  return LocalResult(gradient_like(own), rows, rows, rows, ())  # pyright: ignore[reportArgumentType]


def _as_rows(tree: Any) -> Any:
  return jax.tree.map(lambda x: jnp.asarray(x)[None], tree)


def _own_rows(tree: Any) -> Any:
  return jax.tree.map(lambda x: x[0], tree)


def _local_result(
  options: Options, params: Any, model_state: Any, batch: Any, key: Any
) -> LocalResult:
  """What one worker gets out of its batch, without a collective."""
  params = local(params, options.axis_name)
  model_state = local(
    _own_rows(model_state) if options.model_state == "worker" else model_state, options.axis_name
  )
  if options.rngs:
    key = jax.random.fold_in(key, lax.axis_index(options.axis_name))
  if options.accumulate == 1:
    return _of_micro_batch(options, params, model_state, batch, key)

  def more(before, numbered):
    number, part = numbered
    own_key = jax.random.fold_in(key, number) if options.rngs else key
    result = _of_micro_batch(options, params, before.model_state, part, own_key)
    add = lambda total, x: total + _gradients.counted(x, result.weight).astype(total.dtype)
    return LocalResult(
      jax.tree.map(add, before.gradient, result.gradient),
      add(before.loss, result.loss),
      before.weight + result.weight,
      result.model_state,
      (),
    ), result.aux

  count = options.accumulate
  parts = jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)
  zeros = lambda x: local(jnp.zeros(x.shape, _sum_dtype(x)), options.axis_name)
  trained = gradient_like(params)
  start = LocalResult(
    jax.tree.map(zeros, trained), zeros(jnp.float32(0)), zeros(jnp.float32(0)), model_state, ()
  )
  total, aux = lax.scan(more, start, (jnp.arange(count, dtype=jnp.int32), parts))
  weight = jnp.where(total.weight > 0, total.weight, 1)
  mean = lambda x, like: (x / weight.astype(x.dtype)).astype(like.dtype)
  gradient = jax.tree.map(mean, total.gradient, trained)
  return total._replace(gradient=gradient, loss=mean(total.loss, total.loss), aux=aux)


def _sum_dtype(x: jax.Array) -> jax.typing.DTypeLike:
  """What sums over micro-batches are kept in."""
  return jnp.complex64 if jnp.issubdtype(x.dtype, jnp.complexfloating) else jnp.float32


def _of_micro_batch(
  options: Options, params: Any, model_state: Any, batch: Any, key: Any
) -> LocalResult:
  """What one worker gets out of one micro-batch."""

  def loss(params):
    given = (params, model_state) if options.model_state else (params,)
    result = options.loss_fn(*given, batch, *((key,) if options.rngs else ()))
    return _loss.split(
      result,
      model_state,
      has_model_state=options.model_state is not None,
      has_aux=options.has_aux,
      said_by=f"model_state={options.model_state!r} and has_aux={options.has_aux}",
    )

  (value, (model_state, aux)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  weight = jnp.float32(1) if options.weight is None else options.weight(batch)
  weight = local(jnp.asarray(weight).astype(jnp.float32), options.axis_name)
  model_state, aux = local((model_state, aux), options.axis_name)
  return LocalResult(gradient_like(gradient), value, weight, model_state, aux)


def _exchange_and_update(
  options: Options, param_specs: Any, params: Any, state: Any, model_state: Any, result: LocalResult
) -> tuple[Any, Any, Any, jax.Array]:
  """Parameters, state and model's state after the step, and the loss; the same on all workers."""
  result = _own_rows(result)
  if options.weight is None:
    weight, loss = {}, lax.pmean(result.loss, options.axis_name)
  else:
    weight = {"weight": result.weight}
    total = _axis.psum(result.weight, options.axis_name)
    loss = _axis.psum(_gradients.counted(result.loss, result.weight), options.axis_name)
    loss /= jnp.where(total > 0, total, 1).astype(loss.dtype)
  with _modes.sharded(axes_of(param_specs)):
    try:
      updates, after = options.tx.update(result.gradient, state, params, value=loss, **weight)
    except TypeError as error:
      if "missing" not in str(error):
        raise
      raise ValueError(
        f"tx.update wants arguments that make_train_step has not, which gives value= and weight=: {error}. "
        "Use tx in a shard_map of your own."
      ) from error
  new_model = result.model_state
  if options.model_state == "mean":
    new_model = jax.tree.map(lambda x: _mean(x, options.axis_name), new_model)
  elif options.model_state:
    new_model = _as_rows(new_model)
  taken = was_taken(after, state)
  keep = lambda new, old: jnp.where(taken, new, old)
  return (
    optax.apply_updates(params, updates),
    after,
    jax.tree.map(keep, new_model, model_state),
    loss,
  )


def _mean(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """The mean over workers; of counters and flags, which are alike, the largest."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    raise TypeError(
      'model_state="mean" cannot average a PRNG key. Keep keys out of the model\'s state and give them by '
      'rngs=True, or keep each worker\'s own with model_state="worker".'
    )
  if jnp.issubdtype(x.dtype, jnp.inexact):
    return lax.pmean(x, axis_name)
  if x.dtype == jnp.bool_:
    return lax.pmax(x.astype(jnp.int32), axis_name).astype(jnp.bool_)
  return lax.pmax(x, axis_name)
