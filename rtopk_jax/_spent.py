"""Zeros in the memory of an array that nobody needs any more.

The mean of a sparse exchange is zeros to which a few numbers are added. A worker on a CPU clears its gradient as soon as
the memory of error feedback has been made of it, while it is still in a cache. But JAX takes what becomes of a gradient
for something that differs between workers, or from example to example of a batch, as the gradient does.

So this is a primitive of its own: what comes out is zeros, the same everywhere.
"""

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def zeros_in(cleared: jax.Array) -> jax.Array:
  """An array of zeros, the same for all workers and all examples of a batch; in its memory on CPUs.

  Args:
    cleared: float32, on CPUs nothing but zeros. On other platforms it may be anything, and is not looked at.
  """
  return _zeros_in.bind(cleared)


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
