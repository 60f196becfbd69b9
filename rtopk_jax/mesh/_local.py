"""Gradients of one worker's own loss, with no sum over workers hidden in them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rtopk_jax import _axis, _checks
from rtopk_jax._axis import AxisName


def local(tree: Any, axis_name: AxisName) -> Any:
  """Parameters as this worker's own copy, so that gradients with respect to them are local.

  Under ``shard_map`` with ``check_vma=True`` the gradient with respect to replicated parameters is a dense
  sum over the workers already. Of parameters that went through this function it is this worker's alone,
  whichever function takes it: ``jax.grad``, Equinox's ``filter_value_and_grad``, ``nnx.value_and_grad``.
  In ``pmap``, ``vmap`` and ``shard_map(check_vma=False)`` nothing is to be done, and nothing is.

  Args:
    tree: the parameters, or a module that has them. Leaves that are not arrays stay as they are.
    axis_name: the mapped axis of the workers.

  Returns:
    The same tree with the same values.

  Raises:
    NameError: outside a map over ``axis_name``.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> loss_fn = lambda w, x: jnp.sum(w * x)
    >>> gradient = lambda w, x: jax.grad(loss_fn)(rtopk_jax.local(w, "data"), x)
    >>> jax.vmap(gradient, in_axes=(None, 0), axis_name="data")(2.0, jnp.array([1.0, 3.0])).tolist()
    [1.0, 3.0]
  """
  _checks.axis_name(axis_name)
  _axis.size(axis_name)
  is_array = lambda x: isinstance(x, jax.Array | np.ndarray | np.generic | float | complex)
  return jax.tree.map(lambda x: _axis.to_varying(x, axis_name) if is_array(x) else x, tree)


def local_value_and_grad(
  loss_fn: Callable[..., Any], axis_name: AxisName, **kwargs: Any
) -> Callable[..., Any]:
  """``jax.value_and_grad`` of this worker's loss alone, with no sum over workers hidden in it.

  Under ``shard_map`` with ``check_vma=True`` the gradient with respect to replicated parameters is a
  dense all-reduce over the mesh already. Here the parameters go through ``local`` first.

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
    args = list(args)
    for i in positions:
      # JAX says what is wrong with others.
      if -len(args) <= i < len(args):
        args[i] = local(args[i], axis_name)
    return jax.value_and_grad(loss_fn, **kwargs)(*args, **kwargs_of_loss)

  return value_and_grad
