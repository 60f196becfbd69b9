"""Momentum in the exchange and again after it: a warning where a chain's state shows it."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS


def sparse(**options):
  return rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, dense=False, **options)


def params(name):
  """Each test's own: the warning comes once for a structure."""
  return {name: jnp.zeros((40, 30))}


TWICE = {
  "sparse": lambda: optax.chain(sparse(momentum=0.9), optax.sgd(0.1, momentum=0.9)),
  "dense": lambda: optax.chain(
    rtopk_jax.dense_exchange(AXIS, momentum=0.9), optax.trace(0.9), optax.scale(-0.1)
  ),
  "within": lambda: optax.chain(
    optax.chain(optax.clip(1.0), sparse(momentum=0.5)), optax.masked(optax.trace(0.9), True)
  ),
}


@pytest.mark.parametrize("name", TWICE)
def test_it_is_said_once(name):
  tx, mesh, p = TWICE[name](), harness.mesh(2), params(f"twice {name}")
  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    rtopk_jax.init(tx, p, mesh, AXIS)
    rtopk_jax.state_specs(tx, p, AXIS)
    state = rtopk_jax.init(tx, p, mesh, AXIS)
    step = rtopk_jax.make_train_step(lambda p, x: sum(map(jnp.sum, p.values())), tx, mesh, AXIS)
    step(p, state, jnp.zeros((2, 1)))
  assert [(x.category, x.filename) for x in found] == [(UserWarning, __file__)]
  assert "optax.trace after it has momentum again" in str(found[0].message)


ONCE = {
  "exchange": lambda: optax.chain(sparse(momentum=0.9), optax.sgd(0.1)),
  "optimizer": lambda: optax.chain(sparse(), optax.sgd(0.1, momentum=0.9)),
  "before": lambda: optax.chain(optax.trace(0.9), sparse()),
  "decay": lambda: rtopk_jax.rtopk_sgd(0.1, 0.1, AXIS, weight_decay=0.1, momentum=0.9),
  "apart": lambda: optax.partition(
    {"a": sparse(momentum=0.9), "b": optax.chain(sparse(), optax.sgd(0.1, momentum=0.9))},
    lambda p: jax.tree.map(lambda _: "a", p),
  ),
}


@pytest.mark.parametrize("name", ONCE)
def test_momentum_once_is_as_it_should_be(name):
  # Warnings are errors.
  rtopk_jax.init(ONCE[name](), params(f"once {name}"), harness.mesh(2), AXIS)
