"""Rounds of local steps, against plain NumPy and in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness
from tests.rtopk_jax.transform.rounds import (
  AXIS,
  MODES,
  RATE,
  ROUNDS,
  SIZE,
  STEPS,
  WORKERS,
  agrees,
  exchange,
  local_sgd,
  loss_fn,
  model_states,
  problem,
  rounds,
  stateful,
)


@pytest.mark.parametrize(
  ("mode", "keep"),
  [
    # Each mode once.
    pytest.param(mode, keep, marks=[] if i % 2 == keep else pytest.mark.slow)
    for i, mode in enumerate(MODES)
    for keep in (False, True)
  ],
)
def test_agrees_with_numpy_in_every_mode(mode, keep):
  params, batches = problem()
  fed = rtopk_jax.federated(
    loss_fn, optax.sgd(RATE, momentum=0.5), exchange(), AXIS, keep_inner=keep
  )
  done = rounds(mode, fed, params, batches)
  agrees(done, local_sgd(params, batches, momentum=0.5, keep=keep))
  assert done[-1].loss < done[0].loss


def test_without_error_feedback_and_with_an_outer_optimizer():
  params, batches = problem()
  outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
  fed = rtopk_jax.federated(
    loss_fn, optax.sgd(RATE), exchange(error_feedback=False), AXIS, outer=outer
  )
  expected = local_sgd(params, batches, feedback=False, outer=(0.7, 0.9))
  agrees(rounds("vmap", fed, params, batches), expected)


def test_local_optimizer_may_depend_on_the_round():
  params, batches = problem()
  rates = [0.05, 0.025, 0.0125, 0.00625]
  fed = rtopk_jax.federated(
    loss_fn, lambda count: optax.sgd(jnp.array(rates, jnp.float32)[count]), exchange(), AXIS
  )
  agrees(rounds("check_vma", fed, params, batches), local_sgd(params, batches, rates=rates))


EVERYTHING = {
  "dense": lambda: rtopk_jax.dense_exchange(AXIS),
  "density 1": lambda: rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(1.0), AXIS, dense=False),
}


@pytest.mark.parametrize(
  ("mode", "name"),
  [
    ("vmap", "dense"),
    ("check_vma", "density 1"),
    pytest.param("check_vma", "dense", marks=pytest.mark.slow),
    pytest.param("vmap", "density 1", marks=pytest.mark.slow),
  ],
)
def test_one_local_step_of_everything_is_a_step_of_dense_sgd(mode, name):
  params, batches = problem(steps=1)
  fed = rtopk_jax.federated(loss_fn, optax.sgd(RATE), EVERYTHING[name](), AXIS)
  done = rounds(mode, fed, params, batches)
  w = params["w"].astype(np.float64)
  for x, y, result in zip(batches["x"], batches["y"], done, strict=True):
    x, y = x.reshape(-1, SIZE).astype(np.float64), y.reshape(-1).astype(np.float64)
    w = w - RATE * 2 * x.T @ (x @ w - y) / len(y)
    np.testing.assert_allclose(result.params["w"], w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["check_vma", pytest.param("vmap", marks=pytest.mark.slow)])
def test_model_state_goes_through_local_steps_and_aux_is_stacked(mode):
  params, batches = problem()
  fed = rtopk_jax.federated(
    stateful, optax.sgd(RATE), exchange(), AXIS, has_aux=True, has_model_state=True
  )
  done = rounds(mode, fed, params, batches, model_states())
  assert done[-1].model_state["batches"].tolist() == [ROUNDS * STEPS] * WORKERS
  np.testing.assert_array_equal(done[-1].model_state["last"], batches["y"][-1, :, -1])
  np.testing.assert_array_equal(done[1].aux, batches["x"][1].max(axis=(-1, -2)))
  without = rtopk_jax.federated(loss_fn, optax.sgd(RATE), exchange(), AXIS)
  expected = rounds(mode, without, params, batches)
  np.testing.assert_allclose(done[-1].params["w"], expected[-1].params["w"], rtol=1e-5)


@pytest.mark.parametrize("mode", ["no check", pytest.param("vmap", marks=pytest.mark.slow)])
def test_a_round_that_is_not_finite_changes_nothing_but_the_counts(mode):
  params, batches = problem()
  batches = {name: x[:2].copy() for name, x in batches.items()}
  batches["x"][1, 2] = np.nan
  fed = rtopk_jax.federated(
    stateful,
    optax.sgd(RATE, momentum=0.5),
    exchange(),
    AXIS,
    keep_inner=True,
    has_aux=True,
    has_model_state=True,
  )
  good, bad = rounds(mode, fed, params, batches, model_states())
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(good.params, bad.params)
  same(good.state.inner, bad.state.inner)
  same(good.state.outer[0].residual, bad.state.outer[0].residual)
  same(good.model_state, bad.model_state)
  assert int(bad.state.count) == 2
  assert int(rtopk_jax.exchange_metrics(bad.state)["skipped_steps"]) == 1


def test_workers_trained_one_by_one_come_to_the_same():
  """What a simulation does: local steps by calls of one compiled function, the exchange mapped."""
  params, batches = problem()
  fed = rtopk_jax.federated(
    stateful,
    optax.sgd(RATE, momentum=0.5),
    exchange(),
    AXIS,
    keep_inner=True,
    has_aux=True,
    has_model_state=True,
  )
  expected = rounds("vmap", fed, params, batches, model_states())
  axes = rtopk_jax.state_axes(fed.tx, params)
  state = jax.vmap(fed.tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=WORKERS)(
    params
  )
  begin, local_step = jax.jit(fed.begin), jax.jit(fed.local_step)
  mapped = jax.jit(
    jax.vmap(fed.exchange, in_axes=(None, axes, 0, 0), out_axes=(None, axes, 0), axis_name=AXIS)
  )
  model_state = model_states()
  for r in range(ROUNDS):
    locals_ = []
    for i in range(WORKERS):
      row = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
      local = begin(params, state._replace(inner=row(state.inner)), row(model_state))
      for s in range(STEPS):
        batch = jax.tree.map(lambda x, r=r, i=i, s=s: x[r, i, s], batches)
        local, _ = local_step(local, batch)
      locals_.append(local)
    # Every worker is in the same round.
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *locals_)
    params, state, model_state = mapped(params, state, model_state, stacked)
    np.testing.assert_allclose(params["w"], expected[r].params["w"], rtol=1e-5, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, model_state, expected[-1].model_state)


@pytest.mark.usefixtures("usual_promotion")
def test_state_of_kept_local_optimizers():
  params, _ = problem()
  fed = rtopk_jax.federated(loss_fn, optax.adam(RATE), exchange(), AXIS, keep_inner=True)
  state = rtopk_jax.init(fed.tx, params, harness.mesh(WORKERS), AXIS)
  adam = state.inner[0]
  assert adam.count.shape == (WORKERS,)
  assert adam.mu["w"].shape == (WORKERS, SIZE)
  assert state.count.shape == state.outer[0].count.shape == ()
  specs = rtopk_jax.state_specs(fed.tx, params, AXIS)
  assert specs.inner[0].count == specs.inner[0].mu["w"] == P(AXIS)
  assert specs.count == specs.outer[0].count == P()
  assert specs.outer[0].residual["w"] == P(AXIS)
  # Outside a mapped axis no worker has a row.
  assert jax.tree.leaves(jax.tree.map(jnp.shape, fed.tx.init(params).inner[0].mu)) == [0, SIZE]


def test_bytes_are_those_of_the_exchange():
  params, _ = problem()
  fed = rtopk_jax.federated(loss_fn, optax.sgd(RATE), exchange(), AXIS)
  assert rtopk_jax.wire_bytes(fed.tx, params, 5) == rtopk_jax.wire_bytes(exchange(), params, 5)


PRESENT = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], bool)


@pytest.mark.parametrize(
  "mode",
  [pytest.param(x, marks=[] if x in ("check_vma", "vmap") else pytest.mark.slow) for x in MODES],
)
def test_absent_workers_keep_their_memory_and_the_mean_is_over_the_others(mode):
  params, batches = problem()
  batches = {name: x.copy() for name, x in batches.items()}
  # What an absent worker is given does not matter.
  batches["x"][~PRESENT] = np.nan
  fed = rtopk_jax.federated(
    stateful,
    optax.sgd(RATE, momentum=0.5),
    exchange(),
    AXIS,
    keep_inner=True,
    has_aux=True,
    has_model_state=True,
  )
  done = rounds(mode, fed, params, batches, model_states(), PRESENT)
  clean = {name: np.nan_to_num(x) for name, x in batches.items()}
  agrees(done, local_sgd(params, clean, momentum=0.5, keep=True, present=PRESENT))
  assert int(rtopk_jax.exchange_metrics(done[-1].state)["skipped_steps"]) == 0
  rows = lambda r: [
    *(jnp.reshape(x, (WORKERS, -1)) for x in jax.tree.leaves(r.state.inner)),
    jnp.reshape(r.state.outer[0].residual["w"], (WORKERS, SIZE)),
    *(jnp.reshape(x, (WORKERS, -1)) for x in jax.tree.leaves(r.model_state)),
  ]
  for before, after, here in zip(done[:-1], done[1:], PRESENT[1:], strict=True):
    for x, y in zip(rows(before), rows(after), strict=True):
      np.testing.assert_array_equal(x[~here], y[~here])
      assert np.all(np.any(np.asarray(x != y)[here], axis=1))
  # A round without anybody changes nothing.
  np.testing.assert_array_equal(done[1].params["w"], done[2].params["w"])
  np.testing.assert_array_equal(
    done[-1].model_state["batches"].ravel(), STEPS * PRESENT.sum(axis=0)
  )


@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
@pytest.mark.parametrize("first", ["sparse", "dense"])
def test_clients_count_by_their_numbers_of_examples(first, mode):
  """The mean of what they came to is weighted; one that has none may be given anything."""
  value = lambda w, x: jnp.sum((w - x) ** 2)
  make = {
    "sparse": lambda: rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, dense=False),
    "dense": lambda: rtopk_jax.dense_exchange(AXIS),
  }[first]
  fed = rtopk_jax.federated(value, optax.sgd(0.1), make(), AXIS)
  w, counts = jnp.zeros(3), np.array([1, 3, 0, 4], np.int32)
  x = np.array([0.0, 3.0, np.nan, 6.0], np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)

  def one(w, x, count):
    done = fed.round(w, fed.tx.init(w), x, weight=count)
    return done.params, done.loss

  if mode == "vmap":
    mapped = jax.vmap(one, in_axes=(None, 0, 0), out_axes=None, axis_name=AXIS)
  else:
    mapped = jax.shard_map(
      lambda w, x, count: one(w, x[0], count[0]),
      mesh=harness.mesh(4),
      in_specs=(P(), P(AXIS), P(AXIS)),
      out_specs=P(),
    )
  params, loss = jax.jit(mapped)(w, x, counts)
  # Two local steps of rate 0.1 on a loss whose gradient is 2 (w - x).
  mean = lambda values: (counts * np.nan_to_num(values)).sum() / counts.sum()
  np.testing.assert_allclose(params, np.full(3, (1 - 0.8**2) * mean(x[:, 0, 0])), rtol=1e-6)
  losses = 3 * x[:, 0, 0] ** 2 * (1 + 0.8**2) / 2
  np.testing.assert_allclose(loss, mean(losses), rtol=1e-6)
