"""Whose a state is: each worker's own, or the same on all of them; found by tracing, for any transformation.

What stands before an exchange in a chain sees this worker's gradient, and so does what a wrapper accumulates
around one. Their state is this worker's own. What follows the exchange sees what all workers agree on.

An update is traced with the exchange replaced by a sum over the workers. A leaf of the state is a worker's
own when its next value depends on the local gradient, on another such leaf or on the worker's number by any
way that leads through no sum.
"""

import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rtopk_jax import _axis, _checks, _modes
from rtopk_jax._axis import AxisName
from rtopk_jax.transform import _dataflow, _gradients
from rtopk_jax.transform._dataflow import Axes
from rtopk_jax.transform._metrics import shapes
from rtopk_jax.transform._momentum_twice import warn_of_momentum_twice
from rtopk_jax.transform._optax import gradient_like, update_as_traced

# Workers on an axis in the trace.
_MEMBERS = 2


class Leaf(NamedTuple):
  """A leaf of a state.

  Attributes:
    path: where it is.
    shape: for one worker, without a row's axis.
    dtype: its dtype.
    is_row: whether its transformation keeps it as a row of its own accord, as this library's do.
    axes: the mapped axes that it differs along, in the order of the exchange's; none for what is shared.
  """

  path: tuple[Any, ...]
  shape: tuple[int, ...]
  dtype: Any
  is_row: bool
  axes: tuple[str, ...]

  @property
  def needs_row(self) -> bool:
    """Whether it is a worker's own, and its transformation does not know."""
    return bool(self.axes) and not self.is_row

  @property
  def axis_name(self) -> AxisName:
    """The axes as JAX's functions take them."""
    return self.axes[0] if len(self.axes) == 1 else self.axes


class Ownership(NamedTuple):
  """Whose the leaves of a state are.

  Attributes:
    structure: of the state.
    leaves: its leaves.
    exchanged: the axes of the exchanges, one after another; none where there is no exchange.
  """

  structure: Any
  leaves: list[Leaf]
  exchanged: tuple[AxisName, ...]

  def check_structure(self, structure: Any) -> None:
    """Refuses a state of another structure."""
    if structure == self.structure:
      return
    trees = (jax.tree.unflatten(x, range(x.num_leaves)) for x in (structure, self.structure))
    found = _gradients.differences(**dict(zip(("state", "tx.init(params)"), trees, strict=True)))
    raise TypeError(
      f"state has another structure than tx.init makes: {found}. Restore a checkpoint into the structure of "
      "rtopk_jax.init(…)."
    )


def ownership(
  tx: optax.GradientTransformation, params: Any, axis_name: AxisName | None = None
) -> Ownership:
  """Whose each leaf of a transformation's state is.

  Args:
    tx: any transformation. Of one without an exchange or another collective all state is shared.
    params: the parameters, arrays or ``ShapeDtypeStruct``.
    axis_name: the workers' axis, where the caller knows it.

  Returns:
    The ``Ownership``.

  Raises:
    TypeError: when ``tx`` is no transformation, or a leaf of the parameters is no array.
    ValueError: when updates differ between workers, when a collective stands under a condition that does,
      or when the update cannot be traced.
  """
  _checks.init_and_update("tx", tx)
  _gradients.check_arrays("params", params)
  # By shapes alone: an array may be of a mesh with axes of another type than those that are traced for.
  params = shapes(params)
  leaves, structure = jax.tree.flatten(params)
  # What Python's numbers are depends on jax_enable_x64.
  kinds = tuple((x.shape, x.dtype) for x in leaves)
  key = structure, kinds, axis_name, jnp.result_type(1.0)
  try:
    found = _found.setdefault(tx.update, {})
  except TypeError:
    # A callable that is an object of some kinds can be the key of no such dictionary.
    return _trace(tx, params, axis_name)
  if key not in found:
    found[key] = _trace(tx, params, axis_name)
  return found[key]


# What was found of transformations that are still there.
_found: weakref.WeakKeyDictionary[Any, dict[Any, Ownership]] = weakref.WeakKeyDictionary()


def _trace(tx: optax.GradientTransformation, params: Any, axis_name: AxisName | None) -> Ownership:
  # A function of its own each time: what is traced for this must not be cached.
  with _modes.outside() as notes:
    state = jax.eval_shape(lambda p: tx.init(p), params)
  warn_of_momentum_twice(state)
  paths, structure = jax.tree_util.tree_flatten_with_path(state)
  exchanged = tuple(sorted(notes.exchanged, key=repr))
  names = dict.fromkeys(name for own in exchanged for name in _axis.names(own))
  if axis_name is not None:
    if exchanged and set(names) != set(_axis.names(axis_name)):
      which = " and ".join(map(repr, exchanged))
      raise ValueError(
        f"axis_name must be the axis that tx exchanges over, {which}, got {axis_name!r}."
      )
    names = dict.fromkeys(_axis.names(axis_name))
  if not names or not jax.tree.leaves(params):
    leaves = [Leaf(path, x.shape, x.dtype, False, ()) for path, x in paths]
    return Ownership(structure, leaves, exchanged)
  with _modes.analysis():
    inside, axes = _axes_of_state(tx, params, tuple(names), bool(exchanged))
  leaves = []
  for (path, outer), inner, own in zip(paths, inside, axes, strict=True):
    ordered = tuple(name for name in names if name in own)
    leaves.append(Leaf(path, inner.shape, inner.dtype, outer.shape != inner.shape, ordered))
  return Ownership(structure, leaves, exchanged)


def _axes_of_state(
  tx: optax.GradientTransformation, params: Any, names: tuple[str, ...], has_exchange: bool
) -> tuple[list[jax.ShapeDtypeStruct], list[Axes]]:
  """Each leaf of the state inside the map, and the axes that it differs along."""
  env = [(name, _MEMBERS) for name in names]
  trace = lambda f, *args: jax.make_jaxpr(f, axis_env=env, return_shape=True)(*args)
  of_init, state = trace(lambda p: tx.init(p), params)
  leaves = jax.tree.leaves(state)
  nothing: Axes = frozenset()
  count = len(jax.tree.leaves(params))
  own = _dataflow.trace_flow(of_init, [nothing] * count).outputs

  def update(gradient, state, params, value):
    return update_as_traced(tx, gradient, state, params, value)

  value = jax.ShapeDtypeStruct((), jnp.float32)
  gradient = gradient_like(params)
  try:
    of_update, (updates, after) = trace(update, gradient, state, params, value)
  except TypeError as error:
    if "missing" not in str(error):
      raise
    raise ValueError(
      f"tx.update wants arguments that are not known here: {error}. Give them by a transformation of your "
      "own around it, such as optax.GradientTransformation(tx.init, lambda g, s, p: tx.update(g, s, p, …))."
    ) from error
  if jax.tree.structure(after) != jax.tree.structure(state):
    raise ValueError(
      "tx.update makes a state of another structure than tx.init does, which no compiled loop can carry: "
      f"{jax.tree.structure(state)} became {jax.tree.structure(after)}."
    )
  varying, entering = frozenset(names), len(jax.tree.leaves(gradient))
  leaving = len(jax.tree.leaves(updates))
  while True:
    inputs = [*[varying] * entering, *own, *[nothing] * (count + 1)]
    flow = _dataflow.trace_flow(of_update, inputs)
    after = [old | new for old, new in zip(own, flow.outputs[leaving:], strict=True)]
    if after == own:
      break
    own = after
  if flow.blocked:
    raise ValueError(_BLOCKED)
  if has_exchange:
    _check_agreed(updates, flow.outputs[:leaving])
  if not flow.collectives:
    # Whatever workers agree on was found elsewhere.
    return leaves, [nothing] * len(leaves)
  return leaves, own


_BLOCKED = (
  "tx has an exchange under a condition that can differ between workers, as in optax.apply_if_finite or "
  "optax.MultiSteps(should_skip_update_fn=optax.skip_not_finite): some would wait for the others for ever. "
  "Leave the condition out and use rtopk_jax.lockstep(tx, axis_name), with which all workers skip a step in "
  "which a gradient of one is not finite; make_train_step and rtopk_sgd do so by themselves."
)


def _check_agreed(updates: Any, found: list[Axes]) -> None:
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(updates)]
  own = [path for path, axes in zip(paths, found, strict=True) if axes]
  if own:
    listed = ", ".join(f"updates{path}" for path in own[:3]) + (", …" if len(own) > 3 else "")
    raise ValueError(
      f"tx makes {listed} of a local gradient that went through no exchange, and workers would part ways. "
      "Where optax.masked keeps leaves from the exchange, send them dense, sparse_exchange(…, dense=mask), or "
      "give them one of their own, optax.partition({'sparse': …, 'dense': rtopk_jax.dense_exchange(…)}, "
      "labels). A wrapper that looks at the gradient it is given goes after the exchange, not around it."
    )
