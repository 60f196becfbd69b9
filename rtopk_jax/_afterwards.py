"""Zeros that are made when something else has been.

The mean of a sparse exchange is zeros to which a few numbers are added, and XLA makes it in the memory of the gradient
if nobody needs that any more. Zeros could be made at any time, though, and if a compiler for CPUs puts them before the
memory of error feedback, which is made of the gradient, it copies one or the other. So they are made to depend on it.
But JAX takes what depends on a worker's memory for something that differs between workers, or from example to example
of a batch.

So this is a primitive of its own: what comes out is zeros, the same everywhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def zeros_after(made: jax.Array, size: int) -> jax.Array:
  """Zeros, the same for all workers and all examples of a batch; on CPUs when an array has been made.

  Args:
    made: the array, of one entry at least.
    size: how many zeros.

  Returns:
    Shape (size,), float32.
  """
  first = lax.slice(made, (0,) * made.ndim, (1,) * made.ndim)
  return _zeros_after.bind(first, size=size)


def _at_once(first: jax.Array, *, size: int) -> jax.Array:
  del first
  return jnp.zeros(size, jnp.float32)


def _when_known(first: jax.Array, *, size: int) -> jax.Array:
  bits = lax.bitcast_convert_type(first.astype(jnp.float32), jnp.int32)
  # It is never negative, which XLA does not know.
  zero = jnp.min(bits & np.int32(0x7FFF_FFFF), initial=0)
  return jnp.broadcast_to(zero.astype(jnp.float32), (size,))


_zeros_after = Primitive("zeros_after")
_zeros_after.def_impl(_at_once)
_zeros_after.def_abstract_eval(lambda first, *, size: ShapedArray((size,), jnp.float32))
batching.primitive_batchers[_zeros_after] = lambda arguments, axes, *, size: (
  _zeros_after.bind(*arguments, size=size),
  None,
)
mlir.register_lowering(_zeros_after, mlir.lower_fun(_at_once, multiple_results=False))
mlir.register_lowering(
  _zeros_after, mlir.lower_fun(_when_known, multiple_results=False), platform="cpu"
)
