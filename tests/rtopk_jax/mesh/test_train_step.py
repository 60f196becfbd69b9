"""What a train step does beside the exchange: aux, model state, keys, weights, micro-batches, donation."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS, STEPS = harness.AXIS, 4, 3
PARAMS = {"w": np.linspace(-1, 1, 40 * 30, dtype=np.float32).reshape(40, 30)}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, 16, 40)).astype(np.float32)
# Padding: how many of the rows of each worker's batch count, another number each, and none of the last.
MASK = np.arange(16) % 4 < np.array([4, 1, 3, 0])[np.arange(16) // 4]


def exchange(density=1.0, **options):
  return rtopk_jax.sparse_exchange(rtopk_jax.top_k(density), AXIS, dense=False, **options)


def start(tx):
  mesh, params = harness.mesh(WORKERS), jax.tree.map(jnp.asarray, PARAMS)
  return mesh, params, rtopk_jax.init(tx, params, mesh, AXIS)


def train(tx, loss_fn, batches, *, keys=None, stats=None, **options):
  """All that the last step returned."""
  mesh, params, state = start(tx)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, **options)
  for i, batch in enumerate(batches):
    arguments = {} if keys is None else {"key": keys[i]}
    if stats is None:
      params, state, *rest = step(params, state, batch, **arguments)
    else:
      params, state, stats, *rest = step(params, state, batch, model_state=stats, **arguments)
  return params, state, stats, rest


def near(actual, wanted, tolerance=1e-5):
  compare = lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance)
  jax.tree.map(compare, jax.device_get(actual), jax.device_get(wanted))


def plain(x, params):
  return jnp.tanh(x @ params["w"]) ** 2


def loss_fn(params, x):
  return jnp.mean(plain(x, params))


def masked_loss(params, batch):
  """A mean over what is not padding: NaN where all is."""
  each = plain(batch["x"], params).mean(axis=1)
  return jnp.sum(each * batch["mask"]) / jnp.sum(batch["mask"])


def dense(loss_fn, batches, opt=None):
  opt = optax.sgd(0.5) if opt is None else opt
  params = jax.tree.map(jnp.asarray, PARAMS)
  state = opt.init(params)
  for batch in batches:
    loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = opt.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params, loss


@pytest.mark.parametrize(
  ("first", "momentum", "accumulate"),
  [
    ("sparse", 0.0, 1),
    ("sparse", 0.9, 2),
    pytest.param("sparse", 0.0, 2, marks=pytest.mark.slow),
    pytest.param("sparse", 0.9, 1, marks=pytest.mark.slow),
    *(pytest.param("dense", m, n, marks=pytest.mark.slow) for m in (0.0, 0.9) for n in (1, 2)),
  ],
)
def test_padded_batches_are_weighted(first, momentum, accumulate):
  """Workers of other numbers of examples, one with none: as one batch on one device."""
  batches = [{"x": x, "mask": np.roll(MASK, 4 * i).astype(np.float32)} for i, x in enumerate(X)]
  make = exchange if first == "sparse" else lambda **kw: rtopk_jax.dense_exchange(AXIS, **kw)
  options = {"momentum_masking": False} if first == "sparse" else {}
  tx = optax.chain(make(momentum=momentum, **options), optax.sgd(0.5))
  weight = lambda batch: batch["mask"].sum()
  params, _, _, (loss,) = train(tx, masked_loss, batches, weight=weight, accumulate=accumulate)
  wanted = dense(masked_loss, batches, optax.sgd(0.5, momentum or None))
  near((params, loss), wanted)


def test_a_batch_that_is_all_padding_moves_nothing():
  batch = {"x": X[0], "mask": np.zeros(16, np.float32)}
  tx = optax.chain(exchange(), optax.sgd(0.5))
  params, state, _, (loss,) = train(
    tx, masked_loss, [batch], weight=lambda batch: batch["mask"].sum()
  )
  np.testing.assert_array_equal(params["w"], PARAMS["w"])
  assert float(loss) == 0
  assert int(state[0].metrics.skipped) == 0


@pytest.mark.parametrize("accumulate", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_micro_batches_are_averaged_before_the_exchange(accumulate):
  tx = optax.chain(exchange(0.1), optax.sgd(0.5))
  whole = train(tx, loss_fn, X)
  parts = train(tx, loss_fn, X, accumulate=accumulate)
  near(parts[0], whole[0])
  near(parts[3], whole[3])


def test_a_key_of_each_worker_step_and_micro_batch():
  tx = optax.chain(exchange(), optax.sgd(0.0))

  def noisy(params, x, key):
    return loss_fn(params, x), jax.random.bits(key)

  def drawn(accumulate, key):
    options = {"rngs": True, "has_aux": True, "accumulate": accumulate}
    *_, (_, bits) = train(tx, noisy, X[:1], keys=[jax.random.key(key)], **options)
    assert bits.shape == (WORKERS,) if accumulate == 1 else (WORKERS, accumulate)
    return np.asarray(bits).ravel().tolist()

  several = drawn(2, 1)
  assert drawn(2, 1) == several
  seen = several + drawn(1, 0) + drawn(1, 1) + drawn(2, 0)
  assert len(set(seen)) == len(seen) == 2 * (WORKERS + 2 * WORKERS)


def with_statistics(params, stats, x):
  """A model that keeps a running mean, a number of steps and a flag."""
  new = {
    "mean": 0.5 * stats["mean"] + 0.5 * x.mean(axis=0),
    "steps": stats["steps"] + 1,
    "on": jnp.bool_(True),
  }
  return jnp.mean(plain(x - stats["mean"][None], params)), new


STATS = {"mean": jnp.zeros(40), "steps": jnp.int32(0), "on": jnp.bool_(False)}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_model_state_is_the_mean_or_each_workers_own(accumulate):
  tx = optax.chain(exchange(), optax.sgd(0.5))
  parts = X.reshape(STEPS, WORKERS * accumulate, 16 // WORKERS // accumulate, 40).mean(axis=2)
  own = np.zeros((WORKERS, 40), np.float32)
  for step in parts.reshape(STEPS, WORKERS, accumulate, 40):
    for i in range(accumulate):
      own = 0.5 * own + 0.5 * step[:, i]
  rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (WORKERS, *x.shape)), STATS)
  run = lambda kind, stats: train(
    tx, with_statistics, X, stats=stats, model_state=kind, accumulate=accumulate
  )[2]
  stats = run("worker", rows)
  near(stats["mean"], own)
  np.testing.assert_array_equal(stats["steps"], [STEPS * accumulate] * WORKERS)
  assert stats["mean"].sharding.spec == P(AXIS)
  stats = run("mean", STATS)
  # It is linear, so that the mean after each step comes to the mean after all.
  near(stats["mean"], own.mean(axis=0))
  assert int(stats["steps"]) == STEPS * accumulate
  assert bool(stats["on"])
  assert stats["mean"].sharding.is_fully_replicated


@pytest.mark.parametrize("kind", ["mean", "worker"])
def test_a_skipped_step_leaves_the_model_state_too(kind):
  tx = optax.chain(exchange(), optax.sgd(optax.linear_schedule(0.1, 0.0, 9), momentum=0.9))
  mesh, params, state = start(tx)
  stats = jax.tree.map(lambda x: x + 1, {"mean": STATS["mean"], "steps": STATS["steps"]})
  if kind == "worker":
    stats = jax.tree.map(lambda x: jnp.stack([x] * WORKERS), stats)

  def loss(params, stats, x):
    value, new = with_statistics(params, stats, x)
    return value, {name: new[name] for name in stats}

  step = rtopk_jax.make_train_step(loss, tx, mesh, AXIS, model_state=kind, donate=False)
  bad = X[0].copy()
  bad[5] = np.inf
  after = step(params, state, bad, model_state=stats)
  np.testing.assert_array_equal(after[0]["w"], PARAMS["w"])
  jax.tree.map(np.testing.assert_array_equal, after[2], stats)
  jax.tree.map(np.testing.assert_array_equal, after[1][1], state[1])
  assert int(after[1][0].metrics.skipped) == int(after[1][0].count) == 1


def test_aux_beside_model_state_and_key():
  tx = optax.chain(exchange(0.5), optax.sgd(0.5))

  def loss(params, stats, x, key):
    value, stats = with_statistics(params, stats, x)
    return value, (stats, {"first": x[0, 0], "drawn": jax.random.uniform(key)})

  keys = list(jax.random.split(jax.random.key(0), STEPS))
  _, _, stats, (loss, aux) = train(
    tx, loss, X, stats=STATS, keys=keys, model_state="mean", rngs=True, has_aux=True
  )
  np.testing.assert_array_equal(aux["first"], X[-1, ::4, 0])
  assert len(set(np.asarray(aux["drawn"]).tolist())) == WORKERS
  assert int(stats["steps"]) == STEPS
  assert loss.shape == ()


def test_a_lowered_step_is_called_as_the_step_is():
  tx = optax.chain(exchange(0.5), optax.sgd(0.5))
  mesh, params, state = start(tx)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, donate=False)
  params, state, _ = step(params, state, X[0])
  batch = jax.device_put(X[1], jax.NamedSharding(mesh, P(AXIS)))
  compiled = step.lower(params, state, batch).compile()
  jax.tree.map(
    np.testing.assert_array_equal, compiled(params, state, batch), step(params, state, batch)
  )


def test_keys_have_no_mean():
  tx = optax.chain(exchange(0.5), optax.sgd(0.5))
  loss = lambda params, stats, x: (loss_fn(params, x), stats)
  with pytest.raises(TypeError, match=r"cannot average a PRNG key.*rngs=True.*model_state=.worker"):
    train(tx, loss, X, stats={"key": jax.random.key(0)}, model_state="mean")


def test_the_mean_loss_reaches_the_optimizer():
  """``optax.contrib.reduce_on_plateau`` wants it, as the same on all workers."""
  plateau = optax.contrib.reduce_on_plateau(factor=0.1, patience=1, rtol=0.9)
  tx = optax.chain(exchange(), optax.sgd(0.01), plateau)
  with jax.numpy_dtype_promotion("standard"):
    _, state, _, _ = train(tx, loss_fn, [*X, *X])
  assert float(state[2].scale) < 1


ONE_STEP = """
import jax, jax.numpy as jnp, numpy as np, optax, rtopk_jax
jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((4,), ("data",))
tx = optax.chain(rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.5), "data"), optax.sgd(0.1))
loss_fn = lambda p, x: jnp.mean((x @ p["a"] @ p["b"]) ** 2)
w, x = jnp.eye(40), np.ones((8, 40), np.float32)
step = rtopk_jax.make_train_step(loss_fn, tx, mesh, "data")
for kind in range(4):
  placed = jax.device_put(jnp.copy(w), jax.NamedSharding(mesh, jax.P()))
  a, b = ((w, w), (placed, placed), (placed, w), (w, np.asarray(w)))[kind]
  params = {"a": a, "b": b}
  state = rtopk_jax.init(tx, params, mesh, "data")
  params, state, loss = step(params, state, x)
  assert float(loss) == 1, loss
  # The results of a step under two names.
  params["b"] = params["a"]
  params, state, loss = step(params, state, x)
  print(params["a"].shape, float(w.sum()))
"""


def test_one_buffer_under_two_names_is_never_donated_twice():
  """That ends a process, so there is one for it. What was not in its place stays the user's."""
  done = subprocess.run(
    [sys.executable, "-W", "error", "-c", ONE_STEP], capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == ["(40, 40) 40.0"] * 4


def test_a_placed_array_is_donated_and_another_is_not():
  tx = optax.chain(exchange(0.5), optax.sgd(0.5))
  mesh, params, state = start(tx)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS)
  after, state, _ = step(params, state, X[0])
  assert not params["w"].is_deleted()
  again, state, _ = step(after, state, X[0])
  assert after["w"].is_deleted()
  assert not again["w"].is_deleted()


def test_numpy_parameters_are_left_as_they_are():
  tx = optax.chain(exchange(0.5), optax.sgd(0.5))
  mesh, _, state = start(tx)
  params = {"w": PARAMS["w"].copy()}
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS)
  after, _, _ = step(params, state, X[0])
  np.testing.assert_array_equal(params["w"], PARAMS["w"])
  assert np.any(after["w"] != params["w"])


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"accumulate": 0}, ValueError, "accumulate must be at least 1, got 0"),
    ({"accumulate": 1.5}, TypeError, "accumulate must be an integer"),
    ({"model_state": "sum"}, ValueError, "model_state must be one of 'mean', 'worker', got 'sum'"),
    ({"model_state": True}, ValueError, "model_state must be one of 'mean', 'worker', got True"),
    ({"rngs": 3}, TypeError, "rngs must be True or False"),
    ({"weight": 3}, TypeError, "weight must be a function of a worker's batch, got 3"),
    ({"loss_fn": 3}, TypeError, "loss_fn must be a function, got 3"),
    ({"tx": optax.adam}, TypeError, r"tx must be an optax\.GradientTransformation"),
  ],
)
def test_wrong_options(options, error, message):
  arguments = {"loss_fn": loss_fn, "tx": exchange(), "mesh": harness.mesh(2), "axis_name": AXIS}
  with pytest.raises(error, match=message):
    rtopk_jax.make_train_step(**arguments | options)


@pytest.mark.parametrize(
  ("options", "arguments", "message"),
  [
    ({"rngs": True}, {}, "key is missing, and make_train_step was given rngs=True"),
    ({}, {"key": jax.random.key(0)}, r"key is of no use without make_train_step\(…, rngs=True\)"),
    ({"model_state": "mean"}, {}, 'model_state is missing.*model_state="mean"'),
    ({}, {"model_state": {}}, "model_state is of no use without"),
    ({"accumulate": 3}, {}, r"batch has shape \(16, 40\).*4 workers, 3 micro-batches each"),
  ],
)
def test_wrong_arguments_of_a_step(options, arguments, message):
  tx = optax.chain(exchange(), optax.sgd(0.5))
  mesh, params, state = start(tx)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, **options)
  with pytest.raises(ValueError, match=message):
    step(params, state, X[0], **arguments)


@pytest.mark.parametrize(
  ("options", "result", "message"),
  [
    (
      {},
      lambda loss, x: (loss, {}),
      r"must return loss, .*has_aux=False say; got \(float32 of shape \(\), dict\)",
    ),
    ({}, lambda loss, x: x, r".*loss is a scalar.*got float32 of shape \(4, 40\)"),
    ({"has_aux": True}, lambda loss, x: loss, r"must return \(loss, aux\).*float32 of shape \(\)"),
    ({"has_aux": True}, lambda loss, x: (x, loss), r"must return \(loss, aux\)"),
    ({"model_state": "mean"}, lambda loss, x: loss, r"must return \(loss, model_state\)"),
    (
      {"model_state": "mean", "has_aux": True},
      lambda loss, x: (loss, STATS),
      r"must return \(loss, \(model_state, aux\)\)",
    ),
  ],
)
def test_results_of_another_form(options, result, message):
  tx = optax.chain(exchange(), optax.sgd(0.5))
  mesh, params, state = start(tx)
  step = rtopk_jax.make_train_step(
    lambda params, *rest: result(loss_fn(params, rest[-1]), rest[-1]), tx, mesh, AXIS, **options
  )
  given = {"model_state": STATS} if "model_state" in options else {}
  with pytest.raises(TypeError, match=f"loss_fn {message}"):
    step(params, state, X[0], **given)


def test_aux_of_pythons_numbers():
  tx = optax.chain(exchange(), optax.sgd(0.5))
  loss = lambda params, x: (loss_fn(params, x), {"n": 3, "x": 0.5})
  *_, (_, aux) = train(tx, loss, X[:1], has_aux=True)
  assert aux["n"].tolist() == [3] * WORKERS
  assert aux["x"].tolist() == [0.5] * WORKERS


def test_a_state_that_does_not_fit():
  tx = optax.chain(exchange(), optax.sgd(0.5))
  mesh, params, state = start(tx)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS)
  with pytest.raises(ValueError, match=r"state.*made outside the mapped axis.*rtopk_jax\.init"):
    step(params, tx.init(params), X[0])
  restored = [state[0]._asdict(), list(state[1])]
  with pytest.raises(TypeError, match=r"state has another structure.*Orbax's StandardRestore"):
    step(params, restored, X[0])
  with pytest.raises(TypeError, match=r"state has nothing for .*init\(…\)\[0\]\.residual\['b'\]"):
    step({**params, "b": jnp.zeros(3)}, state, X[0])
  others = rtopk_jax.resize_workers(jax.device_get(state), 2)
  with pytest.raises(ValueError, match=r"rtopk_jax\.resize_workers\(state, 4\)"):
    step(params, others, X[0])
  fits = rtopk_jax.resize_workers(others, WORKERS)
  assert float(step(params, fits, X[0])[2]) > 0
