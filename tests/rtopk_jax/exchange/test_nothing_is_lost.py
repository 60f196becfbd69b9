"""Whatever finds no room, is rounded, or is kept back by its owner: nothing of a gradient is lost."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness
from tests.rtopk_jax.exchange import meshes

AXIS = harness.AXIS

SHAPES = {"a": (30, 50), "b": (40, 20), "c": (7,)}

PROPERTY_SHAPES = {"a": (12, 22), "b": (44,)}


def _kept_and_sent(mode, tx, grads):
  """All that came in, and what went out and is kept, after each step."""
  updates, state = harness.run(mode, tx, grads)
  for name, g in grads.items():
    n = g.shape[1]
    came_in = np.cumsum(np.asarray(g, np.float64).sum(axis=1), axis=0)
    went_out = n * np.cumsum(np.asarray(updates[name], np.float64), axis=0)
    kept = np.asarray(state.residual[name], np.float64).sum(axis=1)
    yield name, came_in, went_out + kept, updates[name], state


OPTIONS = [
  {"collective": "reduce_scatter"},
  {"collective": rtopk_jax.ReduceScatter(slack=0), "scope": "leaf"},
  {"collective": rtopk_jax.ReduceScatter(0.2), "wire": rtopk_jax.Wire("float16", "elias_fano")},
  {"scope": rtopk_jax.Block(64), "wire": rtopk_jax.Wire("int8", "block")},
]


@pytest.mark.parametrize(
  ("mode", "options"),
  [
    # One in each mode; below all of them are drawn from.
    pytest.param(mode, options, marks=[] if i == j else pytest.mark.slow)
    for j, mode in enumerate(("vmap", "shard_map"))
    for i, options in enumerate(OPTIONS)
  ],
)
def test_nothing_is_lost(mode, options):
  grads = harness.gradients(SHAPES, 3, 4, powers=False)
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.05), AXIS, dense=False, **options)
  for name, came_in, found, _, _ in _kept_and_sent(mode, tx, grads):
    np.testing.assert_allclose(found, came_in, atol=1e-4, err_msg=name)


@dataclasses.dataclass(frozen=True)
class _Case:
  """An exchange whose steps are drawn: its options, how many workers over which axes, in which map."""

  options: dict
  workers: int = 3
  axis: str | tuple[str, str] = AXIS

  @functools.cached_property
  def tx(self):
    options = {"dense": False, **self.options}
    return rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1, 2), self.axis, **options)

  @functools.cached_property
  def step(self):
    """From gradients, state and number of the step to update and state, all workers' rows."""
    one = lambda g, state: self.tx.update(g, state)
    if isinstance(self.axis, str):
      axes = rtopk_jax.state_axes(self.tx, PROPERTY)
      return jax.jit(jax.vmap(one, in_axes=(0, axes), out_axes=(None, axes), axis_name=self.axis))
    specs = rtopk_jax.state_specs(self.tx, PROPERTY, self.axis)
    return jax.jit(
      jax.shard_map(
        lambda g, state: one(jax.tree.map(lambda x: x[0], g), state),
        mesh=meshes.of_two(self.axis),
        in_specs=(P(self.axis), specs),
        out_specs=(P(), specs),
      )
    )


PROPERTY = {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in PROPERTY_SHAPES.items()}

_wire = rtopk_jax.Wire

_to_owners = lambda slack, **options: {"collective": rtopk_jax.ReduceScatter(slack), **options}

# Each wire, slack from none to plenty, momentum of every kind, every number of workers.
CASES = {
  "float32": _Case(_to_owners(0)),
  "bfloat16": _Case(_to_owners(0, wire=_wire("bfloat16", "elias_fano"), momentum=0.9), 2),
  "float16": _Case(_to_owners(0.2, wire=_wire("float16"), scope="leaf"), 5),
  "int8": _Case(_to_owners(0.5, wire=_wire("int8", "elias_fano")), 4, ("x", "y")),
  "int4": _Case(_to_owners(2, wire=_wire("int4"), momentum=0.5, nesterov=True), 8),
  "int2": _Case(
    _to_owners(0, wire=_wire("int2", "elias_fano"), momentum=0.9, momentum_masking=False)
  ),
  "gathered": _Case({"wire": _wire("int4", "elias_fano"), "scope": "leaf", "momentum": 0.9}),
  "blocks": _Case(
    {"wire": _wire("int8", "block"), "scope": rtopk_jax.Block(16), "momentum": 0.5}, 2
  ),
}


def _drawn(seed, workers, kind, momentum):
  """Gradients, residuals and momenta: whole numbers or any, all workers' largest for one owner or not."""
  rng = np.random.default_rng(seed)
  whole = kind == "whole"
  scale = 1 if whole else 10.0 ** rng.integers(-3, 4)

  def rows(shape):
    x = rng.integers(-8, 9, (workers, *shape)) if whole else rng.standard_normal((workers, *shape))
    if kind == "concentrated":
      x = x * np.where(
        np.arange(math.prod(shape)) // 32 % workers == seed % workers, 64, 1
      ).reshape(shape)
    return (scale * x).astype(np.float32)

  trees = [{name: rows(shape) for name, shape in PROPERTY_SHAPES.items()} for _ in range(3)]
  return trees if momentum else [*trees[:2], ()]


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=[] if x in ("float32", "int8", "blocks") else pytest.mark.slow)
    for x in CASES
  ],
)
@settings(max_examples=12)
@given(
  st.integers(0, 2**31 - 1),
  st.integers(0, 1000),
  st.sampled_from(["whole", "any", "concentrated"]),
  st.booleans(),
)
def test_nothing_is_lost_on_either_leg(name, seed, count, kind, has_residual):
  """Whatever finds no room, is rounded, or is kept back by its owner."""
  case = CASES[name]
  m = case.options.get("momentum", 0)
  g, e, u = _drawn(seed, case.workers, kind, m)
  e = jax.tree.map(lambda x: x * np.float32(has_residual), e)
  state = rtopk_jax.SparseExchangeState(np.int32(count), e, u, _no_metrics())
  updates, after = case.step(g, state)
  residual_square = square = 0.0
  for leaf in g:
    trace = g[leaf] + (m * u[leaf] if m else 0)
    v = e[leaf] + (g[leaf] + m * trace if case.options.get("nesterov") else trace)
    update, kept = np.asarray(updates[leaf], np.float64), np.asarray(after.residual[leaf])
    total = case.workers * update + kept.sum(axis=0, dtype=np.float64)
    atol = 2e-6 * case.workers * max(np.abs(v).max(), np.abs(kept).max())
    np.testing.assert_allclose(total, v.sum(axis=0, dtype=np.float64), rtol=0, atol=atol)
    if m:
      left, right = np.asarray(after.momentum[leaf]), np.asarray(trace)
      stopped = (left == 0) & (right != 0)
      np.testing.assert_allclose(left, np.where(stopped, 0, right), rtol=1e-5, atol=atol)
      assert np.any(stopped) == case.options.get("momentum_masking", True)
    residual_square += np.sum(np.square(kept, dtype=np.float64)) / case.workers
    square += np.sum(np.square(v, dtype=np.float64)) / case.workers
  np.testing.assert_allclose(
    after.metrics.residual_square, residual_square, rtol=0, atol=1e-5 * square
  )


@settings(max_examples=30)
@given(st.integers(0, 2**31 - 1), st.booleans(), st.booleans())
def test_nothing_is_lost_of_whole_numbers_bit_for_bit(seed, concentrated, has_residual):
  """All entries of all workers for the same owner, as hard as it gets without slack."""
  case = CASES["float32"]
  g, e, _ = _drawn(seed, 3, "whole", 0)
  e = jax.tree.map(lambda x: x * np.float32(has_residual), e)
  if concentrated:
    g = {
      name: x * (np.arange(x[0].size) // 32 % 3 == seed % 3).reshape(x[0].shape) * np.float32(64)
      for name, x in g.items()
    }
  state = rtopk_jax.SparseExchangeState(np.int32(0), e, (), _no_metrics())
  updates, after = case.step(g, state)
  changed = 0
  for leaf in g:
    # Whole numbers: every sum is exact.
    total = np.rint(3 * np.asarray(updates[leaf], np.float64)) + np.asarray(
      after.residual[leaf]
    ).sum(axis=0)
    np.testing.assert_array_equal(total, (g[leaf] + e[leaf]).sum(axis=0))
    changed += np.count_nonzero(updates[leaf])
  # An owner sends on a third of the 31 that a worker selects of 308.
  assert changed <= 3 * 11


def _no_metrics():
  zero = np.float32(0)
  return rtopk_jax.ExchangeMetrics(zero, zero, zero, zero, np.int32(0))
