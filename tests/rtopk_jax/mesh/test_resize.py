"""Another number of workers: the mean over them stays, by the formula in plain NumPy."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS
PARAMS = {"w": np.zeros((3, 2), np.float32), "b": np.zeros(2, np.float32)}
# Momentum on both sides of the exchange has state on both.
pytestmark = pytest.mark.filterwarnings("ignore:the exchange has momentum")
EXCHANGE = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.5), AXIS, momentum=0.9, dense=False)


def weights(old: int, new: int) -> np.ndarray:
  """The formula, in fractions: row j is what new worker j takes of each old one."""
  length = lambda a, b, c, d: max(Fraction(0), min(b, d) - max(a, c))
  return np.array(
    [
      [
        new * length(Fraction(i, old), Fraction(i + 1, old), Fraction(j, new), Fraction(j + 1, new))
        for i in range(old)
      ]
      for j in range(new)
    ]
  ).astype(np.float64)


def filled(tx: Any, workers: int, seed: int = 0) -> Any:
  """A state as it may be after some steps: every worker's rows random."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(rtopk_jax.lockstep(tx, AXIS).init, PARAMS)
  axes = rtopk_jax.state_axes(tx, PARAMS)

  def fill(axis, leaf):
    shape = leaf.shape if axis is None else (workers, *leaf.shape[1:])
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      return rng.integers(0, 1000, shape).astype(leaf.dtype)
    return (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)).astype(leaf.dtype)

  return jax.tree.map(fill, axes, shapes, is_leaf=lambda x: x is None)


@given(old=st.integers(1, 12), new=st.integers(1, 12), seed=st.integers(0, 99), data=st.booleans())
def test_follows_the_formula_and_keeps_the_mean(old, new, seed, data):
  tx = optax.chain(EXCHANGE, optax.sgd(0.1, momentum=0.9))
  state = filled(tx, old, seed)
  given_state = jax.tree.map(jnp.asarray, state) if data else state
  resized = rtopk_jax.resize_workers(given_state, new)
  for field in ("residual", "momentum"):
    for name in PARAMS:
      before = getattr(state[0], field)[name].astype(np.float64)
      after = getattr(resized[0], field)[name]
      assert after.dtype == np.float32
      assert isinstance(after, jax.Array) == data
      after = np.asarray(after).astype(np.float64)
      scale = np.abs(before).max(axis=0)
      expected = np.einsum("ji,i...->j...", weights(old, new), before)
      assert np.all(np.abs(after - expected) <= 2.0**-23 * scale)
      # One rounding of one row, not of n' of them.
      gap = np.abs(after.mean(axis=0) - before.mean(axis=0))
      assert np.all(gap <= 1.001 * 2.0**-24 * scale / new)
  # Nothing else is touched.
  assert resized[0].count == state[0].count
  jax.tree.map(np.testing.assert_array_equal, resized[0].metrics, state[0].metrics)
  jax.tree.map(np.testing.assert_array_equal, resized[1], state[1])


@given(old=st.integers(1, 6), times=st.integers(1, 4), seed=st.integers(0, 9))
def test_a_multiple_of_the_workers_copies_rows_and_back(old, times, seed):
  state = filled(EXCHANGE, old, seed)
  more = rtopk_jax.resize_workers(state, old * times)
  np.testing.assert_array_equal(more.residual["w"], np.repeat(state.residual["w"], times, axis=0))
  back = rtopk_jax.resize_workers(more, old)
  np.testing.assert_allclose(back.residual["w"], state.residual["w"], rtol=2e-7)


def test_small_memory_keeps_its_dtype():
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.5), AXIS, memory_dtype=jnp.bfloat16)
  state = filled(tx, 5)
  after = rtopk_jax.resize_workers(state, 3).residual["w"]
  assert after.dtype == jnp.bfloat16
  before = state.residual["w"].astype(np.float64)
  gap = np.abs(after.astype(np.float64).mean(axis=0) - before.mean(axis=0))
  assert np.all(gap <= 2.0**-8 * np.abs(before).max(axis=0) / 3)


@pytest.mark.usefixtures("usual_promotion")
def test_several_exchanges_and_kept_local_optimizers():
  tx = optax.partition(
    {"sparse": optax.chain(EXCHANGE, optax.sgd(1.0)), "dense": rtopk_jax.dense_exchange(AXIS)},
    {"w": "sparse", "b": "dense"},
  )
  resized = rtopk_jax.resize_workers(filled(tx, 4), 6)
  assert optax.tree.get(resized, "residual")["w"].shape == (6, 3, 2)

  fed = rtopk_jax.federated(
    lambda p, x: jnp.sum(p["w"]) * x, optax.adam(0.1), EXCHANGE, AXIS, keep_inner=True
  )
  state = filled(fed.tx, 5)
  resized = rtopk_jax.resize_workers(state, 2)
  assert resized.outer[0].residual["b"].shape == (2, 2)
  expected = np.einsum("ji,i...->j...", weights(5, 2), state.inner[0].mu["w"].astype(np.float64))
  np.testing.assert_allclose(resized.inner[0].mu["w"], expected, rtol=1e-6, atol=1e-4)
  # Steps taken cannot be averaged: those of an old worker that is all the new one's.
  np.testing.assert_array_equal(resized.inner[0].count, state.inner[0].count[[0, 3]])
  assert resized.count == state.count


def test_training_goes_on_with_other_workers():
  """What 5 workers had not sent, 3 send: the sums of gradients and of updates agree."""
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.25), AXIS, dense=False)
  shapes = {"w": (8,)}
  grads = harness.gradients(shapes, 3, 5)
  updates, states = harness.run("vmap", tx, grads)
  state = jax.tree.map(lambda x: x[-1], states)
  state = rtopk_jax.resize_workers(state, 3)
  axes = rtopk_jax.state_axes(tx, {"w": jnp.zeros(8)})
  step = jax.jit(jax.vmap(tx.update, in_axes=(0, axes), out_axes=(None, axes), axis_name=AXIS))
  total = updates["w"].sum(axis=0)
  for _ in range(12):
    update, state = step({"w": jnp.zeros((3, 8))}, state)
    total = total + np.asarray(update["w"])
  np.testing.assert_allclose(total, grads["w"].sum(axis=0).mean(axis=0), rtol=1e-5, atol=1e-5)


def test_rows_of_anything():
  rows = {"mean": np.arange(4, dtype=np.float32).reshape(4, 1), "seen": np.array([1, 2, 3, 4])}
  resized = rtopk_jax.resize_rows(rows, 2)
  np.testing.assert_array_equal(resized["mean"], [[0.5], [2.5]])
  np.testing.assert_array_equal(resized["seen"], [1, 3])


def test_dense_exchange_has_nothing_to_resize():
  state = rtopk_jax.dense_exchange(AXIS, momentum=0.9).init(PARAMS)
  assert rtopk_jax.resize_workers(state, 3) == state


@pytest.mark.parametrize(
  ("count", "error", "message"),
  [
    (0, ValueError, "new_count must be at least 1, got 0"),
    (2.0, TypeError, "new_count must be an integer, got 2.0"),
    (True, TypeError, "new_count must be a Python number, got True"),
  ],
)
def test_impossible_counts_are_refused(count, error, message):
  with pytest.raises(error, match=message):
    rtopk_jax.resize_workers(filled(EXCHANGE, 2), count)
  with pytest.raises(error, match=message):
    rtopk_jax.resize_rows([np.ones((2, 1))], count)


def test_states_without_rows_of_workers_are_refused():
  with pytest.raises(ValueError, match="state has no exchange in it"):
    rtopk_jax.resize_workers(optax.sgd(0.1).init(PARAMS), 2)
  with pytest.raises(ValueError, match="made outside the mapped axis"):
    rtopk_jax.resize_workers(EXCHANGE.init(PARAMS), 2)
  mixed = filled(EXCHANGE, 3)._replace(momentum=filled(EXCHANGE, 4).momentum)
  with pytest.raises(ValueError, match=r"different numbers of workers, \[3, 4\]"):
    rtopk_jax.resize_workers(mixed, 2)
  with pytest.raises(ValueError, match="rows has rows of different numbers"):
    rtopk_jax.resize_rows([np.ones((2, 1)), np.ones((3, 1))], 2)


OTHERS = optax.chain(
  optax.trace(0.9),
  EXCHANGE,
  optax.sgd(0.1, momentum=0.9),
)
AROUND = optax.MultiSteps(OTHERS, 2).gradient_transformation()


@pytest.mark.parametrize("known", ["tx", "shapes", "shardings"])
def test_state_of_transformations_before_and_around(known):
  """Rows that an exchange knows nothing of are dealt out as its own are; what is shared stays."""
  with jax.numpy_dtype_promotion("standard"):
    check_others(known)


def check_others(known):
  state = filled(AROUND, 4)
  options = {}
  if known == "tx":
    options = {"tx": AROUND, "params": PARAMS}
  elif known == "shardings":
    mesh = harness.mesh(4)
    specs = rtopk_jax.state_specs(AROUND, PARAMS, AXIS)
    place = lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec))
    state = jax.tree.map(place, state, specs)
  resized = jax.device_get(rtopk_jax.resize_workers(state, 2, **options))
  state = jax.device_get(state)
  own = lambda s: (s.acc_grads, s.inner_opt_state[0], s.inner_opt_state[1].residual)
  shared = lambda s: (s.mini_step, s.inner_opt_state[2])
  jax.tree.map(np.testing.assert_array_equal, shared(resized), shared(state))
  for before, after in zip(*(jax.tree.leaves(own(x)) for x in (state, resized)), strict=True):
    assert after.shape == (2, *before.shape[1:])
    wanted = before.reshape(2, 2, *before.shape[1:]).mean(1)
    # What is rounded off one row is made up for in the next.
    np.testing.assert_allclose(after, wanted, 1e-6, 1e-6 * np.abs(before).max())


def test_rows_that_nothing_gives_away():
  """The state of ``optax.flatten`` is shaped like no parameter: it is asked for, not guessed."""
  tx = optax.chain(optax.flatten(optax.trace(0.9)), EXCHANGE)
  state = filled(tx, 2)
  with pytest.raises(ValueError, match=r"state.* has shape \(2, 8\), and it cannot be told.*tx="):
    rtopk_jax.resize_workers(state, 4)
  resized = rtopk_jax.resize_workers(state, 4, tx=tx, params=PARAMS)
  assert resized[0].trace.shape == (4, 8)
  with pytest.raises(ValueError, match="tx and params belong together"):
    rtopk_jax.resize_workers(state, 4, tx=tx)
  with pytest.raises(TypeError, match=r"state has another structure than tx\.init makes"):
    rtopk_jax.resize_workers(state, 4, tx=OTHERS, params=PARAMS)


def test_a_restored_container_of_another_type():
  state = filled(EXCHANGE, 2)._asdict()
  state["metrics"] = state["metrics"]._asdict()
  with pytest.raises(ValueError, match=r"no exchange in it.*A dict without the types of tx\.init"):
    rtopk_jax.resize_workers(state, 4)
