"""Checks of arguments: an error names the argument, the value and what would be right."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def real(name: str, value: Any) -> None:
  """Refuses what is not a plain finite real number (a bool is not one)."""
  if isinstance(value, jax.Array):
    raise TypeError(
      f"{name} must be a Python number, since it decides what is compiled, got an array of {value.dtype}. With "
      f"optax.inject_hyperparams, name it in static_args=({name!r}, …)."
    )
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise TypeError(
      f"{name} must be a Python number, got {value!r} of type {type(value).__name__}."
    )
  if not math.isfinite(value):
    raise ValueError(f"{name} must be finite, got {value!r}.")


def density(name: str, value: Any) -> None:
  """Refuses a density outside (0, 1]."""
  real(name, value)
  if not 0 < value <= 1:
    raise ValueError(
      f"{name} is the share of entries sent and must be in (0, 1], got {value!r}"
      f"{f'; {value} % is {value / 100}' if 1 < value <= 100 else ''}."
    )


def at_least(name: str, value: Any, least: float, *, integer: bool = False) -> None:
  """Refuses a number below ``least``, and with ``integer`` one that is not whole."""
  real(name, value)
  if integer and not isinstance(value, numbers.Integral):
    raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}.")
  if value < least:
    raise ValueError(f"{name} must be at least {least}, got {value!r}.")


def number_or_schedule(name: str, value: Any) -> None:
  """Refuses what is no number of at least 0, scalar array or schedule."""
  if callable(value):
    return
  if isinstance(value, jax.Array):
    if value.shape or not jnp.issubdtype(value.dtype, jnp.number):
      raise TypeError(
        f"{name} must be a number or a schedule, got {value.dtype} of shape {value.shape}."
      )
    return
  at_least(name, value, 0)


def whole(name: str, value: Any) -> int:
  """A number of things as an integer, of a float such as 1e6 too; refused where it is none or below 1."""
  at_least(name, value, 1)
  if value != int(value):
    raise ValueError(f"{name} must be a whole number, got {value!r}.")
  return int(value)


def at_most(name: str, value: Any, most: float, which: str) -> None:
  """Refuses a number above ``most``, and says which limit that is."""
  if value > most:
    raise ValueError(f"{name} must be at most {most}, {which}, got {value!r}.")


def above_zero(name: str, value: Any, of: str = "") -> None:
  """Refuses a number that is not above 0, of such a unit."""
  real(name, value)
  if value <= 0:
    raise ValueError(f"{name} must be above 0{f' {of}' if of else ''}, got {value!r}.")


def momentum(name: str, value: Any) -> None:
  """Refuses a momentum outside [0, 1)."""
  real(name, value)
  if not 0 <= value < 1:
    raise ValueError(f"{name} must be in [0, 1), got {value!r}.")


def flag(name: str, value: Any) -> None:
  """Refuses what is not a bool."""
  if not isinstance(value, bool):
    raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}.")


def transformation(name: str, value: Any) -> None:
  """Refuses what is not an optax transformation."""
  if isinstance(value, optax.GradientTransformation):
    return
  hint, got = "", repr(value)
  if hasattr(value, "gradient_transformation"):
    hint = f"; pass {name}.gradient_transformation()"
  elif isinstance(getattr(value, "tx", None), optax.GradientTransformation):
    # Rounds of rtopk_jax.federated, whose state is that of their tx.
    got = f"a {type(value).__name__}"
    hint = "; its tx is one, for its state and bytes, and its round takes steps"
  raise TypeError(f"{name} must be an optax.GradientTransformation, got {got}{hint}.")


def init_and_update(name: str, value: Any) -> None:
  """Refuses what has not the two functions of a transformation, whatever its type is."""
  if not all(callable(getattr(value, function, None)) for function in ("init", "update")):
    transformation(name, value)


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
  """Refuses a value that is not among the choices."""
  choices = tuple(choices)
  if not isinstance(value, str) or value not in choices:
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def seed(value: Any) -> None:
  """Refuses what is neither an integer nor an integer scalar array."""
  wanted = "seed must be an integer or an integer scalar array"
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    if not jnp.issubdtype(value.dtype, jnp.integer) or value.shape:
      raise TypeError(f"{wanted}, got {value.dtype} of shape {value.shape}.")
  elif isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise TypeError(f"{wanted}, got {value!r} of type {type(value).__name__}.")


def floating_dtype(name: str, value: Any) -> np.dtype:
  """A floating point dtype; refused where it is another one, or none."""
  try:
    dtype = jnp.dtype(value)
  except (TypeError, ValueError):  # NumPy reads what looks like a record in its own way
    dtype = None
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(f'{name} must be a floating point dtype, such as "bfloat16", got {value!r}.')
  return dtype


def axis_name(value: Any, name: str = "axis_name") -> None:
  """Refuses what cannot name a mapped axis, or several different ones."""
  axes = value if isinstance(value, tuple) else (value,)
  if not axes or not all(isinstance(axis, str) for axis in axes):
    raise TypeError(
      f"{name} must be the name of a mapped axis (a string, or a tuple of strings), got {value!r}."
    )
  twice = [axis for i, axis in enumerate(axes) if axis in axes[:i]]
  if twice:
    raise ValueError(f"{name} must name each axis once, got {value!r} with {twice[0]!r} twice.")
