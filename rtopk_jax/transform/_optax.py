"""How any transformation of optax is called, whatever arguments and parameters it wants."""

from typing import Any

import jax
import optax


def gradient_like(params: Any) -> Any:
  """What has the shapes of the gradient: the parameters, or those of ``optax.lookahead`` that are trained."""
  return params.fast if isinstance(params, optax.LookaheadParams) else params


def update_with(
  tx: optax.GradientTransformation, updates: Any, state: Any, params: Any, **extra_args: Any
) -> tuple[Any, Any]:
  """``tx.update`` with further arguments, ``value`` only where it is taken: not all of optax ignores it."""
  update = optax.with_extra_args_support(tx).update
  try:
    return update(updates, state, params, **extra_args)
  except TypeError as error:
    if "unexpected keyword argument" not in str(error) or not extra_args:
      raise
  needed = {name: x for name, x in extra_args.items() if name in ("present", "weight")}
  return update(updates, state, params, **needed)


def update_as_traced(
  tx: optax.GradientTransformation, updates: Any, state: Any, params: Any, value: jax.Array
) -> tuple[Any, Any]:
  """``tx.update`` where it is traced and not run, with all that optax's transformations may want besides.

  Args:
    tx: any transformation.
    updates: the gradient.
    state: of ``tx``.
    params: the parameters.
    value: stands for the loss.

  Returns:
    The updates and the new state.
  """
  others = {"value": value, "grad": gradient_like(params), "value_fn": lambda _: value}
  return update_with(tx, updates, state, params, **others)
