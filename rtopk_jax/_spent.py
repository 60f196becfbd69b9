"""Zeros in the memory of an array that nobody needs any more.

The mean of a sparse exchange is zeros to which a few numbers are added. On CPUs they take the longer to write, the
longer ago their memory was read, and a gradient has just been read when the memory of error feedback has been made of
it. XLA lets a result take an operand's place, but only where it depends on the operand, and then JAX takes it for
something that differs between workers, or from example to example of a batch, as the operand does.

So this is a primitive of its own: what comes out is zeros, the same everywhere, whatever goes in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


class Spent(NamedTuple):
  """An array that nobody needs any more once something has been made of it.

  Attributes:
    array: the array.
    made: what was made of it, of one entry at least.
  """

  array: jax.Array
  made: jax.Array


def zeros_over(spent: Spent) -> jax.Array:
  """Zeros of the array's shape, float32; in its memory where nobody needs it."""
  made = spent.made.reshape(-1)[0]
  return _zeros_over.bind(spent.array, made, shape=spent.array.shape)


def _choose(array: jax.Array, made: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
  """Zeros for which XLA waits until there is what was made of the array, and that may then take its place.

  They are chosen between the array's entries and zero by the sign of a number that is never negative. XLA does not
  know that, but the compiler of the loop that writes them does, and does not read the array.
  """
  del shape
  bits = lax.bitcast_convert_type(made.astype(jnp.float32), jnp.int32) & np.int32(0x7FFF_FFFF)
  return jnp.where(bits < 0, array.astype(jnp.float32), jnp.float32(0))


def _zeros(array: jax.Array, made: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
  del array, made
  return jnp.zeros(shape, jnp.float32)


def _batch(arguments, axes, *, shape):
  del axes
  return _zeros(*arguments, shape=shape), None


_zeros_over = Primitive("zeros_over")
_zeros_over.def_impl(_zeros)
_zeros_over.def_abstract_eval(lambda array, made, *, shape: ShapedArray(shape, jnp.float32))
batching.primitive_batchers[_zeros_over] = _batch
mlir.register_lowering(_zeros_over, mlir.lower_fun(_zeros, multiple_results=False))
mlir.register_lowering(_zeros_over, mlir.lower_fun(_choose, multiple_results=False), platform="cpu")
