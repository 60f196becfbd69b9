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

AXIS, WORKERS, STEPS = harness.AXIS, 4, 4
PARAMS = {
  "w": np.linspace(-1, 1, 8 * 6, dtype=np.float32).reshape(8, 6),
  "b": np.linspace(0.5, -0.3, 6, dtype=np.float32),
}
BATCHES = np.random.default_rng(0).normal(size=(STEPS, 4 * WORKERS, 8)).astype(np.float32)


def loss_fn(params, x):
  return jnp.mean((jnp.tanh(x @ params["w"] + params["b"][None]) - x[:, :6]) ** 2)


def exchange(**options):
  return rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, **{"dense": False, **options})


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
  return any(isinstance(x, contrib.SAMState) for x in (state, *state))


def check(actual, expected, tolerance=1e-5):
  # In units of what the weights are, and no weight may be NaN.
  compare = lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance)
  jax.tree.map(compare, actual, expected)
  assert np.any(jax.tree.leaves(actual)[-1] != PARAMS["w"])


mask = {"w": True, "b": False}
contrib = optax.contrib

# An optimizer, or what is done with the mean gradient.
AFTER = {
  "adabelief": lambda: optax.adabelief(0.01),
  "adadelta": lambda: optax.adadelta(0.1),
  "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=4),
  "adagrad": lambda: optax.adagrad(0.1),
  "adam": lambda: optax.adam(0.01),
  "adamax": lambda: optax.adamax(0.01),
  "adamaxw": lambda: optax.adamaxw(0.01),
  "adamw": lambda: optax.adamw(optax.linear_schedule(0.1, 0.0, 3), mask=mask),
  "adan": lambda: optax.adan(0.01),
  "amsgrad": lambda: optax.amsgrad(0.01),
  "fromage": lambda: optax.fromage(0.01),
  "lamb": lambda: optax.lamb(0.01),
  "lars": lambda: optax.lars(0.01),
  "lion": lambda: optax.lion(0.01),
  "nadam": lambda: optax.nadam(0.01),
  "nadamw": lambda: optax.nadamw(0.01),
  "noisy_sgd": lambda: optax.noisy_sgd(0.01, key=1),
  "novograd": lambda: optax.novograd(0.01),
  "optimistic_adam": lambda: optax.optimistic_adam_v2(0.01),
  "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(0.1),
  "polyak_sgd": lambda: optax.polyak_sgd(),
  "radam": lambda: optax.radam(0.01),
  "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9),
  "rprop": lambda: optax.rprop(0.01),
  "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
  "sign_sgd": lambda: optax.sign_sgd(0.01),
  "signum": lambda: optax.signum(0.01),
  "sm3": lambda: optax.sm3(0.1),
  "yogi": lambda: optax.yogi(0.01),
  "acprop": lambda: contrib.acprop(0.01),
  "ademamix": lambda: contrib.ademamix(0.01),
  "simplified_ademamix": lambda: contrib.simplified_ademamix(0.01),
  "adopt": lambda: contrib.adopt(0.01),
  "cocob": lambda: contrib.cocob(),
  "dadapt_adamw": lambda: contrib.dadapt_adamw(),
  "dog": lambda: optax.chain(contrib.dog(), optax.scale(-1.0)),
  "dowg": lambda: optax.chain(contrib.dowg(), optax.scale(-1.0)),
  "galore": lambda: optax.chain(contrib.scale_by_galore(2), optax.scale(-0.01)),
  "madgrad": lambda: contrib.madgrad(0.01),
  "mechanize": lambda: contrib.mechanize(optax.sgd(0.1)),
  "momo": lambda: contrib.momo(0.1),
  "momo_adam": lambda: contrib.momo_adam(0.01),
  "muon": lambda: contrib.muon(0.01),
  "prodigy": lambda: contrib.prodigy(0.1),
  "reduce_on_plateau": lambda: optax.chain(
    optax.sgd(0.1), contrib.reduce_on_plateau(patience=1, rtol=0.5)
  ),
  "schedule_free": lambda: contrib.schedule_free_sgd(0.1),
  "add_noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, key=3), optax.sgd(0.1)),
  "add_decayed_weights": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
  "apply_every": lambda: optax.chain(optax.apply_every(2), optax.sgd(0.1)),
  "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.01), 3),
  "conditionally_transform": lambda: optax.chain(
    optax.conditionally_transform(optax.clip(0.01), lambda step: step > 1), optax.sgd(0.1)
  ),
  "ema": lambda: optax.chain(optax.ema(0.9), optax.sgd(0.1)),
  "flatten": lambda: optax.flatten(optax.adam(0.01)),
  "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
    optax.linear_schedule(0.1, 0.0, 3)
  ),
  "keep_params_nonnegative": lambda: optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
  "masked": lambda: optax.chain(optax.masked(optax.trace(0.9), mask), optax.sgd(0.1)),
  "multi_steps": lambda: optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
  "skip_not_finite": lambda: optax.MultiSteps(
    optax.adam(0.01), 2, should_skip_update_fn=optax.skip_not_finite
  ).gradient_transformation(),
  "named_chain": lambda: optax.named_chain(("a", optax.trace(0.9)), ("b", optax.sgd(0.1))),
  "partition": lambda: optax.partition({True: optax.adam(0.01), False: optax.sgd(0.1)}, mask),
  "freeze": lambda: optax.chain(optax.adam(0.01), optax.freeze({"w": False, "b": True})),
  "selective_transform": lambda: optax.selective_transform(
    optax.adam(0.01), freeze_mask={"w": False, "b": True}
  ),
  "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.adam(0.01)),
  "sam": lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2),
  "normalize": lambda: optax.chain(contrib.normalize(), optax.sgd(0.1)),
  "zero_nans": lambda: optax.chain(optax.zero_nans(), optax.sgd(0.1)),
}

# What each worker does to its own gradient.
BEFORE = {
  "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.05),
  "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
  "apply_every": lambda: optax.apply_every(2),
  "centralize": lambda: optax.centralize(),
  "clip": lambda: optax.clip(0.01),
  "clip_by_block_rms": lambda: optax.clip_by_block_rms(0.01),
  "clip_by_global_norm": lambda: optax.clip_by_global_norm(0.1),
  "conditionally_transform": lambda: optax.conditionally_transform(
    optax.clip(0.01), lambda step: step > 1
  ),
  "ema": lambda: optax.ema(0.9),
  "flatten": lambda: optax.flatten(optax.trace(0.9)),
  "galore": lambda: contrib.scale_by_galore(2),
  "keep": lambda: optax.identity(),
  "masked": lambda: optax.masked(optax.trace(0.9), mask),
  "named_chain": lambda: optax.named_chain(("a", optax.trace(0.5)), ("b", optax.ema(0.5))),
  "normalize": lambda: contrib.normalize(),
  "partition": lambda: optax.partition({True: optax.trace(0.9), False: optax.identity()}, mask),
  "scale_by_adam": lambda: optax.scale_by_adam(),
  "scale_by_factored_rms": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=4),
  "scale_by_lion": lambda: optax.scale_by_lion(),
  "scale_by_rms": lambda: optax.scale_by_rms(),
  "scale_by_sm3": lambda: optax.scale_by_sm3(),
  "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.trace(0.9)),
  "trace": lambda: optax.trace(0.9, nesterov=True),
  "zero_nans": lambda: optax.zero_nans(),
}

OF_STATE = lambda first: optax.chain(first, optax.adam(0.01))
# From the exchange, or what does nothing in its place, to the whole.
AROUND = {
  "chain": OF_STATE,
  "conditionally_mask": lambda first: optax.conditionally_mask(
    OF_STATE(first), lambda step: step > 1
  ),
  "flatten": lambda first: optax.flatten(OF_STATE(first)),
  "inject_hyperparams": lambda first: optax.inject_hyperparams(
    lambda rate: optax.chain(first, optax.adam(rate))
  )(0.01),
  "lookahead": lambda first: optax.lookahead(OF_STATE(first), 2, 0.5),
  "multi_steps": lambda first: optax.MultiSteps(OF_STATE(first), 2).gradient_transformation(),
  "multi_steps_sum": lambda first: optax.MultiSteps(
    OF_STATE(first), 2, use_grad_mean=False
  ).gradient_transformation(),
  "named_chain": lambda first: optax.named_chain(("a", first), ("b", optax.adam(0.01))),
  "partition": lambda first: optax.partition(
    {True: OF_STATE(first), False: optax.chain(first, optax.sgd(0.1))}, mask
  ),
  "partition_frozen": lambda first: optax.partition(
    {True: OF_STATE(first), False: optax.set_to_zero()}, mask
  ),
  "sam": lambda first: contrib.sam(
    optax.chain(first, optax.sgd(0.1)), optax.chain(first, optax.sgd(0.05)), sync_period=2
  ),
  "schedule_free": lambda first: contrib.schedule_free(optax.chain(first, optax.sgd(0.1)), 0.1),
  "split_real_and_imaginary": lambda first: contrib.split_real_and_imaginary(OF_STATE(first)),
  "with_extra_args": lambda first: optax.with_extra_args_support(OF_STATE(first)),
}


def lookahead(name):
  """Parameters and loss of ``optax.lookahead``, which has two of each weight."""
  if name != "lookahead":
    return {}
  return {
    "loss": lambda params, x: loss_fn(params.fast, x),
    "params": optax.LookaheadParams.init_synced(start()),
  }


DEADLOCK = "under a condition that can differ between workers.*rtopk_jax.lockstep"
PARTED = r"makes updates\['\w'\].* went through no exchange, and workers would part ways"
REFUSED = {
  "apply_if_finite around": (
    lambda: optax.apply_if_finite(optax.chain(exchange(), optax.sgd(0.1)), 3),
    DEADLOCK,
  ),
  "conditionally_transform around": (
    lambda: optax.conditionally_transform(exchange(), lambda step: step > 1),
    PARTED,
  ),
  "lbfgs after": (
    lambda: optax.chain(exchange(), optax.lbfgs()),
    "update wants arguments.*value_fn",
  ),
  "masked around": (lambda: optax.masked(exchange(), mask), r"updates\['b'\].*dense=mask"),
  "masked around nothing": (
    lambda: optax.masked(exchange(), lambda params: jax.tree.map(lambda _: False, params)),
    PARTED,
  ),
  "mechanize around": (
    lambda: contrib.mechanize(optax.chain(exchange(), optax.sgd(0.1))),
    f"{PARTED}.*goes after the exchange",
  ),
  "monitor after": (
    lambda: optax.chain(exchange(), optax.monitor({"norm": optax.tree.norm})),
    "state of another structure than tx.init",
  ),
  "multi_steps with a condition around": (
    lambda: optax.MultiSteps(
      exchange(), 2, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    DEADLOCK,
  ),
  "multi_steps unfinished": (
    lambda: optax.MultiSteps(exchange(), 2),
    "tx must be an optax.GradientTransformation.*pass tx.gradient_transformation",
  ),
  "nothing": (lambda: optax.sgd(0.1), "tx has no exchange in it"),
  "partition without an exchange": (
    lambda: optax.partition({True: exchange(), False: optax.sgd(0.1)}, mask),
    r"updates\['b'\].*workers would part ways",
  ),
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
  *(
    "adafactor",
    "adamw",
    "apply_every",
    "apply_if_finite",
    "flatten",
    "galore",
    "inject_hyperparams",
  ),
  *("masked", "momo", "multi_steps", "noisy_sgd", "partition", "polyak_sgd", "reduce_on_plateau"),
  *("sam", "schedule_free", "selective_transform", "sgd", "skip_not_finite", "sm3"),
)


QUICK_BEFORE = ("apply_every", "flatten", "masked", "partition", "scale_by_adam", "zero_nans")


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


@pytest.mark.parametrize("name", AROUND)
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


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", ["trace", "scale_by_adam", "zero_nans", "ema", "multi_steps"])
def test_lockstep_in_a_map_of_ones_own(name, check_vma):
  """The whole chain, wrapped, in a ``shard_map`` whose state comes from outside."""
  if name == "multi_steps":
    before, around = optax.identity(), AROUND[name]
    tx, after = around(exchange()), around(optax.identity())
  else:
    before, after = BEFORE[name](), optax.sgd(0.1)
    tx = optax.chain(before, exchange(), after)
  if name == "multi_steps" and check_vma:
    pytest.skip("optax.MultiSteps loses types: refused by name, see test_errors")
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
