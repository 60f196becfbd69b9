"""Messages that arrive a step later: the same as at once, a step later, with nothing lost on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS, STEPS = harness.AXIS, 4, 6
SHAPES = {"w": (60, 20), "v": (300,), "b": (30,)}
STAGES = rtopk_jax.Stages((0.2, 0.1, 0.05), steps_per_stage=2)
OPTIONS = {
  "plain": {},
  "momentum": {"momentum": 0.5, "clip_norm": 2.0, "nesterov": True},
  "no memory": {"error_feedback": False, "average": "senders"},
  "short words": {"wire": rtopk_jax.Wire("int8", "elias_fano"), "average": "sum"},
  "leaf": {"scope": "leaf", "dense": False},
  "all dense": {"dense": True, "momentum": 0.5},
  "blocks": {"scope": rtopk_jax.Block(64), "wire": rtopk_jax.Wire(indices="block")},
  "half": {"memory_dtype": jnp.bfloat16, "memory_decay": 0.5},
}


def exchange(delay=1, density=0.05, **options):
  options = {"dense": {"w": False, "v": False, "b": True}, **options}
  return rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(density, 3), AXIS, delay=delay, **options)


def simulated(tx, num_workers=WORKERS):
  """The first state, and a step of all workers."""
  params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  axes = rtopk_jax.state_axes(tx, params)
  init = jax.vmap(tx.init, None, axes, axis_name=AXIS, axis_size=num_workers)
  update = lambda g, s, present: tx.update(g, s, params, present=present)
  step = jax.vmap(update, (0, axes, 0), (None, axes), axis_name=AXIS)
  return init(params), jax.jit(step)


def same(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=[] if x in ("plain", "all dense", "blocks") else pytest.mark.slow)
    for x in OPTIONS
  ],
)
def test_each_update_is_that_of_the_step_before(name):
  grads = harness.gradients(SHAPES, STEPS, WORKERS)
  now, states = harness.run("vmap", exchange(0, **OPTIONS[name]), grads)
  later, after = harness.run("vmap", exchange(1, **OPTIONS[name]), grads)
  same(jax.tree.map(lambda x: x[:-1], now), jax.tree.map(lambda x: x[1:], later))
  assert not any(np.any(x[0]) for x in jax.tree.leaves(later))
  # The memory knows nothing of other workers.
  same((states.residual, states.momentum), (after.residual, after.momentum))


def test_stages_of_a_warm_up_are_read_as_they_were_written():
  grads = harness.gradients(SHAPES, STEPS + 1, WORKERS)
  now, _ = harness.run("vmap", exchange(0, STAGES), grads)
  later, _ = harness.run("vmap", exchange(1, STAGES), grads)
  same(jax.tree.map(lambda x: x[:-1], now), jax.tree.map(lambda x: x[1:], later))


def test_a_message_is_read_by_the_stage_it_was_written_in():
  # A checkpoint that goes on with other steps an epoch has another count.
  state, step = simulated(exchange(1, STAGES, dense=False))
  grads = harness.gradients(SHAPES, 3, WORKERS)
  for t in range(3):
    _, state = step({name: g[t] for name, g in grads.items()}, state, np.ones(WORKERS, bool))
  nothing = {name: np.zeros((WORKERS, *shape), np.float32) for name, shape in SHAPES.items()}
  wanted, _ = step(nothing, state, np.ones(WORKERS, bool))
  updates, _ = step(nothing, state._replace(count=jnp.int32(0)), np.ones(WORKERS, bool))
  same(updates, wanted)


@pytest.mark.parametrize("mode", ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_every_mode_is_the_same(mode):
  grads, tx = harness.gradients(SHAPES, STEPS, WORKERS), exchange(momentum=0.5)
  same(harness.run(mode, tx, grads), harness.run("vmap", tx, grads))


def test_one_worker_that_sends_all_applies_the_gradient_before():
  grads = harness.gradients(SHAPES, STEPS, 1)
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, delay=1, dense=False)
  updates, _ = harness.run("vmap", tx, grads)
  same(
    jax.tree.map(lambda x: x[1:], updates), jax.tree.map(lambda g: jnp.asarray(g[:-1, 0]), grads)
  )


@pytest.mark.parametrize("scope", ["global", rtopk_jax.Block(64)], ids=["global", "blocks"])
def test_nothing_is_lost_by_a_skip_or_an_absence(scope):
  state, step = simulated(exchange(average="sum", scope=scope, dense=False))
  grads = harness.gradients(SHAPES, STEPS, WORKERS)
  everybody = np.ones(WORKERS, bool)
  given = applied = {name: np.zeros(shape) for name, shape in SHAPES.items()}
  for t in range(STEPS):
    gradient = {name: g[t].copy() for name, g in grads.items()}
    present = everybody.copy()
    counts = np.ones(WORKERS)
    if t == 2:
      # What goes wrong in one worker is lost to that worker alone.
      gradient["w"][1, 0, 0], counts[1] = np.nan, 0
    if t == 4:
      present[3], counts[3] = False, 0
    updates, state = step(gradient, state, present)
    total = lambda g, counts=counts, t=t: np.einsum("n,n...->...", counts, g[t].astype(np.float64))
    given = {name: given[name] + total(grads[name]) for name in SHAPES}
    applied = {name: applied[name] + np.asarray(updates[name], np.float64) for name in SHAPES}
    if t == 3:
      # A step after it happened, all know.
      assert not any(np.any(x) for x in jax.tree.leaves(updates))
  # With all of them absent, what is in flight arrives and nothing is sent.
  zeros = {name: np.zeros_like(g[0]) for name, g in grads.items()}
  updates, state = step(zeros, state, ~everybody)
  for name in SHAPES:
    rest = np.asarray(state.residual[name], np.float64).sum(axis=0)
    np.testing.assert_array_equal(applied[name] + updates[name] + rest, given[name])
  assert int(state.metrics.skipped) == 1
  updates, _ = step(zeros, state, ~everybody)
  assert not any(np.any(x) for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("new", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 6))])
def test_messages_of_other_numbers_of_workers_arrive(new):
  tx = exchange()
  state, step = simulated(tx)
  grads = harness.gradients(SHAPES, 2, WORKERS)
  for t in range(2):
    _, state = step({name: g[t] for name, g in grads.items()}, state, np.ones(WORKERS, bool))
  nothing = lambda count: {
    name: np.zeros((count, *shape), np.float32) for name, shape in SHAPES.items()
  }
  wanted, _ = step(nothing(WORKERS), state, np.ones(WORKERS, bool))
  # Other numbers of workers stand for n in rtop_k's r/k as well, which is said here.
  _, step = simulated(tx, new)
  updates, after = step(nothing(new), rtopk_jax.resize_workers(state, new), np.ones(new, bool))
  for name in SHAPES:
    np.testing.assert_allclose(updates[name], wanted[name], rtol=1e-6)
  assert after.in_flight.senders.shape == (new, 1)


def test_two_exchanges_skip_together():
  split = optax.partition(
    {True: exchange(dense=False), False: exchange(dense=False)}, {"w": True, "v": False, "b": False}
  )
  tx = rtopk_jax.lockstep(split, AXIS)
  state, _ = simulated(tx)
  params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  axes = rtopk_jax.state_axes(tx, params)
  step = jax.jit(jax.vmap(tx.update, (0, axes), (None, axes), axis_name=AXIS))
  grads = harness.gradients(SHAPES, STEPS, WORKERS)
  seen = []
  for t in range(STEPS):
    gradient = {name: g[t].copy() for name, g in grads.items()}
    if t == 1:
      gradient["w"][0, 0, 0] = np.inf
    updates, state = step(gradient, state)
    seen.append([bool(np.any(x)) for x in jax.tree.leaves(updates)])
  # The third step skips for both; what the other exchange had in flight arrives in the fourth.
  assert [any(x) for x in seen] == [False, True, False, True, True, True]
  assert int(rtopk_jax.exchange_metrics(state)["skipped_steps"]) == 1


def test_train_step_and_rounds_take_it():
  mesh = harness.mesh(2)
  params = {"w": jnp.ones((40, 30))}
  loss_fn = lambda params, x: jnp.mean((x @ params["w"]) ** 2)
  tx = rtopk_jax.rtopk_sgd(0.01, 0.1, AXIS, subsample=2, delay=1)
  state = rtopk_jax.init(tx, params, mesh, AXIS)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS)
  batch = np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32)
  losses = []
  for _ in range(4):
    params, state, loss = step(params, state, batch)
    losses.append(float(loss))
  # Nothing has arrived in the first step.
  assert losses[0] == losses[1] > losses[2] > losses[3]
  fed = rtopk_jax.federated(loss_fn, optax.sgd(0.01), exchange(dense=False, density=0.1), AXIS)
  axes = rtopk_jax.state_axes(fed.tx, params)
  batches = jnp.asarray(np.broadcast_to(batch, (2, 3, 8, 40)))
  init = jax.jit(jax.vmap(fed.tx.init, None, axes, axis_name=AXIS, axis_size=2))
  out = rtopk_jax.Round(None, axes, 0, None, 0)
  run = jax.jit(jax.vmap(fed.round, (None, axes, 0), out, axis_name=AXIS))
  first = run(params, init(params), batches)
  same(first.params, params)
  assert float(jnp.abs(run(params, first.state, batches).params["w"] - params["w"]).max()) > 0


def test_there_is_one_count_in_a_state():
  state, _ = simulated(exchange())
  assert int(optax.tree.get(state, "count")) == 0


def test_bytes_are_counted_as_ever():
  params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  for step in (0, 2, None):
    now, later = (
      rtopk_jax.wire_bytes(exchange(delay, STAGES, dense=False), params, WORKERS, step)
      for delay in (0, 1)
    )
    # The header has a number more, which the last tile has room for.
    assert now == later
  auto = exchange(collective=rtopk_jax.Auto("1Gbit/s"))
  assert rtopk_jax.chosen_collectives(auto, params, WORKERS) == (rtopk_jax.AllGather(),)


def test_fast_axes_are_one_worker():
  grads = harness.gradients(SHAPES, STEPS, WORKERS)
  axes = (AXIS, "chips")
  options = {"delay": 1, "dense": False, "collective": rtopk_jax.Hierarchical("chips")}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.05, 2), axes, **options)
  params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  auto = 2 * (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((2, 2), axes, auto, devices=jax.devices()[:4])
  state = rtopk_jax.init(tx, params, mesh, axes)
  specs = rtopk_jax.state_specs(tx, params, axes)
  rows = jax.P(axes)
  body = lambda g, s: tx.update(jax.tree.map(lambda x: x[0], g), s)
  step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(rows, specs), out_specs=(jax.P(), specs)))
  flat = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.05, 2), AXIS, delay=1, dense=False)
  means = jax.tree.map(lambda g: g.reshape(STEPS, 2, 2, *g.shape[2:]).mean(axis=2), grads)
  wanted, _ = harness.run("vmap", flat, means)
  for t in range(STEPS):
    updates, state = step({name: g[t] for name, g in grads.items()}, state)
    same(updates, jax.tree.map(lambda x, t=t: x[t], wanted))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"delay": 2}, "delay must be at most 1, one step, got 2"),
    ({"delay": 0.5}, "delay must be an integer"),
    ({"delay": 1, "collective": "reduce_scatter"}, "delay=1 needs a collective that hands every"),
  ],
)
def test_what_there_is_not_is_refused(options, message):
  with pytest.raises((TypeError, ValueError), match=message):
    exchange(**options)


def test_sharded_parameters_are_refused():
  mesh = jax.make_mesh((2, 2), (AXIS, "model"), devices=jax.devices()[:4])
  params = {"w": jnp.zeros((64, 32))}
  tx = exchange(dense=False)
  with pytest.raises(ValueError, match="delay=1 needs parameters that are whole"):
    rtopk_jax.init(tx, params, mesh, AXIS, {"w": jax.P("model")})
