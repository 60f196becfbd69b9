"""A warning where an exchange has momentum, and the optimizer after it has momentum again."""

import sys
import warnings
from types import FrameType
from typing import Any

import jax
import optax

_TEXT = (
  "the exchange has momentum, and optax.trace after it has momentum again: each gradient would be multiplied by both, "
  "1/(1 − m) twice. With momentum= in the exchange, follow it by an optimizer without, such as optax.sgd(0.1), or use "
  "rtopk_jax.rtopk_sgd."
)

# Whose functions may stand between the user's line and the warning.
_ON_THE_WAY = ("rtopk_jax", "jax", "optax", "contextlib")

_warned: set[Any] = set()


def warn_of_momentum_twice(state: Any) -> None:
  """Warns where a chain's state has momentum of an exchange, and after that ``optax.trace``'s.

  Once for all states of a structure: a transformation and what wraps it are looked at one after the other.
  """
  structure = jax.tree.structure(state)
  if structure not in _warned and _is_twice(state):
    _warned.add(structure)
    warnings.warn(_TEXT, UserWarning, stacklevel=_users_level())


def _users_level() -> int:
  """The ``stacklevel`` of a warning of the function that asks, at the line of the user's that led there."""
  frame, level = sys._getframe(1), 1
  while frame.f_back is not None and _package(frame) in _ON_THE_WAY:
    frame, level = frame.f_back, level + 1
  return level


def _package(frame: FrameType) -> str:
  return str(frame.f_globals.get("__name__")).partition(".")[0]


def _is_twice(state: Any) -> bool:
  # The state of a chain is a plain tuple, and what it does comes in its order.
  if type(state) is tuple:
    exchanged = False
    for part in state:
      if exchanged and _has(part, _is_trace):
        return True
      exchanged |= _has(part, _is_exchange)
  return any(_is_twice(part) for part in _parts(state))


def _parts(state: Any) -> list[Any]:
  """What a state is made of, one level down."""
  leaves = jax.tree.leaves(state, is_leaf=lambda x: x is not state)
  return [x for x in leaves if x is not state]


def _has(state: Any, is_wanted: Any) -> bool:
  return any(map(is_wanted, jax.tree.leaves(state, is_leaf=is_wanted)))


def _is_exchange(x: Any) -> bool:
  # Local momentum of a sparse exchange, and the shared one of a dense exchange.
  is_exchange = getattr(type(x), "per_worker", None) is not None and hasattr(x, "momentum")
  return is_exchange and bool(jax.tree.leaves(x.momentum))


def _is_trace(x: Any) -> bool:
  return type(x) is optax.TraceState
