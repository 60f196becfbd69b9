"""Zeros that are made late, so that they may have the memory of an array that nobody needs any more.

The mean of a sparse exchange is zeros to which a few numbers are added. It may have the memory of the gradient as
soon as the memory of error feedback has been made of that. Zeros that depend on nothing could be made before, and
the gradient would be copied out of their way, which takes longer than the rest of the update.

JAX takes what depends on a worker's array for something that differs between workers, or from example to example
of a batch. Zeros do not: so there is a primitive for them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def zeros_after(made: jax.Array) -> jax.Array:
  """Zeros of an array's shape in float32, the same on all workers, for which a compiler waits until it is made."""
  return _zeros_after.bind(made)


def _zeros(made: jax.Array) -> jax.Array:
  first = lax.slice(made, (0,) * made.ndim, (1,) * made.ndim).reshape(())
  bits = lax.bitcast_convert_type(first.astype(jnp.float32), jnp.int32)
  # It is never negative, which XLA does not know.
  zero = jnp.minimum(bits & np.int32(0x7FFF_FFFF), np.int32(0))
  return jnp.broadcast_to(zero.astype(jnp.float32), made.shape)


def _batch(arguments, axes):
  (made,), (axis,) = arguments, axes
  return zeros_after(lax.index_in_dim(made, 0, axis, keepdims=False)), None


_zeros_after = Primitive("zeros_after")
_zeros_after.def_impl(_zeros)
_zeros_after.def_abstract_eval(lambda made: ShapedArray(made.shape, jnp.float32))
batching.primitive_batchers[_zeros_after] = _batch
mlir.register_lowering(_zeros_after, mlir.lower_fun(_zeros, multiple_results=False))
