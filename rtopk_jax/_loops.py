"""Loops whose counter is an int32 array, whatever JAX's switches say."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def fori_loop(
  lower: int | jax.Array,
  upper: int | jax.Array,
  body: Callable[[jax.Array, Any], Any],
  start: Any,
  *,
  unroll: bool = False,
) -> Any:
  """``lax.fori_loop``; under ``jax.disable_jit`` that one counts with Python integers."""
  turn = lambda i, state: body(jnp.asarray(i, jnp.int32), state)
  return lax.fori_loop(lower, upper, turn, start, unroll=unroll or None)
