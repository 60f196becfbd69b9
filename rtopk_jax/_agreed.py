"""A value that is the same on all workers although no type says so.

What was passed from worker to worker is each one's own by its type, even when all have the same in the end.
JAX has collectives that say of their result that it is the same, but no way to say it of a value: here is one.
"""

from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_agreed = Primitive("agreed")


def agreed(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """The value, typed as the same along some mapped axes; under ``vmap`` the first worker's is taken for all."""
  return _agreed.bind(x, axes=axes)


@_agreed.def_impl
def _run(x: jax.Array, *, axes: tuple[str, ...]) -> jax.Array:
  del axes
  return x


@_agreed.def_abstract_eval
def _type(x: Any, *, axes: tuple[str, ...]) -> Any:
  kind = x.manual_axis_type
  return x.update(manual_axis_type=kind.update(varying=frozenset(kind.varying) - set(axes)))


def _batch(axis: Any, args: Any, dims: Any, *, axes: tuple[str, ...]) -> tuple[jax.Array, Any]:
  (x,), (dim,) = args, dims
  if dim is not None and axis.name in axes:
    x, dim = lax.index_in_dim(x, 0, dim, keepdims=False), None
  return agreed(x, axes), dim


batching.fancy_primitive_batchers[_agreed] = _batch
mlir.register_lowering(_agreed, lambda context, x, *, axes: [x])
