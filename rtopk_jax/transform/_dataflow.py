"""Which results of a traced function differ between workers: the flow of data through a jaxpr.

A value differs along a mapped axis when it is computed from one that does. A sum, an extremum or a gather
over the axis ends that. Where a loop or a branch is taken by a value that differs, so does all that comes
out of it; and a collective in there is one that workers wait for in vain.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core

# The mapped axes that a value differs along.
Axes = frozenset[str]

# Collectives whose result is the same on all members of an axis.
_AGREE = ("psum", "pmax", "pmin", "pmean", "all_gather", "pbroadcast")


class Flow(NamedTuple):
  """What depends on what.

  Attributes:
    outputs: the axes that each result differs along.
    collectives: the axes that there is a collective over.
    blocked: the axes of collectives under a condition that differs along them.
  """

  outputs: list[Axes]
  collectives: Axes
  blocked: Axes


def trace_flow(jaxpr: core.ClosedJaxpr, inputs: Sequence[Axes]) -> Flow:
  """The flow of data through a function.

  Args:
    jaxpr: the function.
    inputs: the axes that each argument differs along.

  Returns:
    The ``Flow``.
  """
  return _trace(jaxpr.jaxpr, inputs)


def _trace(jaxpr: core.Jaxpr, inputs: Sequence[Axes]) -> Flow:
  nothing: Axes = frozenset()
  known: dict[Any, Axes] = dict.fromkeys(jaxpr.constvars, nothing)
  known.update(zip(jaxpr.invars, inputs, strict=True))
  read = lambda atom: nothing if isinstance(atom, core.Literal) else known[atom]
  collectives = blocked = nothing
  for equation in jaxpr.eqns:
    flow = _equation(equation, [read(atom) for atom in equation.invars])
    known.update(zip(equation.outvars, flow.outputs, strict=True))
    collectives |= flow.collectives
    blocked |= flow.blocked
  return Flow([read(atom) for atom in jaxpr.outvars], collectives, blocked)


def _equation(equation: core.JaxprEqn, inputs: list[Axes]) -> Flow:
  name, params = equation.primitive.name, equation.params
  if name in _STRUCTURED:
    return _STRUCTURED[name](params, inputs)
  inner = [params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params]
  if len(inner) == 1:
    body = _open(inner[0])
    if len(body.invars) == len(inputs) and len(body.outvars) == len(equation.outvars):
      return _trace(body, inputs)
  found = frozenset().union(*inputs)
  axes = _axes_of(params)
  if name == "axis_index":
    return Flow([found | axes], frozenset(), frozenset())
  if name.startswith(_AGREE) and params.get("axis_index_groups") is None:
    found -= axes
  return Flow([found] * len(equation.outvars), axes, frozenset())


def _axes_of(params: dict[str, Any]) -> Axes:
  """The named axes that a collective is over."""
  axes = params.get("axes", params.get("axis_name", ()))
  axes = axes if isinstance(axes, tuple | list | frozenset | set) else (axes,)
  return frozenset(axis for axis in axes if isinstance(axis, str))


def _open(jaxpr: Any) -> core.Jaxpr:
  return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _branches(params: dict[str, Any], inputs: list[Axes]) -> Flow:
  which, *operands = inputs
  flows = [_trace(_open(branch), operands) for branch in params["branches"]]
  outputs = [which.union(*each) for each in zip(*(flow.outputs for flow in flows), strict=True)]
  collectives = frozenset().union(*(flow.collectives for flow in flows))
  blocked = frozenset().union(*(flow.blocked for flow in flows))
  return Flow(outputs, collectives, blocked | (collectives & which))


def _while(params: dict[str, Any], inputs: list[Axes]) -> Flow:
  of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
  before = inputs[:of_condition]
  within, start = inputs[of_condition:][:of_body], inputs[of_condition + of_body :]
  condition, body = _open(params["cond_jaxpr"]), _open(params["body_jaxpr"])

  def turn(state: list[Axes]) -> tuple[Flow, Axes]:
    asked, done = _trace(condition, [*before, *state]), _trace(body, [*within, *state])
    which = asked.outputs[0]
    collectives = asked.collectives | done.collectives
    blocked = asked.blocked | done.blocked | (collectives & which)
    return Flow(done.outputs, collectives, blocked), which

  state, (flow, which) = _fixed_point(turn, start)
  return flow._replace(outputs=[axes | which for axes in state])


def _scan(params: dict[str, Any], inputs: list[Axes]) -> Flow:
  consts, carry = params["num_consts"], params["num_carry"]
  fixed, start, rows = inputs[:consts], inputs[consts:][:carry], inputs[consts + carry :]
  body = _open(params["jaxpr"])

  def turn(state: list[Axes]) -> tuple[Flow, Flow]:
    flow = _trace(body, [*fixed, *state, *rows])
    return flow._replace(outputs=flow.outputs[:carry]), flow

  state, (_, flow) = _fixed_point(turn, start)
  return flow._replace(outputs=[*state, *flow.outputs[carry:]])


def _fixed_point(
  turn: Callable[[list[Axes]], tuple[Flow, Any]], start: list[Axes]
) -> tuple[list[Axes], tuple[Flow, Any]]:
  """The state of a loop after any number of turns: where another turn changes nothing."""
  state = start
  while True:
    result = turn(state)
    after = [old | new for old, new in zip(state, result[0].outputs, strict=True)]
    if after == state:
      return state, result
    state = after


_STRUCTURED = {"cond": _branches, "while": _while, "scan": _scan}
