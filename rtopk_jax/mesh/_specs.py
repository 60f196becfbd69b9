"""Where every leaf of a state lives: on a mesh, and in a simulation by ``vmap``."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rtopk_jax import _axis, _checks, _modes
from rtopk_jax._axis import AxisName
from rtopk_jax.mesh._placement import Placement, check_mesh, is_spec, is_traced
from rtopk_jax.transform import _gradients, _state
from rtopk_jax.transform._lockstep import lockstep
from rtopk_jax.transform._ownership import Leaf, ownership


def state_specs(
  tx: optax.GradientTransformation, params: Any, axis_name: AxisName, param_specs: Any = None
) -> Any:
  """Where each leaf of the state lives on a mesh, for ``shard_map`` and ``NamedSharding``.

  What a transformation keeps before an exchange, or a wrapper around one, is each worker's own, as the
  exchange's memory is; what follows the exchange is shared. It is found by tracing an update, for any
  transformation. Inside a ``shard_map`` of one's own, ``rtopk_jax.lockstep`` around the chain hands such
  state to its transformation.

  Args:
    tx: any transformation. Without an exchange or other collective in it all state is shared.
    params: the parameters, arrays or ``ShapeDtypeStruct``.
    axis_name: the mesh axis of the workers.
    param_specs: the ``PartitionSpec`` of each parameter over the other axes; None: replicated.

  Returns:
    A tree like ``tx.init(params)`` with a ``PartitionSpec`` for every leaf: ``P(axis_name, …)`` for what
    is a worker's own, the parameter's spec for what is shaped like one, ``P()`` for the rest.

  Raises:
    TypeError: when ``param_specs`` has something else than ``PartitionSpec``.
    ValueError: when ``param_specs`` has another structure than ``params`` or names the workers' axis; when
      the exchange in ``tx`` is over another axis, or a leaf of the state is like no parameter and some are
      sharded; and as ``lockstep`` does.

  Examples:
    >>> import jax.numpy as jnp, optax, rtopk_jax
    >>> exchange = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data")
    >>> tx = optax.chain(optax.trace(0.9), exchange, optax.trace(0.9))
    >>> before, own, after = rtopk_jax.state_specs(tx, {"w": jnp.zeros((64, 32))}, "data")
    >>> before.trace["w"], own.residual["w"], own.count, after.trace["w"]
    (P('data',), P('data',), P(), P())
  """
  _checks.axis_name(axis_name)
  param_specs = settle_specs(param_specs, params, axis_name)
  owned = ownership(tx, params, axis_name)
  match = _Match(params, param_specs)
  specs = [
    P(leaf.axis_name, *match.spec(leaf)) if leaf.axes else match.spec(leaf) for leaf in owned.leaves
  ]
  return jax.tree.unflatten(owned.structure, specs)


def settle_specs(param_specs: Any, params: Any, axis_name: AxisName) -> Any:
  """A spec for every parameter; refused where they do not fit."""
  _gradients.check_arrays("params", params)
  if param_specs is not None:
    _check_specs(param_specs, params, axis_name)
    return param_specs
  for path, x in jax.tree.leaves_with_path(params):
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated:
      where = jax.tree_util.keystr(path)
      raise ValueError(
        f"params{where} is sharded as {sharding.spec} and would be gathered; give param_specs, the "
        "PartitionSpec of each parameter, to keep it so."
      )
  return jax.tree.map(lambda _: P(), params)


def _check_specs(param_specs: Any, params: Any, axis_name: AxisName) -> None:
  """Refuses what does not say of each parameter how it is sharded over axes other than the workers'."""
  if jax.tree.structure(param_specs, is_leaf=is_spec) != jax.tree.structure(params):
    differences = _gradients.differences(is_spec, param_specs=param_specs, params=params)
    is_none = lambda x: x is None
    has_none = any(map(is_none, jax.tree.leaves(param_specs, is_leaf=is_none)))
    hint = " What is replicated has P(), not None." if has_none else ""
    raise ValueError(f"param_specs and params have different structures: {differences}.{hint}")
  pairs = zip(
    jax.tree.leaves_with_path(param_specs, is_leaf=is_spec), jax.tree.leaves(params), strict=True
  )
  for (path, spec), x in pairs:
    where = f"param_specs{jax.tree_util.keystr(path)}"
    if not is_spec(spec):
      raise TypeError(f"{where} must be a jax.sharding.PartitionSpec, got {spec!r}.")
    if _axes(spec) & set(_axis.names(axis_name)):
      raise ValueError(
        f"{where} must name other axes than the workers', got {spec!r} with axis_name={axis_name!r}."
      )
    if len(spec) > jnp.ndim(x):
      raise ValueError(
        f"{where} is {spec!r}, of more axes than the parameter of shape {jnp.shape(x)}."
      )


def axes_of(param_specs: Any) -> _modes.Sharding:
  """The axes that a parameter is sharded over, by its path."""
  leaves = jax.tree.leaves_with_path(param_specs, is_leaf=is_spec)
  axes = {path: frozenset(_axes(spec)) for path, spec in leaves}
  every = frozenset().union(*axes.values())
  return _modes.Sharding(axes, every)


def _axes(spec: P) -> set[str]:
  """The mesh axes that a spec names."""
  return {name for part in spec if part is not None for name in _axis.names(part)}


class _Match:
  """Finds the parameter that a leaf of a state is like, by the end of its path and by its shape."""

  def __init__(self, params: Any, param_specs: Any):
    specs = jax.tree.leaves(param_specs, is_leaf=is_spec)
    self._params = [
      (path, _gradients.real_shape(x), jnp.shape(x), spec)
      for (path, x), spec in zip(jax.tree.leaves_with_path(params), specs, strict=True)
    ]
    self._is_sharded = any(_axes(spec) for spec in specs)

  def spec(self, leaf: Leaf) -> P:
    """Its parameter's spec, without a workers' axis; refused where it is like none and some are sharded."""
    if not self._is_sharded or not leaf.shape:
      return P()
    if any(getattr(key, "name", None) == "in_flight" for key in leaf.path):
      raise ValueError(
        "delay=1 needs parameters that are whole on every worker, and param_specs shard some of them."
      )
    alike = [
      (_state.common_end(leaf.path, path), spec)
      for path, real, shape, spec in self._params
      if leaf.shape in (real, shape) and (not path or _state.common_end(leaf.path, path))
    ]
    best = max((common for common, _ in alike), default=0)
    found = {spec for common, spec in alike if common == best}
    if len(found) == 1:
      return found.pop()
    if all(size == 1 for size in leaf.shape):
      return P()
    where = f"state{jax.tree_util.keystr(leaf.path)}"
    raise ValueError(
      f"{where} of shape {leaf.shape} is shaped like no parameter or like several, and param_specs shard "
      "some: how it is sharded cannot be told. Keep parameters replicated with this transformation, or "
      "apply it to the replicated ones alone (optax.masked)."
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
    TypeError: for leaves that cannot be exchanged, if ``tx`` exchanges them.
    ValueError: as ``lockstep`` does, for an exchange in ``tx`` that not all updates go through, or that
      stands under a condition.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> params = {"w": jnp.zeros((64, 32))}
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data")
    >>> axes = rtopk_jax.state_axes(tx, params)
    >>> init = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_name="data", axis_size=5)
    >>> init(params).residual["w"].shape
    (5, 64, 32)
  """
  owned = ownership(tx, params)
  return jax.tree.unflatten(owned.structure, [0 if leaf.axes else None for leaf in owned.leaves])


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
    params: the parameters, anywhere.
    mesh: the mesh, with axes of any type.
    axis_name: its axis of the workers.
    param_specs: the ``PartitionSpec`` of each parameter over the other axes; None: replicated.

  Returns:
    The state as global arrays: ``(num_workers, *shape)`` for what is a worker's own.

  Raises:
    TypeError: as ``state_specs`` does, and for leaves that cannot be exchanged.
    ValueError: when the mesh lacks the axis, when parameters are sharded and ``param_specs`` is None, and as
      ``state_specs`` does.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data")
    >>> rtopk_jax.init(tx, {"w": jnp.zeros((64, 32))}, mesh, "data").residual["w"].shape
    (1, 64, 32)
  """
  check_mesh(mesh, axis_name)
  placement = Placement(mesh)
  param_specs = settle_specs(param_specs, params, axis_name)
  specs = state_specs(tx, params, axis_name, param_specs)
  tx = lockstep(tx, axis_name) if ownership(tx, params, axis_name).exchanged else tx

  def start(params):
    with _modes.sharded(axes_of(param_specs)):
      return tx.init(params)

  make = jax.shard_map(
    start,
    mesh=placement.automatic,
    in_specs=(param_specs,),
    out_specs=specs,
    check_vma=False,
  )
  if is_traced(params):
    return placement.trace(make, specs, params)
  made = jax.jit(make, out_shardings=placement.shardings(specs))
  return placement.run(made, placement.put(params, param_specs))
