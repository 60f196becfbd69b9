"""Rounds of local steps, against plain NumPy and in every mode."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS, STEPS, ROUNDS, SIZE = harness.AXIS, 4, 3, 4, 12
MODES = ("check_vma", "no check", "pmap", "vmap")
RATE, DENSITY = 0.05, 0.25


def loss_fn(params, batch):
  error = batch["x"] @ params["w"] - batch["y"]
  return jnp.mean(error**2)


@functools.cache
def problem(steps: int = STEPS) -> tuple[dict, dict]:
  """Weights, and batches (rounds, workers, steps, …): every worker's data fit other weights."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((ROUNDS, WORKERS, steps, 8, SIZE))
  truth = rng.standard_normal((WORKERS, SIZE))
  y = np.einsum("rwsbd,wd->rwsb", x, truth)
  batches = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
  return {"w": rng.standard_normal(SIZE).astype(np.float32)}, batches


def exchange(**options: Any) -> optax.GradientTransformation:
  return rtopk_jax.sparse_exchange(rtopk_jax.top_k(DENSITY), AXIS, dense=False, **options)


def make_round(mode: str, fed: rtopk_jax.Federated, params: Any) -> Any:
  """``round(params, state, batches, model_state, present)`` of all workers at once, compiled."""

  def one(params, state, batches, model_state, present):
    return fed.round(params, state, batches, model_state, present)

  if mode == "vmap":
    axes = rtopk_jax.state_axes(fed.tx, params)
    out = rtopk_jax.Round(None, axes, 0, None, 0)
    mapped = jax.vmap(one, in_axes=(None, axes, 0, 0, 0), out_axes=out, axis_name=AXIS)
    return jax.jit(mapped)
  specs = rtopk_jax.state_specs(fed.tx, params, AXIS)
  if mode == "pmap":
    # An array of every worker's row for what is its own, the same everywhere for the rest.
    axes = jax.tree.map(lambda s: 0 if s else None, specs, is_leaf=lambda x: isinstance(x, P))
    mapped = jax.pmap(
      one,
      in_axes=(None, axes, 0, 0, 0),
      out_axes=rtopk_jax.Round(None, axes, 0, None, 0),  # pyright: ignore[reportArgumentType]
      axis_name=AXIS,
      devices=jax.devices()[:WORKERS],
    )
    return mapped

  def shard(params, state, batches, model_state, present):
    mine = lambda tree: jax.tree.map(lambda x: x[0], tree)
    done = one(params, state, mine(batches), mine(model_state), mine(present))
    row = lambda tree: jax.tree.map(lambda x: x[None], tree)
    return done._replace(model_state=row(done.model_state), aux=row(done.aux))

  mapped = jax.shard_map(
    shard,
    mesh=harness.mesh(WORKERS),
    in_specs=(P(), specs, P(AXIS), P(AXIS), P(AXIS)),
    out_specs=rtopk_jax.Round(P(), specs, P(AXIS), P(), P(AXIS)),  # pyright: ignore[reportArgumentType]
    check_vma=mode == "check_vma",
  )
  return jax.jit(mapped)


def rounds(
  mode: str,
  fed: rtopk_jax.Federated,
  params: Any,
  batches: Any,
  model_state: Any = (),
  present=None,
) -> list[rtopk_jax.Round]:
  """All rounds, one after another."""
  step = make_round(mode, fed, params)
  state = rtopk_jax.init(fed.tx, params, harness.mesh(WORKERS), AXIS)
  if mode in ("vmap", "pmap"):
    state = jax.device_get(state)
  done = []
  for i in range(len(jax.tree.leaves(batches)[0])):
    batch = jax.tree.map(lambda x, i=i: x[i], batches)
    here = None if present is None else present[i]
    result = step(params, state, batch, model_state, here)
    params, state, model_state = result.params, result.state, result.model_state
    done.append(result)
  return done


def reference(
  params, batches, *, momentum=0.0, keep=False, feedback=True, outer=None, rates=None, present=None
):
  """Local SGD, top-k with error feedback and the mean over those present, in float64.

  Returns weights of every round, and residuals and momenta after the last.
  """
  w = params["w"].astype(np.float64)
  x, y = (batches[name].astype(np.float64) for name in ("x", "y"))
  present = np.ones(x.shape[:2], bool) if present is None else present
  k = round(DENSITY * SIZE)
  residual, trace, velocity = np.zeros((WORKERS, SIZE)), np.zeros((WORKERS, SIZE)), np.zeros(SIZE)
  history = []
  for r in range(len(x)):
    total = np.zeros(SIZE)
    for i in np.flatnonzero(present[r]):
      local, u = w.copy(), trace[i] if keep else np.zeros(SIZE)
      for a, b in zip(x[r, i], y[r, i], strict=True):
        u = momentum * u + 2 * a.T @ (a @ local - b) / len(b)
        local -= (rates[r] if rates else RATE) * u
      trace[i] = u
      vector = residual[i] + (w - local)
      sent = np.zeros(SIZE)
      top = np.argsort(-np.abs(vector))[:k]
      sent[top] = vector[top]
      residual[i] = vector - sent if feedback else 0
      total += sent
    mean = total / max(present[r].sum(), 1)
    if outer:
      rate, m = outer
      velocity = m * velocity + mean
      mean = rate * (mean + m * velocity)  # Nesterov
    w = w - mean
    history.append(w)
  return history, residual, trace


def agrees(done: list[rtopk_jax.Round], expected: Any) -> None:
  history, residual, trace = expected
  for result, w in zip(done, history, strict=True):
    np.testing.assert_allclose(np.ravel(result.params["w"]), w, rtol=2e-5, atol=2e-5)
  state = done[-1].state
  assert int(state.count) == len(history)
  sparse = state.outer[0]
  if sparse.residual != ():
    rows = np.reshape(sparse.residual["w"], (WORKERS, SIZE))
    np.testing.assert_allclose(rows, residual, rtol=2e-4, atol=2e-5)
  if state.inner != ():
    rows = np.reshape(optax.tree.get(state.inner, "trace")["w"], (WORKERS, SIZE))
    np.testing.assert_allclose(rows, trace, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keep", [False, True])
def test_agrees_with_numpy_in_every_mode(mode, keep):
  params, batches = problem()
  fed = rtopk_jax.federated(
    loss_fn, optax.sgd(RATE, momentum=0.5), exchange(), AXIS, keep_inner=keep
  )
  done = rounds(mode, fed, params, batches)
  agrees(done, reference(params, batches, momentum=0.5, keep=keep))
  assert done[-1].loss < done[0].loss


def test_without_error_feedback_and_with_an_outer_optimizer():
  params, batches = problem()
  outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
  fed = rtopk_jax.federated(
    loss_fn, optax.sgd(RATE), exchange(error_feedback=False), AXIS, outer=outer
  )
  expected = reference(params, batches, feedback=False, outer=(0.7, 0.9))
  agrees(rounds("vmap", fed, params, batches), expected)


def test_local_optimizer_may_depend_on_the_round():
  params, batches = problem()
  rates = [0.05, 0.025, 0.0125, 0.00625]
  fed = rtopk_jax.federated(
    loss_fn, lambda count: optax.sgd(jnp.array(rates, jnp.float32)[count]), exchange(), AXIS
  )
  agrees(rounds("check_vma", fed, params, batches), reference(params, batches, rates=rates))


@pytest.mark.parametrize(
  "make",
  [
    lambda: rtopk_jax.dense_exchange(AXIS),
    lambda: rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(1.0), AXIS, dense=False),
  ],
  ids=["dense", "density 1"],
)
@pytest.mark.parametrize("mode", ["check_vma", "vmap"])
def test_one_local_step_of_everything_is_a_step_of_dense_sgd(mode, make):
  params, batches = problem(steps=1)
  fed = rtopk_jax.federated(loss_fn, optax.sgd(RATE), make(), AXIS)
  done = rounds(mode, fed, params, batches)
  w = params["w"].astype(np.float64)
  for x, y, result in zip(batches["x"], batches["y"], done, strict=True):
    x, y = x.reshape(-1, SIZE).astype(np.float64), y.reshape(-1).astype(np.float64)
    w = w - RATE * 2 * x.T @ (x @ w - y) / len(y)
    np.testing.assert_allclose(result.params["w"], w, rtol=1e-5, atol=1e-5)


def stateful(params, model_state, batch):
  """The model counts its batches, and hands on what it saw."""
  state = {"batches": model_state["batches"] + 1, "last": batch["y"]}
  return loss_fn(params, batch), (state, jnp.max(batch["x"]))


def model_states() -> dict[str, Any]:
  return {"batches": jnp.zeros(WORKERS, jnp.int32), "last": jnp.zeros((WORKERS, 8))}


@pytest.mark.parametrize("mode", ["check_vma", "vmap"])
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


@pytest.mark.parametrize("mode", ["no check", "vmap"])
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


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"inner": 0.1}, TypeError, "inner must be an optax.GradientTransformation, or a function"),
    ({"exchange": "rtopk"}, TypeError, "exchange must be an optax.GradientTransformation"),
    ({"outer": 0.7}, TypeError, "outer must be an optax.GradientTransformation, got 0.7"),
    ({"loss_fn": None}, TypeError, "loss_fn must be a function, got None"),
    ({"axis_name": 3}, TypeError, "axis_name must be the name of a mapped axis"),
    ({"keep_inner": 1}, TypeError, "keep_inner must be True or False, got 1"),
    ({"has_aux": "yes"}, TypeError, "has_aux must be True or False"),
    ({"has_model_state": None}, TypeError, "has_model_state must be True or False"),
  ],
)
def test_wrong_arguments_are_refused(change, error, message):
  good = {"loss_fn": loss_fn, "inner": optax.sgd(1.0), "exchange": exchange(), "axis_name": AXIS}
  with pytest.raises(error, match=message):
    rtopk_jax.federated(**{**good, **change})


def test_no_exchange_is_refused():
  fed = rtopk_jax.federated(loss_fn, optax.sgd(1.0), optax.identity(), AXIS)
  with pytest.raises(ValueError, match="exchange has no sparse_exchange or dense_exchange in it"):
    fed.tx.init(problem()[0])


@pytest.mark.parametrize(
  "batches", [{"x": 1.0}, {}, {"x": np.zeros((0, 2))}, [np.ones(2), np.ones(3)]]
)
def test_batches_without_one_number_of_local_steps_are_refused(batches):
  fed = rtopk_jax.federated(loss_fn, optax.sgd(1.0), exchange(), AXIS)
  params = problem()[0]
  with pytest.raises(ValueError, match="batches must have one leading axis"):
    fed.round(params, fed.tx.init(params), batches)


def test_kept_state_made_outside_is_refused():
  params, batches = problem()
  fed = rtopk_jax.federated(loss_fn, optax.sgd(1.0, 0.9), exchange(), AXIS, keep_inner=True)
  outside = fed.tx.init(params)
  with pytest.raises(ValueError, match=r"state.inner.*trace.* was made outside the mapped axis"):
    jax.vmap(lambda x: fed.round(params, outside, x).params, axis_name=AXIS, out_axes=None)(
      jax.tree.map(lambda x: x[0], batches)
    )


PRESENT = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], bool)


@pytest.mark.parametrize("mode", MODES)
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
  agrees(done, reference(params, clean, momentum=0.5, keep=True, present=PRESENT))
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


@pytest.mark.parametrize("weight", [np.ones(3, np.float32), np.bool_(True)])
def test_a_weight_that_is_none(weight):
  params, batches = problem()
  fed = rtopk_jax.federated(loss_fn, optax.sgd(RATE), exchange(), AXIS)
  one = lambda x: fed.round(params, fed.tx.init(params), x, weight=weight).params
  with pytest.raises(
    TypeError, match=r"weight says how much this worker counts.*a real scalar, got"
  ):
    jax.vmap(one, axis_name=AXIS, out_axes=None)(jax.tree.map(lambda x: x[0], batches))
