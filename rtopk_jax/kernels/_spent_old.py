"""Zeros in the memory of an array that nobody needs any more.

The mean of a sparse exchange is zeros to which a few numbers are added. On a CPU it may have the memory of the gradient
as soon as the memory of error feedback has been made of that: a worker clears its gradient while it is still in a
cache, or makes zeros when all is done (``zeros_after``), and XLA lays them there. Zeros that depend on nothing could be
made before, and the gradient would be copied out of their way. But JAX takes what becomes of a gradient, or depends on
it, for something that differs between workers, or from example to example of a batch.

So there is a primitive for it: what comes out is zeros, the same everywhere.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def zeros_in(cleared: jax.Array) -> jax.Array:
  """An array of zeros, the same for all workers and all examples of a batch; in its memory on CPUs.

  Args:
    cleared: float32, on CPUs nothing but zeros. On other platforms it may be anything, and is not looked at.
  """
  return _zeros_in.bind(cleared)


def zeros_after(made: jax.Array) -> jax.Array:
  """Zeros of an array's shape in float32, for which a compiler waits until it has been made."""
  return jnp.broadcast_to(zero_of(made).astype(jnp.float32), made.shape)


def zero_of(made: jax.Array) -> jax.Array:
  """Zero, an int32, for which a compiler waits until an array of one entry at least has been made."""
  first = lax.slice(made, (0,) * made.ndim, (1,) * made.ndim).reshape(())
  bits = lax.bitcast_convert_type(first.astype(jnp.float32), jnp.int32)
  # It is never negative, which XLA does not know.
  return jnp.minimum(bits & np.int32(0x7FFF_FFFF), np.int32(0))


def _zeros(cleared: jax.Array) -> jax.Array:
  return jnp.zeros(cleared.shape, jnp.float32)


def _batch(arguments, axes):
  (cleared,), (axis,) = arguments, axes
  shape = [length for i, length in enumerate(cleared.shape) if i != axis]
  return jnp.zeros(shape, jnp.float32), None


_zeros_in = Primitive("zeros_in")
_zeros_in.def_impl(_zeros)
_zeros_in.def_abstract_eval(lambda cleared: ShapedArray(cleared.shape, jnp.float32))
batching.primitive_batchers[_zeros_in] = _batch
mlir.register_lowering(_zeros_in, mlir.lower_fun(_zeros, multiple_results=False))
mlir.register_lowering(_zeros_in, lambda context, cleared: [cleared], platform="cpu")
