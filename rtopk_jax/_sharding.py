"""Per-worker state on a mesh: where every leaf lives, how it is made, and a ready training step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rtopk_jax import _axis, _checks, _state
from rtopk_jax._axis import AxisName


def local_value_and_grad(
  loss_fn: Callable[..., Any], axis_name: AxisName, **kwargs: Any
) -> Callable[..., Any]:
  """``jax.value_and_grad`` of this worker's loss alone, with no sum over workers hidden in it.

  Under ``shard_map`` with ``check_vma=True`` the gradient with respect to replicated parameters is a
  dense all-reduce over the mesh already. Here the parameters are first cast to be this worker's own; in
  ``pmap``, ``vmap`` and ``shard_map(check_vma=False)`` there is nothing to cast.

  Args:
    loss_fn: as for ``jax.value_and_grad``.
    axis_name: the mapped axis of the workers.
    **kwargs: as for ``jax.value_and_grad`` (``argnums``, ``has_aux``, …).

  Returns:
    A function like ``jax.value_and_grad(loss_fn, **kwargs)``. The value is this worker's; take
    ``jax.lax.pmean`` of it for the mean.

  Raises:
    NameError: when it is called outside a map over ``axis_name``.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> loss_fn = lambda w, x: jnp.sum(w * x)
    >>> local = rtopk_jax.local_value_and_grad(loss_fn, "data")
    >>> jax.vmap(local, in_axes=(None, 0), axis_name="data")(2.0, jnp.array([1.0, 3.0]))[1].tolist()
    [1.0, 3.0]
  """
  _checks.axis_name(axis_name)
  argnums = kwargs.get("argnums", 0)
  positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

  def value_and_grad(*args, **kwargs_of_loss):
    _axis.size(axis_name)
    args = list(args)
    for i in positions:
      args[i] = jax.tree.map(lambda x: _axis.to_varying(x, axis_name), args[i])
    return jax.value_and_grad(loss_fn, **kwargs)(*args, **kwargs_of_loss)

  return value_and_grad


def state_specs(
  tx: optax.GradientTransformation, params: Any, axis_name: AxisName, param_specs: Any = None
) -> Any:
  """Where each leaf of the state lives on a mesh, for ``shard_map`` and ``NamedSharding``.

  Args:
    tx: any transformation, with or without an exchange in it.
    params: the parameters, arrays or ``ShapeDtypeStruct``.
    axis_name: the mesh axis of the workers.
    param_specs: the ``PartitionSpec`` of each parameter over the other axes; None: replicated.

  Returns:
    A tree like ``tx.init(params)`` with a ``PartitionSpec`` for every leaf: ``P(axis_name, …)`` for what
    is a worker's own, the parameter's spec for what is shaped like one, ``P()`` for the rest.

  Raises:
    TypeError: when ``param_specs`` has something else than ``PartitionSpec``.
    ValueError: when ``param_specs`` has another structure than ``params`` or names the workers' axis, or when
      the exchange in ``tx`` is over another axis.

  Examples:
    >>> import jax.numpy as jnp, optax, rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data")
    >>> specs = rtopk_jax.state_specs(tx, {"w": jnp.zeros((64, 32))}, "data")
    >>> specs.count, specs.residual["w"]
    (P(), P('data',))
  """
  _checks.axis_name(axis_name)
  if param_specs is None:
    param_specs = jax.tree.map(lambda _: P(), params)
  _check_specs(param_specs, params, axis_name)
  # An exchange over two kinds of links has workers over the slow ones only.
  with _axis.row_axes() as found:
    jax.eval_shape(lambda p: tx.init(p), params)
  names = set(_axis.names(axis_name))
  for own in found:
    if not set(_axis.names(own)) <= names:
      raise ValueError(
        f"axis_name must be the axis that tx exchanges over, {own!r}, got {axis_name!r}."
      )
  slow = [own for own in found if set(_axis.names(own)) < names]
  rows = slow[0] if len(found) == len(slow) == 1 else axis_name
  return _map_state(
    tx, params, param_specs, shared=P(), own=lambda spec: P(rows, *spec), is_leaf=_is_spec
  )


def _is_spec(x: Any) -> bool:
  return isinstance(x, P)


def _check_specs(param_specs: Any, params: Any, axis_name: AxisName) -> None:
  """Refuses what does not say of each parameter how it is sharded over axes other than the workers'."""
  if jax.tree.structure(param_specs, is_leaf=_is_spec) != jax.tree.structure(params):
    differences = _state.differences(_is_spec, param_specs=param_specs, params=params)
    is_none = lambda x: x is None
    has_none = any(map(is_none, jax.tree.leaves(param_specs, is_leaf=is_none)))
    hint = " What is replicated has P(), not None." if has_none else ""
    raise ValueError(f"param_specs and params have different structures: {differences}.{hint}")
  for path, spec in jax.tree.leaves_with_path(param_specs, is_leaf=_is_spec):
    where = f"param_specs{jax.tree_util.keystr(path)}"
    if not _is_spec(spec):
      raise TypeError(f"{where} must be a jax.sharding.PartitionSpec, got {spec!r}.")
    used = {name for part in spec if part is not None for name in _axis.names(part)}
    if used & set(_axis.names(axis_name)):
      raise ValueError(
        f"{where} must name other axes than the workers', got {spec!r} with axis_name={axis_name!r}."
      )


def state_axes(tx: optax.GradientTransformation, params: Any) -> Any:
  """The ``in_axes`` and ``out_axes`` of the state when workers are simulated by ``vmap``.

  Args:
    tx: any transformation, with or without an exchange in it.
    params: the parameters, arrays or ``ShapeDtypeStruct``.

  Returns:
    A tree like ``tx.init(params)``: 0 for what is a worker's own, None for what all share, which stays
    unbatched. The arrays are then the ones a mesh would hold, ``(num_workers, *shape)``.

  Raises:
    TypeError: for leaves that are not floating point, if ``tx`` exchanges them.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> params = {"w": jnp.zeros((64, 32))}
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data")
    >>> axes = rtopk_jax.state_axes(tx, params)
    >>> init = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_name="data", axis_size=5)
    >>> init(params).residual["w"].shape
    (5, 64, 32)
  """
  shared = jax.tree.map(lambda _: _Shared(), params)
  axes = _map_state(
    tx, params, shared, shared=_Shared(), own=lambda _: 0, is_leaf=lambda x: isinstance(x, _Shared)
  )
  return jax.tree.map(
    lambda x: None if isinstance(x, _Shared) else x, axes, is_leaf=lambda x: isinstance(x, _Shared)
  )


class _Shared:
  """Stands for None, which no tree function would take for a leaf."""


def _map_state(
  tx: optax.GradientTransformation,
  params: Any,
  per_param: Any,
  *,
  shared: Any,
  own: Callable[[Any], Any],
  is_leaf: Callable[[Any], bool],
) -> Any:
  """The state with ``own(x)`` for each worker's rows, x for other leaves of a parameter, else shared."""
  state = jax.eval_shape(tx.init, params)
  # Where optax.masked or optax.partition keep a leaf from a transformation, its state has a node of
  # theirs in place of one.
  is_masked = lambda x: isinstance(x, optax.MaskedNode)
  state = optax.tree.map_params(
    tx,
    lambda leaf, x: leaf if is_masked(leaf) else x,
    state,
    per_param,
    transform_non_params=lambda _: shared,
    is_leaf=is_masked,
  )
  return _state.map_rows(own, state, is_leaf)


def init(
  tx: optax.GradientTransformation,
  params: Any,
  mesh: Mesh,
  axis_name: AxisName,
  param_specs: Any = None,
) -> Any:
  """The first state on a mesh, with a row for every worker, each on its own device.

  Args:
    tx: any transformation, with or without an exchange in it.
    params: the parameters.
    mesh: the mesh.
    axis_name: its axis of the workers.
    param_specs: the ``PartitionSpec`` of each parameter over the other axes; None: replicated.

  Returns:
    The state as global arrays: ``(num_workers, *shape)`` for what is a worker's own.

  Raises:
    TypeError: as ``state_specs`` does, and for leaves that are not floating point.
    ValueError: when the mesh lacks the axis, and as ``state_specs`` does.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data")
    >>> rtopk_jax.init(tx, {"w": jnp.zeros((64, 32))}, mesh, "data").residual["w"].shape
    (1, 64, 32)
  """
  _check_mesh(mesh, axis_name)
  specs = state_specs(tx, params, axis_name, param_specs)
  if param_specs is None:
    param_specs = jax.tree.map(lambda _: P(), params)
  make = jax.shard_map(tx.init, mesh=mesh, in_specs=(param_specs,), out_specs=specs)
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=_is_spec)
  return jax.jit(make, out_shardings=shardings)(params)


def make_train_step(
  loss_fn: Callable[..., Any],
  tx: optax.GradientTransformation,
  mesh: Mesh,
  axis_name: AxisName,
  *,
  has_aux: bool = False,
  donate: bool = True,
) -> Callable[..., Any]:
  """A compiled training step for those who use ``jit`` and ``NamedSharding`` and no ``shard_map``.

  Each worker takes the gradient of its share of the batch, ``tx`` exchanges them, all take the same
  step. Parameters are replicated.

  Args:
    loss_fn: ``loss_fn(params, batch)`` to the mean loss of a batch, or with ``has_aux`` to a pair of it
      and a tree of arrays.
    tx: a chain that begins with an exchange over ``axis_name``.
    mesh: the mesh.
    axis_name: its axis of the workers.
    has_aux: whether ``loss_fn`` returns more than the loss.
    donate: whether the memory of parameters and state is used again, the default.

  Returns:
    ``step(params, state, batch)`` to ``(params, state, loss)``, or to ``(params, state, loss, aux)``.
    ``state`` comes from ``rtopk_jax.init``; the leading axis of the batch is dealt to the workers;
    ``loss`` is the mean; each worker's ``aux`` is a row of an array ``(num_workers, …)``. As a jitted
    function it has ``step.lower(params, state, batch)``.

  Raises:
    ValueError: when the mesh lacks the axis, or in ``step`` when workers don't divide the batch.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> tx = optax.chain(rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.5), "data"), optax.sgd(0.1))
    >>> params = {"w": jnp.ones((40, 30))}
    >>> state = rtopk_jax.init(tx, params, mesh, "data")
    >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"]) ** 2)
    >>> step = rtopk_jax.make_train_step(loss_fn, tx, mesh, "data")
    >>> params, state, loss = step(params, state, jnp.ones((8, 40)))
    >>> round(float(loss))
    1600
  """
  num_workers = _check_mesh(mesh, axis_name)
  value_and_grad = local_value_and_grad(loss_fn, axis_name, has_aux=has_aux)

  def worker(params, state, batch):
    value, gradient = value_and_grad(params, batch)
    loss, aux = value if has_aux else (value, ())
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    aux = jax.tree.map(lambda x: x[None], aux)
    return params, state, lax.pmean(loss, axis_name), aux

  def step(params, state, batch):
    specs = state_specs(tx, params, axis_name)
    params, state, loss, aux = jax.shard_map(
      worker,
      mesh=mesh,
      in_specs=(P(), specs, P(axis_name)),
      out_specs=(P(), specs, P(), P(axis_name)),
    )(params, state, batch)
    return (params, state, loss, aux) if has_aux else (params, state, loss)

  replicated, dealt = NamedSharding(mesh, P()), NamedSharding(mesh, P(axis_name))
  compiled = jax.jit(
    step,
    in_shardings=(replicated, None, dealt),
    donate_argnums=(0, 1) if donate else (),
  )

  @functools.wraps(step)
  def placed(params, state, batch):
    _check_batch(batch, num_workers)
    # Parameters fresh from their initialiser know no mesh, and would cost a second compilation.
    return compiled(jax.device_put(params, replicated), state, batch)

  placed.lower = compiled.lower  # pyright: ignore[reportAttributeAccessIssue]
  return placed


def _check_batch(batch: Any, num_workers: int) -> None:
  for path, leaf in jax.tree.leaves_with_path(batch):
    shape = jnp.shape(leaf)
    if not shape or shape[0] % num_workers:
      raise ValueError(
        f"batch{jax.tree_util.keystr(path)} has shape {shape}, and its leading axis cannot be dealt "
        f"to {num_workers} workers."
      )


def _check_mesh(mesh: Mesh, axis_name: AxisName) -> int:
  _checks.axis_name(axis_name)
  size = 1
  for name in _axis.names(axis_name):
    if name not in mesh.shape:
      raise ValueError(
        f"axis_name={name!r} is not an axis of the mesh, which has {mesh.axis_names}."
      )
    size *= mesh.shape[name]
  return size
