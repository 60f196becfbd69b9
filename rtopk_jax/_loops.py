"""Loops whose counter is an int32 array, whatever JAX's switches say."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# The name of what hardly ever runs, for those who count what a compiled program does.
SELDOM = "seldom"


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


def seldom(is_needed: Callable[[Any], Any], turn: Callable[[Any], Any], start: Any) -> Any:
  """``turn`` of ``turn`` of … ``start`` as long as it is needed, which it hardly ever is."""
  with jax.named_scope(SELDOM):
    return lax.while_loop(is_needed, turn, start)
