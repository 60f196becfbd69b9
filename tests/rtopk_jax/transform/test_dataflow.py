"""What depends on what in a traced function, along which mapped axes."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from rtopk_jax.transform import _dataflow

OWN, NONE, A, B, BOTH = (
  frozenset({"a"}),
  frozenset(),
  frozenset({"a"}),
  frozenset({"b"}),
  frozenset({"a", "b"}),
)


def flow(function, *inputs, shape=(3,)):
  """The flow through a function of arrays that differ along some axes."""
  arguments = [jnp.ones(shape)] * len(inputs)
  jaxpr = jax.make_jaxpr(function, axis_env=[("a", 2), ("b", 2)])(*arguments)
  return _dataflow.trace_flow(jaxpr, inputs)


def loop(x, y):
  return lax.fori_loop(0, 3, lambda i, state: (state[1], state[0]), (x, y))


def scan(x, y):
  return lax.scan(lambda carry, row: (carry + row, carry), x[0], y)


CASES = {
  "arithmetic": (lambda x, y: (x + y, x, 2 * y), (A, NONE), [A, A, NONE]),
  "zeros": (lambda x: jnp.zeros_like(x), (A,), [NONE]),
  "sum": (lambda x: lax.psum(x, "a"), (A,), [NONE]),
  "mean": (lambda x: lax.pmean(x, "a"), (A,), [NONE]),
  "extremum": (lambda x: lax.pmax(x, "a"), (A,), [NONE]),
  "gather": (lambda x: lax.all_gather(x, "a"), (A,), [NONE]),
  "one of two": (lambda x: lax.psum(x, "a"), (BOTH,), [B]),
  "both": (lambda x: lax.psum(x, ("a", "b")), (BOTH,), [NONE]),
  "in groups": (lambda x: lax.psum(x, "a", axis_index_groups=[[0], [1]]), (A,), [A]),
  "permuted": (lambda x: lax.ppermute(x, "a", [(0, 1), (1, 0)]), (A,), [A]),
  "the worker's number": (lambda x: x + lax.axis_index("b").astype(x.dtype), (A,), [BOTH]),
  "jit": (lambda x, y: jax.jit(lambda a, b: (a, b))(x, y), (A, NONE), [A, NONE]),
  "checkpoint": (lambda x, y: jax.checkpoint(lambda a, b: (a * 2, b))(x, y), (A, NONE), [A, NONE]),
  "custom gradient": (lambda x, y: (jax.nn.relu(x), jax.nn.relu(y)), (A, NONE), [A, NONE]),
  "branch": (lambda x, y: lax.cond(True, lambda: (x, y), lambda: (y, y)), (A, NONE), [A, NONE]),
  "branch taken by one": (
    lambda x, y: lax.cond(x[0] > 0, lambda: y, lambda: 2 * y),
    (A, NONE),
    [A],
  ),
  "choice": (lambda x, y: jnp.where(y > 0, y, x), (A, NONE), [A]),
  "loop": (loop, (A, NONE), [A, A]),
  "loop of as many turns as one likes": (
    lambda x, y: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + x[0], 2 * s[1]), (0.0, y)),
    (A, NONE),
    [A, A],
  ),
  "scan": (scan, (NONE, A), [A, A]),
  "scan of what is shared": (scan, (NONE, NONE), [NONE, NONE]),
}


@pytest.mark.parametrize("name", CASES)
def test_flow(name):
  function, inputs, outputs = CASES[name]
  found = flow(function, *inputs)
  assert found.outputs == outputs
  assert found.blocked == NONE


BLOCKED = {
  "branch": (
    lambda x: lax.cond(x[0] > 0, lambda: lax.psum(x, "a"), lambda: x),
    A,
  ),
  "branch that all take": (
    lambda x: lax.cond(lax.pmax(x[0], "a") > 0, lambda: lax.psum(x, "a"), lambda: x),
    NONE,
  ),
  "loop": (
    lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: s + lax.psum(x, "a"), x),
    A,
  ),
  "in a loop's condition": (
    lambda x: lax.while_loop(lambda s: lax.psum(s[0], "a") < x[0], lambda s: s + 1, x),
    A,
  ),
  "deep within": (
    lambda x: jax.jit(
      lambda z: lax.scan(
        lambda c, _: (lax.cond(z[0] > c, lambda: lax.psum(c, "a"), lambda: c), None), 0.0, None, 2
      )[0]
    )(x),
    A,
  ),
  "over another axis": (
    lambda x: lax.cond(x[0] > 0, lambda: lax.psum(x, "b"), lambda: x),
    NONE,
  ),
}


@pytest.mark.parametrize("name", BLOCKED)
def test_collectives_that_some_would_wait_for(name):
  function, blocked = BLOCKED[name]
  assert flow(function, OWN).blocked == blocked
