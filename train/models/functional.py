"""Networks as functions of trees of arrays, which is what transformations and mapped axes want."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Make = Callable[[nnx.Rngs], nnx.Module]


def init(make: Make, key: jax.Array, *kinds: type[nnx.Variable]) -> tuple[Any, ...]:
  """The initial variables of a network.

  Args:
    make: makes the network.
    key: of its weights.
    kinds: of variables; together all that it has.

  Returns:
    A tree of arrays for each kind.
  """
  _, *states = nnx.split(make(nnx.Rngs(key)), *kinds)
  return tuple(nnx.to_pure_dict(state) for state in states)


def rebuild(make: Make, **variables: Any) -> Any:
  """The network that has these variables.

  Args:
    make: makes the network.
    variables: trees of arrays by the name of their kind, such as ``Param``; together all that it has.

  Returns:
    A network of its own, whose changes nobody else sees.
  """
  kinds = [getattr(nnx, kind) for kind in variables]
  graphdef, *states = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), *kinds)
  for state, values in zip(states, variables.values(), strict=True):
    nnx.replace_by_pure_dict(state, values)
  return nnx.merge(graphdef, *states, copy=True)
