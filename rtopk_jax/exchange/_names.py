"""The collectives that go by a name."""

from typing import Any

from rtopk_jax import _checks
from rtopk_jax.exchange._all_gather import AllGather
from rtopk_jax.exchange._collective import Collective
from rtopk_jax.exchange._reduce_scatter import ReduceScatter

NAMES = {"all_gather": AllGather, "reduce_scatter": ReduceScatter}


def resolve(collective: Any, argument: str = "collective") -> Collective:
  """The collective that a name or an object stands for; errors name the argument."""
  if isinstance(collective, str):
    _checks.one_of(argument, collective, NAMES)
    return NAMES[collective]()
  if not isinstance(collective, Collective):
    raise TypeError(
      f"{argument} must be a rtopk_jax.Collective, such as AllGather(), or the name of one, "
      f"{' or '.join(map(repr, NAMES))}, got {collective!r}."
    )
  return collective
