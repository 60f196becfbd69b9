"""Selectors of others: the same messages as the library's where the rule is the same, and refused by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS
SHAPES = {"a": (12, 22), "b": (100,), "c": (3,), "d": (12, 22)}


@dataclasses.dataclass(frozen=True)
class Top(rtopk_jax.Selector):
  """Top-k in the order of magnitudes."""

  density: float

  def entries(self, size, num_workers=None):
    return max(1, round(self.density * size))

  def __call__(self, vector, key, num_workers=None):
    _, indices = jax.lax.top_k(jnp.abs(vector), self.entries(vector.size))
    return rtopk_jax.SparseSlices(vector[indices], indices, vector.size)


OPTIONS = [
  {"momentum": 0.5},
  {"scope": "leaf", "wire": rtopk_jax.Wire("int8", "elias_fano")},
  {"scope": rtopk_jax.Block(16), "wire": rtopk_jax.Wire("float32", "block")},
  {"scope": rtopk_jax.Block(16), "collective": "reduce_scatter", "momentum": 0.5},
  {"collective": rtopk_jax.Auto("1Gbit/s"), "error_feedback": False, "average": "senders"},
  {"clip_norm": 1.0, "memory_dtype": jnp.bfloat16, "nesterov": True, "momentum": 0.5},
]


@pytest.mark.parametrize(
  ("mode", "options"),
  [
    # The first four in one mode each; all in both in `make test-slow`.
    pytest.param(
      mode,
      options,
      marks=[] if mode == ("vmap", "shard_map")[i % 2] and i < 4 else pytest.mark.slow,
    )
    for i, options in enumerate(OPTIONS)
    for mode in ("vmap", "shard_map")
  ],
)
def test_the_same_rule_is_the_same_exchange(options, mode):
  # Of equal magnitudes in any order the lowest index is first.
  grads = harness.gradients(SHAPES, 2, 3)
  make = lambda selector: rtopk_jax.sparse_exchange(selector, AXIS, dense=False, **options)
  updates, state = harness.run(mode, make(Top(0.1)), grads)
  expected, after = harness.run(mode, make(rtopk_jax.top_k(0.1)), grads)
  jax.tree.map(np.testing.assert_array_equal, (updates, state), (expected, after))
  params = jax.tree.map(lambda g: jax.ShapeDtypeStruct(g.shape[2:], g.dtype), grads)
  bytes_of = lambda tx: rtopk_jax.wire_bytes(tx, params, 3)
  assert bytes_of(make(Top(0.1))) == bytes_of(make(rtopk_jax.top_k(0.1)))


class Signs(Top):
  """Of the k largest, signs times a power of two."""

  def __call__(self, vector, key, num_workers=None):
    slices = super().__call__(vector, key)
    return dataclasses.replace(slices, values=4 * jnp.sign(slices.values))


@pytest.mark.parametrize("collective", ["all_gather", "reduce_scatter"])
def test_what_values_leave_out_stays_in_the_memory(collective):
  grads = harness.gradients(SHAPES, 1, 4)
  tx = rtopk_jax.sparse_exchange(Signs(0.1), AXIS, dense=False, collective=collective)
  updates, state = harness.run("vmap", tx, grads)
  if collective == "all_gather":
    values = np.concatenate([np.unique(4 * x) for x in updates.values()])
    assert set(values) <= {4.0 * i for i in range(-4, 5)}
  for name, g in grads.items():
    total = 4 * updates[name][0] + state.residual[name][0].sum(axis=0)
    np.testing.assert_array_equal(total, g[0].sum(axis=0))
  square = sum(np.sum(np.square(x[0])) for x in jax.tree.leaves(state.residual)) / 4
  np.testing.assert_allclose(state.metrics.residual_square[0], square, rtol=1e-4)


class Random(Top):
  """A random k, whose values are scaled."""

  unbiased = True

  def __call__(self, vector, key, num_workers=None):
    k = self.entries(vector.size)
    indices = jax.random.permutation(key, vector.size)[:k]
    return rtopk_jax.SparseSlices(vector[indices] * (vector.size / k), indices, vector.size)


def test_workers_leaves_and_blocks_draw_independently():
  grads = {name: np.ones((2, 2, 64), np.float32) for name in "abc"}
  options = {"dense": False, "error_feedback": False, "average": "sum", "scope": "leaf"}
  tx = rtopk_jax.sparse_exchange(Random(0.5), AXIS, **options)
  updates, _ = harness.run("vmap", tx, grads)
  drawn = [tuple(x) for leaf in updates.values() for x in leaf]
  assert len(set(drawn)) == 6
  # Both send twice 32 times 2; at some entries one of them, at some both.
  assert {x for row in drawn for x in row} == {0.0, 2.0, 4.0}
  assert all(sum(row) == 2 * 64 for row in drawn)


def test_scaled_values_and_a_memory_are_refused():
  with pytest.raises(ValueError, match="unbiased=True"):
    rtopk_jax.sparse_exchange(Random(0.5), AXIS)


class Returns(Top):
  """Whatever it is told to."""

  def __init__(self, result, k=2):
    object.__setattr__(self, "density", 0.5)
    object.__setattr__(self, "result", result)
    object.__setattr__(self, "k", k)

  def __repr__(self):
    return "Returns()"

  def entries(self, size, num_workers=None):
    return self.k

  def __call__(self, vector, key, num_workers=None):
    return self.result(vector)


_slices = rtopk_jax.SparseSlices


@pytest.mark.parametrize(
  ("selector", "error", "message"),
  [
    (Returns(lambda v: v), TypeError, r"Returns\(\) must return rtopk_jax.SparseSlices, got"),
    (
      Returns(lambda v: _slices(v[:3], jnp.arange(3), 20)),
      TypeError,
      r"Returns\(\) must return 2 values and indices of 20 entries.*values of shape \(3,\)",
    ),
    (
      Returns(lambda v: _slices(v[:2], jnp.arange(2), 21)),
      TypeError,
      r"must return 2 values and indices of 20 entries.*size 21",
    ),
    (Returns(None, k=0), ValueError, r"entries of Returns\(\) must be in \[1, 20\] .*got 0"),
    (Returns(None, k=21), ValueError, r"must be in \[1, 20\] of 20 entries, got 21"),
    (Returns(None, k=2.0), TypeError, r"entries of Returns\(\) must return an integer, got 2\.0"),
    (Returns(None, k=True), TypeError, "must return an integer, got True"),
  ],
)
def test_what_a_selector_must_not_return(selector, error, message):
  tx = rtopk_jax.sparse_exchange(selector, AXIS, dense=False)
  with pytest.raises(error, match=message):
    rtopk_jax.wire_bytes(tx, jnp.ones(20), 2)


def test_a_selector_has_to_say_both():
  class Half(rtopk_jax.Selector):
    def entries(self, size, num_workers=None):
      return 1

  with pytest.raises(TypeError, match="abstract method"):
    Half()


def test_slices_that_count_and_those_that_do_not():
  values, indices = jnp.array([3.0, 1.0, 2.0]), jnp.array([7, 0, 4])
  dense = lambda count: rtopk_jax.SparseSlices(values, indices, 8, count).to_dense()
  np.testing.assert_array_equal(dense(None), [1, 0, 0, 0, 2, 0, 0, 3])
  np.testing.assert_array_equal(dense(jnp.int32(1)), [0, 0, 0, 0, 0, 0, 0, 3])
  np.testing.assert_array_equal(jax.jit(dense)(jnp.int32(0)), np.zeros(8))
