"""What enters an exchange: a local gradient, who takes part and how much each worker counts."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._axis import AxisName

# Of the elements that an array of JAX can have.
_KINDS = (jnp.number, jnp.bool_, jax.dtypes.extended)


def local_updates(updates: Any, params: Any, axis_name: AxisName) -> Any:
  """A local gradient as real arrays; refused for other dtypes, another structure, a sum over workers.

  A complex leaf becomes pairs of reals on a new last axis.
  """
  check_exchangeable("updates", updates)
  check_structure(updates, params=params)
  if params is not None:
    _check_shapes(updates, params)
  updates = as_real(updates)
  _check_local(updates, axis_name)
  return updates


def as_real(tree: Any) -> Any:
  """A tree of arrays, complex ones as pairs of reals on a new last axis."""
  return jax.tree.map(_as_real, tree)


def real_shape(x: Any) -> tuple[int, ...]:
  """The shape in which a leaf is exchanged and remembered."""
  return (*jnp.shape(x), 2) if jnp.issubdtype(_dtype(x), jnp.complexfloating) else jnp.shape(x)


def as_complex(x: jax.Array, like: Any) -> jax.Array:
  """Pairs of reals as complex numbers again where the leaf was one."""
  if not jnp.issubdtype(_dtype(like), jnp.complexfloating):
    return x
  return lax.complex(x[..., 0], x[..., 1]).astype(_dtype(like))


def _as_real(x: Any) -> jax.Array:
  x = jnp.asarray(x, _dtype(x))
  if not jnp.issubdtype(x.dtype, jnp.complexfloating):
    return x
  return jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)


def _dtype(x: Any) -> np.dtype:
  """The dtype of a leaf; Python's numbers are of 32 bits whatever ``jax_enable_x64`` says."""
  if isinstance(x, float | complex) and not isinstance(x, np.generic):
    return jnp.dtype(jnp.complex64 if isinstance(x, complex) else jnp.float32)
  return jnp.result_type(x)


def check_arrays(name: str, tree: Any) -> None:
  """Refuses leaves that are neither arrays, their shapes, nor numbers, such as a module's functions."""
  for path, leaf in jax.tree.leaves_with_path(tree):
    if isinstance(leaf, int | float | complex):
      continue
    if hasattr(leaf, "shape") and any(jnp.issubdtype(leaf.dtype, kind) for kind in _KINDS):
      continue
    raise TypeError(
      f"{name}{jax.tree_util.keystr(path)} must be an array, got {leaf!r} of type {type(leaf).__name__}. Keep what "
      "is not trained out of params, by eqx.partition(model, eqx.is_inexact_array) or nnx.split for example."
    )


def check_exchangeable(name: str, tree: Any) -> None:
  """Refuses leaves that are not floating point or complex numbers of at most 32 bits a real."""
  check_arrays(name, tree)
  for path, leaf in jax.tree.leaves_with_path(tree):
    dtype, where = _dtype(leaf), f"{name}{jax.tree_util.keystr(path)}"
    if not jnp.issubdtype(dtype, jnp.inexact):
      raise TypeError(
        f"{where} is of {dtype}, and only floating point and complex leaves have a gradient to exchange. "
        "Keep others out of params, or give them no update: optax.partition({'train': chain, 'fixed': "
        "optax.set_to_zero()}, labels) with the exchange in chain."
      )
    if dtype in (jnp.float64, jnp.complex128):
      raise TypeError(
        f"{where} is of {dtype}, and the exchange computes and remembers in float32. Keep parameters, and so "
        "gradients, in float32."
      )


def check_structure(updates: Any, **others: Any) -> None:
  """Refuses trees of another structure than the updates have."""
  structure = jax.tree.structure(updates)
  for name, other in others.items():
    if other is not None and jax.tree.structure(other) != structure:
      raise ValueError(
        f"updates and {name} have different structures: {differences(updates=updates, **{name: other})}."
      )


def _check_shapes(updates: Any, params: Any) -> None:
  paths = jax.tree.leaves_with_path(updates)
  for (path, x), p in zip(paths, jax.tree.leaves(params), strict=True):
    if jnp.shape(x) == jnp.shape(p):
      continue
    where = jax.tree_util.keystr(path)
    hint = "A gradient has the shape of its parameter."
    if jnp.shape(x) == (1, *jnp.shape(p)):
      hint = (
        "A transformation before the exchange was given the row of its state with the workers' axis. "
        "Wrap the whole chain, tx = rtopk_jax.lockstep(tx, axis_name), which takes that axis off."
      )
    raise ValueError(
      f"updates{where} has shape {jnp.shape(x)} and params{where} {jnp.shape(p)}. {hint}"
    )


def differences(is_leaf: Callable[[Any], bool] | None = None, **trees: Any) -> str:
  """What each of two trees has and the other has not; their structures where it is not in the leaves."""
  paths = {
    name: [
      jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    ]
    for name, tree in trees.items()
  }
  found = []
  for name, other in (tuple(paths), tuple(reversed(paths))):
    missing = [f"{name}{path}" for path in paths[name] if path not in paths[other]]
    if missing:
      listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
      found.append(f"{other} has nothing for {listed}")
  structures = (str(jax.tree.structure(tree, is_leaf=is_leaf)) for tree in trees.values())
  return "; ".join(found) or " and ".join(structures)


def _check_local(updates: Any, axis_name: AxisName) -> None:
  if not _axis.tracks_varying(axis_name):
    return
  for path, leaf in jax.tree.leaves_with_path(updates):
    if not _axis.is_varying(leaf, axis_name):
      raise ValueError(
        f"updates{jax.tree_util.keystr(path)} is the same on all workers of axis {axis_name!r} by its "
        "type, and there is nothing to exchange. Either it was summed over them: by jax.grad with respect "
        "to replicated parameters, for which there is rtopk_jax.local_value_and_grad(loss_fn, axis_name), "
        "or by a psum or pmean of your own before the exchange, which should go. Or a transformation "
        "around the exchange lost the type (optax.MultiSteps does): use rtopk_jax.make_train_step, or "
        "jax.shard_map with check_vma=False."
      )


def share(weight: Any, present: jax.Array | None, axis_name: AxisName) -> jax.Array | None:
  r"""The factor that makes the mean over workers a weighted one: :math:`n w_i / \sum_j w_j`.

  Args:
    weight: this worker's, a real scalar of at least 0; None: all weigh the same. A traced one is not checked: below
      0, the worker's gradient is left out, but its weight still lowers the sum.
    present: whether this worker takes part; n and the sum are over those that do.
    axis_name: the mapped axis of the workers.

  Returns:
    The factor, a float32 scalar; 0 where the worker, or everybody, weighs nothing.

  Raises:
    TypeError: when the weight is not a real scalar.
    ValueError: when it is a Python or NumPy number below 0.
  """
  if weight is None:
    return None
  if isinstance(weight, numbers.Real) and weight < 0:
    raise ValueError(f"weight must be at least 0, got {weight!r}.")
  weight = jnp.asarray(weight)
  if weight.shape or not jnp.issubdtype(weight.dtype, jnp.number):
    raise TypeError(
      "weight says how much this worker counts, the number of its examples for instance, and must be a real "
      f"scalar, got {weight.dtype} of shape {weight.shape}."
    )
  weight = weight.astype(jnp.float32)
  here = jnp.bool_(True) if present is None else present
  pair = jnp.stack([jnp.where(here, weight, jnp.float32(0)), here.astype(jnp.float32)])
  total, count = _axis.psum(pair, axis_name)
  return jnp.where(total > 0, weight * count / jnp.where(total > 0, total, 1), 0)


def check_present(present: Any, axis_name: AxisName) -> jax.Array | None:
  """Refuses what does not say of one worker whether it takes part."""
  if present is None:
    return None
  present = jnp.asarray(present)
  if present.shape or present.dtype != jnp.bool_:
    raise TypeError(
      "present says whether this worker takes part, and must be a bool scalar, got "
      f"{present.dtype} of shape {present.shape}."
    )
  return _axis.to_varying(present, axis_name)


def counted(x: jax.Array, weight: jax.Array | None) -> jax.Array:
  """A worker's array times its weight: zeros where that is 0, whatever the array has."""
  if weight is None:
    return x
  # The mean of no examples may be NaN, and counts nothing.
  return jnp.where(weight > 0, x * weight.astype(x.dtype), jnp.zeros_like(x))
