"""What a loss function of the user's returns: a loss, and what it was said to return beside it."""

from typing import Any


def split(
  result: Any, model_state: Any, *, has_model_state: bool, has_aux: bool, said_by: str
) -> tuple[Any, tuple[Any, Any]]:
  """A result as the loss, and beside it the model's state and aux; refused where it has another form.

  Args:
    result: what ``loss_fn`` has returned.
    model_state: the state it was given, which stays where there is none in the result.
    has_model_state: whether a new one is in the result.
    has_aux: whether auxiliary results are.
    said_by: the arguments that say so, for the error.

  Returns:
    The loss, and the pair of model state and auxiliary results; ``()`` where there are none.

  Raises:
    TypeError: when the result is something else, or the loss is no scalar.
  """
  form = {
    (False, False): "loss",
    (False, True): "(loss, aux)",
    (True, False): "(loss, model_state)",
    (True, True): "(loss, (model_state, aux))",
  }[has_model_state, has_aux]
  loss, aux = result, ()
  try:
    if has_model_state and has_aux:
      loss, (model_state, aux) = result
    elif has_model_state:
      loss, model_state = result
    elif has_aux:
      loss, aux = result
  except (TypeError, ValueError):
    loss = None
  if isinstance(loss, float) or getattr(loss, "shape", None) == ():
    return loss, (model_state, aux)
  raise TypeError(
    f"loss_fn must return {form}, of which loss is a scalar, as {said_by} say; got {_described(result)}."
  )


def _described(result: Any) -> str:
  """A result by its shape and dtype; a tuple by those of its items."""
  if isinstance(result, tuple):
    return f"({', '.join(map(_described, result))})"
  shape = getattr(result, "shape", None)
  return type(result).__name__ if shape is None else f"{result.dtype} of shape {shape}"
