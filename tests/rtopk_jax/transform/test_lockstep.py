"""A step that one worker cannot take is taken by none, and changes nothing but counters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS = harness.AXIS, 4
PARAMS = {
  "w": np.linspace(-1, 1, 40 * 30, dtype=np.float32).reshape(40, 30),
  "b": np.zeros(30, np.float32),
}
X = np.random.default_rng(0).normal(size=(6, 8, 40)).astype(np.float32)
rate = optax.linear_schedule(0.1, 0.0, 10)


@pytest.fixture(autouse=True)
def usual_promotion():
  """Parts of optax mix dtypes and ranks, which these tests are not about."""
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


def loss_fn(params, x):
  return jnp.mean(jnp.tanh(x @ params["w"] + params["b"][None]) ** 2)


def exchange(**options):
  options = {"dense": {"w": False, "b": True}, "momentum": 0.9, **options}
  return rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.05), AXIS, **options)


CHAINS = {
  "adam": lambda: optax.chain(exchange(), optax.adam(rate)),
  "adamw": lambda: optax.chain(exchange(), optax.adamw(rate)),
  "momentum": lambda: optax.chain(exchange(momentum=0.0), optax.sgd(rate, momentum=0.9)),
  "rtopk_sgd": lambda: rtopk_jax.rtopk_sgd(rate, 0.05, AXIS, weight_decay=0.1),
  "scheduled decay": lambda: rtopk_jax.rtopk_sgd(rate, 0.05, AXIS, weight_decay=rate),
  "dense": lambda: optax.chain(rtopk_jax.dense_exchange(AXIS, momentum=0.9), optax.adamw(rate)),
  "before": lambda: optax.chain(optax.trace(0.5), exchange(), optax.adamw(rate)),
  "no memory": lambda: optax.chain(exchange(error_feedback=False, momentum=0.0), optax.adam(rate)),
  "two": lambda: optax.partition(
    {
      True: optax.chain(exchange(dense=None), optax.adamw(rate)),
      False: optax.chain(rtopk_jax.dense_exchange(AXIS, momentum=0.9), optax.adamw(rate)),
    },
    {"w": True, "b": False},
  ),
  "injected": lambda: optax.inject_hyperparams(
    rtopk_jax.rtopk_sgd, static_args=("density", "axis_name", "momentum")
  )(rate, 0.05, AXIS, weight_decay=0.1),
}


def bits(tree):
  """Every leaf but the exchange's counters, as they are in memory."""
  is_exchange = lambda x: isinstance(
    x, rtopk_jax.SparseExchangeState | rtopk_jax.DenseExchangeState
  )
  hide = lambda x: (
    x._replace(count=0, metrics=x.metrics._replace(skipped=0)) if is_exchange(x) else x
  )
  hidden = jax.tree.map(hide, jax.device_get(tree), is_leaf=is_exchange)
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(hidden)]


def train(tx, batches):
  mesh, params = harness.mesh(WORKERS), jax.tree.map(jnp.asarray, PARAMS)
  state = rtopk_jax.init(tx, params, mesh, AXIS)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, donate=False)
  history = [(params, state)]
  for x in batches:
    params, state, _ = step(*history[-1], x)
    history.append((params, state))
  return history


def spoiled(x, worker=2, value=np.nan):
  x = x.copy()
  x[2 * worker, 0] = value
  return x


# An optimizer's state, one that counts, what stands before, and two exchanges.
_QUICK_CHAINS = ("adamw", "scheduled decay", "before", "two", "dense")


@pytest.mark.parametrize(
  ("name", "value"),
  [
    pytest.param(
      name,
      value,
      marks=[] if name in _QUICK_CHAINS and value is np.nan else pytest.mark.slow,
    )
    for name in CHAINS
    for value in (np.nan, np.inf)
  ],
)
def test_nothing_moves_but_counters(name, value):
  batches = [X[0], spoiled(X[1], value=value), X[2]]
  before, skipped, after = train(CHAINS[name](), batches)[1:]
  assert bits(skipped) == bits(before)
  assert bits(after) != bits(before)
  assert float(rtopk_jax.exchange_metrics(skipped[1])["skipped_steps"]) == 1
  assert float(rtopk_jax.exchange_metrics(after[1])["skipped_steps"]) == 1


@pytest.mark.parametrize("name", ["before", pytest.param("two", marks=pytest.mark.slow)])
def test_a_skipped_step_is_as_if_it_had_not_been(name):
  with_it = train(CHAINS[name](), [X[0], spoiled(X[1])])[-1]
  without = train(CHAINS[name](), [X[0]])[-1]
  assert bits(with_it) == bits(without)


def test_accumulated_gradients_stay_finite():
  """A micro-batch that is not finite is left out of what MultiSteps adds up, by all workers."""
  around = lambda first: optax.MultiSteps(
    optax.chain(first, optax.adam(0.1)), 2
  ).gradient_transformation()
  first = rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, dense=False)
  wanted, _ = train(around(first), X[:4])[-1]
  for bad in range(2):
    batches = list(X[:4])
    batches.insert(bad, spoiled(X[5]))
    actual, state = train(around(first), batches)[-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, wanted)
    assert float(rtopk_jax.exchange_metrics(state)["skipped_steps"]) == 1


def own_map(tx, mode, check_vma=True):
  """A step of a user's own, from parameters, state and a batch."""
  mesh = harness.mesh(WORKERS)

  def one(params, state, x):
    gradient = jax.grad(loss_fn)(rtopk_jax.local(params, AXIS), x)
    updates, state = tx.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.asarray, PARAMS)
  if mode == "vmap":
    axes = rtopk_jax.state_axes(tx, params)
    init = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=WORKERS)
    mapped = jax.vmap(one, in_axes=(None, axes, 0), out_axes=(None, axes), axis_name=AXIS)
    step = lambda p, s, x: mapped(p, s, x.reshape(WORKERS, -1, 40))
    return params, init(params), jax.jit(step)
  specs = rtopk_jax.state_specs(tx, params, AXIS)
  mapped = jax.shard_map(
    one, mesh=mesh, in_specs=(P(), specs, P(AXIS)), out_specs=(P(), specs), check_vma=check_vma
  )
  return params, rtopk_jax.init(tx, params, mesh, AXIS), jax.jit(mapped)


QUICK = (("before", "shard_map"), ("injected", "vmap"))


@pytest.mark.parametrize(
  ("name", "mode"),
  [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in itertools.product(
      ("adamw", "before", "two", "injected"), ("vmap", "shard_map", "no check")
    )
  ],
)
def test_chains_of_ones_own(name, mode):
  tx = rtopk_jax.lockstep(CHAINS[name](), AXIS)
  check_vma = mode != "no check"
  params, state, step = own_map(tx, mode.replace("no check", "shard_map"), check_vma)
  params, state = step(params, state, X[0])
  skipped = step(params, state, spoiled(X[1]))
  assert bits(skipped) == bits((params, state))
  assert bits(step(*skipped, X[2])) != bits(skipped)
  # The same as the train step does by itself, but for what compilers fuse.
  theirs = train(CHAINS[name](), [X[0]])[-1]
  close = lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6)
  jax.tree.map(close, jax.device_get((params, state)), jax.device_get(theirs))


def test_twice_is_once():
  tx = CHAINS["before"]()
  once, twice = rtopk_jax.lockstep(tx, AXIS), rtopk_jax.lockstep(rtopk_jax.lockstep(tx, AXIS), AXIS)
  assert rtopk_jax.state_specs(once, PARAMS, AXIS) == rtopk_jax.state_specs(twice, PARAMS, AXIS)
  batches = [X[0], spoiled(X[1]), X[2]]
  # Two programs, in one of which a product may be part of the sum that follows.
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  jax.tree.map(close, train(once, batches)[-1], train(twice, batches)[-1])


def test_a_row_that_no_one_takes_off_is_refused():
  """Without lockstep, in a map of one's own, a transformation would be given a row it does not know of."""
  params, state, step = own_map(CHAINS["before"](), "shard_map")
  with pytest.raises(ValueError, match=r"updates\['b'\] has shape \(1, 30\).*rtopk_jax\.lockst"):
    step(params, state, X[0])


def test_rounds_are_skipped_whole():
  """Weights, outer momentum and what workers keep, in ``federated``."""
  outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
  fed = rtopk_jax.federated(
    loss_fn, optax.adam(0.01), exchange(momentum=0.0), AXIS, outer=outer, keep_inner=True
  )
  params = jax.tree.map(jnp.asarray, PARAMS)
  axes = rtopk_jax.state_axes(fed.tx, params)
  init = jax.vmap(fed.tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=WORKERS)
  mapped = jax.vmap(
    lambda p, s, x: fed.round(p, s, x),
    in_axes=(None, axes, 0),
    out_axes=rtopk_jax.Round(None, axes, 0, None, 0),
    axis_name=AXIS,
  )
  batches = np.broadcast_to(X[:4, None], (4, 2, 8, 40)).copy()
  first = jax.jit(mapped)(params, init(params), batches)
  batches[1, 1, 0, 0] = np.nan
  second = jax.jit(mapped)(first.params, first.state, batches)
  assert bits((second.params, second.state.outer, second.state.inner)) == bits(
    (first.params, first.state.outer, first.state.inner)
  )
  assert int(second.state.count) == 2


def before_the_exchange(gradients, **arguments):
  """Updates and the momentum of every worker after two steps of ``trace`` before a complete exchange."""
  exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, dense=False)
  tx = rtopk_jax.lockstep(optax.chain(optax.trace(0.5), exchange), AXIS)

  def one(gradients, arguments):
    state = tx.init(gradients[0])
    for gradient, now in zip(gradients, arguments, strict=True):
      updates, state = tx.update(gradient, state, **now)
    return updates, state[0].trace, state[1].metrics.skipped

  steps = [
    {name: x[step] for name, x in arguments.items()}
    for step in range(len(next(iter(arguments.values()))))
  ]
  mapped = jax.vmap(one, in_axes=(0, 0), out_axes=(None, 0, None), axis_name=AXIS)
  return jax.device_get(jax.jit(mapped)(jnp.swapaxes(gradients, 0, 1), steps))


def test_who_is_absent_accumulates_nothing():
  """Whatever it was given, even if it is not finite."""
  gradients = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 6.0]], np.float32)[..., None]
  present = np.array([[True, True, True], [True, False, True]])
  updates, trace, skipped = before_the_exchange(gradients, present=present)
  np.testing.assert_allclose(trace[:, 0], [4.5, 2.0, 7.5])
  np.testing.assert_allclose(updates, [6.0])
  assert skipped == 0


def test_what_is_accumulated_is_weighted():
  """The mean of no examples is NaN, and weighs nothing."""
  gradients = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, 6.0]], np.float32)[..., None]
  weight = np.array([[1, 1, 2], [3, 0, 1]], np.int32)
  updates, _, skipped = before_the_exchange(gradients, weight=weight)
  means = [(1 + 2 + 2 * 3) / 4, (3 * 4 + 6) / 4]
  np.testing.assert_allclose(updates, [0.5 * means[0] + means[1]])
  assert skipped == 0
