"""Arithmetic in 32 bits, whatever ``jax_enable_x64`` says, and bfloat16 moved as bits.

Under ``jax_enable_x64`` JAX makes 64-bit integers of Python's, of sums and of counters. The exchange
is defined in float32 and int32, and so are its messages. It is traced with the switch off, so that the
same program comes out either way.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

_F = TypeVar("_F", bound=Callable[..., Any])


def in_32_bits(function: _F) -> _F:
  """A function that is traced with ``jax_enable_x64`` off."""

  @functools.wraps(function)
  def narrow(*args: Any, **kwargs: Any) -> Any:
    with jax.enable_x64(False):
      return function(*args, **kwargs)

  return cast(_F, narrow)


def as_bits(move: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
  """``move(*arrays)``, for bfloat16 of their bits: compilers for CPUs would convert all of them to float32 and back.

  Args:
    move: puts entries of arrays in other places, and computes nothing of them.
    arrays: of one dtype.
  """
  if arrays[0].dtype != jnp.bfloat16:
    return move(*arrays)
  bits = move(*(lax.bitcast_convert_type(x, jnp.uint16) for x in arrays))
  return lax.bitcast_convert_type(bits, jnp.bfloat16)
