"""Every optax transformation after, before and around an exchange: right, or refused by name.

At density 1 a worker sends all it has, so that a chain must do what the same transformations do to gradients
that were averaged by hand. Each case is trained by ``make_train_step`` for a few steps and compared with
that; those that cannot work must say so when they are traced. Nothing may hang: a process of its own, with a
time limit, runs what would wait for ever.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness
from tests.rtopk_jax.transform.optax_cases import AFTER, AROUND, BEFORE, REFUSED, exchange

AXIS, WORKERS, STEPS = harness.AXIS, 4, 4

PARAMS = {
  "w": np.linspace(-1, 1, 8 * 6, dtype=np.float32).reshape(8, 6),
  "b": np.linspace(0.5, -0.3, 6, dtype=np.float32),
}

BATCHES = np.random.default_rng(0).normal(size=(STEPS, 4 * WORKERS, 8)).astype(np.float32)


def loss_fn(params, x):
  return jnp.mean((jnp.tanh(x @ params["w"] + params["b"][None]) - x[:, :6]) ** 2)


def start():
  return jax.tree.map(jnp.asarray, PARAMS)


@pytest.fixture(autouse=True)
def usual_promotion():
  """Parts of optax mix dtypes, which these tests are not about."""
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def train(tx, loss=loss_fn, params=None):
  """Parameters and state after some steps of several workers."""
  mesh = harness.mesh(WORKERS)
  params = start() if params is None else params
  state = rtopk_jax.init(tx, params, mesh, AXIS)
  step = rtopk_jax.make_train_step(loss, tx, mesh, AXIS, donate=False)
  for batch in BATCHES:
    params, state, _ = step(params, state, batch)
  return params, state


def by_hand(before, after, loss=loss_fn, params=None):
  """The same by a loop over workers in Python: each has its own ``before``, all have one ``after``."""
  params = start() if params is None else params
  trained = lambda p: p.fast if isinstance(p, optax.LookaheadParams) else p
  own = [before.init(trained(params))] * WORKERS
  common = after.init(params)
  after = optax.with_extra_args_support(after)

  @jax.jit
  def step(params, own, common, batch):
    parts = jnp.split(batch, WORKERS)
    losses, gradients = zip(*(jax.value_and_grad(loss)(params, x) for x in parts), strict=True)
    results = [
      before.update(trained(g), s, trained(params)) for g, s in zip(gradients, own, strict=True)
    ]
    mean = jax.tree.map(lambda *x: sum(x) / WORKERS, *(u for u, _ in results))
    value = {} if is_sam(common) else {"value": sum(losses) / WORKERS}
    updates, common = after.update(mean, common, params, **value)
    return optax.apply_updates(params, updates), [s for _, s in results], common

  for batch in BATCHES:
    params, own, common = step(params, own, common, batch)
  return params


def is_sam(state):
  """Whether this is of a transformation that takes no ``value``, against the rules of optax."""
  return any(isinstance(x, optax.contrib.SAMState) for x in (state, *state))


def check(actual, expected, tolerance=1e-5):
  # In units of what the weights are, and no weight may be NaN.
  compare = lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance)
  jax.tree.map(compare, actual, expected)
  assert np.any(jax.tree.leaves(actual)[-1] != PARAMS["w"])


def lookahead(name):
  """Parameters and loss of ``optax.lookahead``, which has two of each weight."""
  if name != "lookahead":
    return {}
  return {
    "loss": lambda params, x: loss_fn(params.fast, x),
    "params": optax.LookaheadParams.init_synced(start()),
  }


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
  make, message = REFUSED[name]
  with pytest.raises((ValueError, TypeError), match=message):
    train(make())
  if name not in ("lbfgs after", "nothing", "multi_steps unfinished"):
    # Wherever the state is made, whatever maps the workers.
    for of in (
      lambda tx: rtopk_jax.state_specs(tx, start(), AXIS),
      lambda tx: rtopk_jax.state_axes(tx, start()),
      lambda tx: rtopk_jax.lockstep(tx, AXIS).init(start()),
    ):
      with pytest.raises(ValueError, match=message):
        of(make())


# Of each kind of state one; `make test-slow` has the others.
QUICK = (
  "adafactor",
  "adamw",
  "apply_if_finite",
  "flatten",
  "masked",
  "multi_steps",
  "noisy_sgd",
  "reduce_on_plateau",
)
QUICK_AROUND = ("lookahead", "multi_steps", "partition_frozen", "sam")
QUICK_BEFORE = ("apply_every", "partition", "scale_by_adam", "zero_nans")


def slow_unless(quick, names):
  """The names as parameters, slow ones but for some."""
  slow = lambda name: () if name in quick else (pytest.mark.slow,)
  return [pytest.param(name, marks=slow(name)) for name in names]


@pytest.mark.parametrize("name", slow_unless(QUICK, AFTER))
def test_after(name):
  actual, _ = train(optax.chain(exchange(), AFTER[name]()))
  check(actual, by_hand(optax.identity(), AFTER[name]()))


@pytest.mark.parametrize("name", slow_unless(QUICK_BEFORE, BEFORE))
def test_before(name):
  after = optax.sgd(0.1)
  actual, _ = train(optax.chain(BEFORE[name](), exchange(), after))
  check(actual, by_hand(BEFORE[name](), after))


@pytest.mark.parametrize("name", slow_unless(QUICK_AROUND, AROUND))
def test_around(name):
  kind = lookahead(name)
  actual, _ = train(AROUND[name](exchange()), **kind)
  check(actual, by_hand(optax.identity(), AROUND[name](optax.identity()), **kind))


def test_whose_state_is_whose():
  """What stands before the exchange or accumulates around it is each worker's own; the rest is shared."""
  tx = optax.MultiSteps(
    optax.chain(optax.scale_by_adam(), exchange(momentum=0.9), optax.adam(0.1)), 2
  ).gradient_transformation()
  specs = rtopk_jax.state_specs(tx, PARAMS, AXIS)
  own, shared = {"w": P(AXIS), "b": P(AXIS)}, {"w": P(), "b": P()}
  before, memory, after = specs.inner_opt_state
  assert specs.acc_grads == before.mu == before.nu == memory.residual == memory.momentum == own
  assert after[0].mu == after[0].nu == shared
  assert specs.mini_step == specs.gradient_step == before.count == memory.count == P()
  axes = rtopk_jax.state_axes(tx, PARAMS)
  assert axes.acc_grads == {"w": 0, "b": 0}
  assert axes.inner_opt_state[2][0].mu == {"w": None, "b": None}
  state = rtopk_jax.init(tx, PARAMS, harness.mesh(WORKERS), AXIS)
  assert state.acc_grads["w"].shape == state.inner_opt_state[0].mu["w"].shape == (WORKERS, 8, 6)
  assert state.inner_opt_state[2][0].mu["w"].shape == (8, 6)


def test_specs_of_others_states_where_parameters_are_sharded():
  specs = {"w": P(None, "model"), "b": P("model")}
  tx = optax.chain(optax.trace(0.9), exchange(), optax.adam(0.1))
  before, _, after = rtopk_jax.state_specs(tx, PARAMS, AXIS, specs)
  assert before.trace == {"w": P(AXIS, None, "model"), "b": P(AXIS, "model")}
  assert after[0].mu == specs
  for tx in (optax.flatten(optax.chain(exchange(), optax.adam(0.1))), optax.sm3(0.1)):
    tx = optax.chain(exchange(), tx)
    with pytest.raises(ValueError, match=r"state.* is shaped like no parameter or like several"):
      rtopk_jax.state_specs(tx, PARAMS, AXIS, specs)


_QUICK_MAPS = (("scale_by_adam", True), ("zero_nans", False), ("multi_steps", False))


@pytest.mark.parametrize(
  ("name", "check_vma"),
  [
    pytest.param(
      name, check_vma, marks=[] if (name, check_vma) in _QUICK_MAPS else pytest.mark.slow
    )
    for name in ("trace", "scale_by_adam", "zero_nans", "ema", "multi_steps")
    for check_vma in (True, False)
    # optax.MultiSteps loses types: refused by name, see test_errors.
    if (name, check_vma) != ("multi_steps", True)
  ],
)
def test_lockstep_in_a_map_of_ones_own(name, check_vma):
  """The whole chain, wrapped, in a ``shard_map`` whose state comes from outside."""
  if name == "multi_steps":
    before, around = optax.identity(), AROUND[name]
    tx, after = around(exchange()), around(optax.identity())
  else:
    before, after = BEFORE[name](), optax.sgd(0.1)
    tx = optax.chain(before, exchange(), after)
  tx, mesh = rtopk_jax.lockstep(tx, AXIS), harness.mesh(WORKERS)
  specs = rtopk_jax.state_specs(tx, PARAMS, AXIS)

  def step(params, state, x):
    gradient = jax.grad(loss_fn)(rtopk_jax.local(params, AXIS), x)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  mapped = jax.shard_map(
    step,
    mesh=mesh,
    in_specs=(P(), specs, P(AXIS)),
    out_specs=(P(), specs),
    check_vma=check_vma,
  )
  step, params, state = jax.jit(mapped), start(), rtopk_jax.init(tx, PARAMS, mesh, AXIS)
  for batch in BATCHES:
    params, state = step(params, state, batch)
  check(params, by_hand(before, after))
