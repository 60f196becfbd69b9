"""The steps of n workers, by themselves and in short runs, on a task of a user's own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import data
from configs.rows import METHODS
from tests.train import tiny
from tests.train.runs import lines
from tests.train.steps.workers import started
from train import train_and_evaluate
from train.planning.plan import make_plan
from train.steps import drift
from train.steps.drift import DriftError
from train.steps.methods import make_rounds
from train.steps.participation import present
from train.steps.totals import NotFiniteError
from train.steps.workers import Workers

pytestmark = pytest.mark.usefixtures("usual_promotion")


def message(k):
  """Bytes of k pairs behind a header of three words, in whole tiles of 128 words."""
  return 4 * 128 * -(-(3 + 2 * k) // 128)


def test_metrics_of_steps_and_epochs(config, tmp_path):
  config.methods = ("rtopk", "none")
  records = train_and_evaluate(config, str(tmp_path))
  for method in config.methods:
    folder = tmp_path / "runs" / f"{method}-0"
    steps = [json.loads(x) for x in (folder / "steps.jsonl").read_text().splitlines()]
    assert [x["step"] for x in steps] == list(range(1, 31))
    for x in steps:
      assert x["steps_per_second"] > 0
      assert x["examples_per_second"] > 0
      assert x["seconds_left"] >= 0
      assert x["skipped_steps"] == 0
      assert 0 < x["union_coverage"] <= 1
    assert steps[-1]["seconds_left"] == 0
    assert (steps[-1]["residual_norm"] > 0) == (method == "rtopk")
    mine = [x for x in records if x["method"] == method]
    means = [np.mean([x["train_loss"] for x in steps[i : i + 10]]) for i in (0, 10, 20)]
    np.testing.assert_allclose([x["train_loss"] for x in mine], means, rtol=1e-12)
    assert mine[-1]["sent_bytes"] == steps[-1]["sent_bytes"]
    # d = 130: k = 32 in the first epoch, then 13.
    sent = 10 * message(32) + 20 * message(13) if method == "rtopk" else 30 * 4 * 130
    received = 3 * sent if method == "rtopk" else sent
    assert (mine[-1]["sent_bytes"], mine[-1]["received_bytes"]) == (sent, received)
    # The running mean of 12 inputs is averaged for each of three evaluations.
    assert [x["statistics_bytes"] for x in mine] == [48, 96, 144]
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
  assert "w" in (tmp_path / "parameters.txt").read_text()


@pytest.mark.parametrize(
  ("setting", "kind"),
  [
    ("distributed", "devices"),
    ("federated", "simulated"),
    pytest.param("distributed", "simulated", marks=pytest.mark.slow),
    pytest.param("federated", "devices", marks=pytest.mark.slow),
  ],
)
def test_every_step_function_compiles_once_and_state_is_donated(config, setting, kind):
  config.setting = setting
  if setting == "federated":
    config.local_steps = 2
  else:
    config.micro_batches = 2
  task, workers, state, step = started(config, "rtopk", kind)
  before = task.traced
  for _ in range(3):
    old, (state, _) = state, step(state)
    assert old.params["w"].is_deleted()
    assert old.opt_state[0].residual["w"].is_deleted() if setting == "distributed" else True
  # Once for its gradient, once for the shapes of its metrics.
  assert task.traced - before <= 2
  for program in (workers._begin, workers._more, workers._exchange):
    assert program._cache_size() == 1


def test_methods_share_the_program_of_a_gradient(config):
  config.methods = ("rtopk", "none")
  task = tiny.Tiny(config)
  plan = make_plan(config, task.source(seed=0).steps_per_epoch)
  (batch,) = data.load(task.source(seed=0), range(4), 1)
  workers = None
  for method in config.methods:
    make = make_rounds(config, method, task.loss, plan.per_epoch, plan.exchanges, plan.batches)
    workers = Workers(make, 4, None, workers)
    for seed in (0, 1):
      state = workers.init(*task.init(jax.random.key(seed)), jnp.int32(seed))
      for _ in range(2):
        state, _ = workers.step(state, (batch,), jnp.int32(seed))
    assert workers._first._cache_size() == 1
    assert workers._exchange._cache_size() == 1
  # Once for its gradient, once for the shapes of its metrics.
  assert task.traced == 2


def test_one_program_does_a_step_of_devices(config):
  _, workers, state, step = started(config, "rtopk", "devices")
  for _ in range(3):
    old, (state, _) = state, step(state)
    assert old.params["w"].is_deleted()
    assert old.opt_state[0].residual["w"].is_deleted()
  assert workers._whole._cache_size() == 1
  assert workers._begin._cache_size() == workers._more._cache_size() == 0


def _numpy_gradient(params, mean, batch):
  """Gradient and running mean of the tiny task, by hand."""
  x, y = batch["x"].astype(np.float64), batch["y"].astype(np.float64)
  mean = mean + (x.mean(axis=0) - mean) / 8
  centred = x - mean
  out = np.tanh(centred @ params["w"] + params["b"])
  slope = 2 * (out - y) * (1 - out**2) / out.size
  return {"w": centred.T @ slope, "b": slope.sum(axis=0)}, mean


@pytest.mark.parametrize("setting", ["distributed", "federated"])
def test_without_compression_it_is_gradient_descent_in_numpy(config, setting):
  config.momentum, config.schedule, config.step_epochs = 0.0, "step", ()
  config.methods, config.setting = ("none",), setting
  if setting == "federated":
    config.local_steps, config.outer_learning_rate = 2, 0.5
  else:
    config.micro_batches = 2
  task, _, state, step = started(config, "none", "simulated")
  params = {name: np.asarray(x, np.float64) for name, x in state.params.items()}
  means = np.zeros((4, tiny.INPUTS))
  source = task.source(seed=0)
  for r in range(3):
    state, _ = step(state)
    moves = []
    for i in range(4):
      local, total = dict(params), {name: np.zeros_like(x) for name, x in params.items()}
      for s in range(2):
        batch = source.batch(0, 2 * r + s, i)
        gradient, means[i] = _numpy_gradient(local, means[i], batch)
        for name, g in gradient.items():
          total[name] += g
          if setting == "federated":
            local[name] = local[name] - 0.3 * g
      # Federated: half of the way to where the worker came; distributed: the mean of two gradients.
      moves.append({name: 0.3 * t / 2 for name, t in total.items()})
    for name in params:
      params[name] = params[name] - np.mean([move[name] for move in moves], axis=0)
    for name, x in params.items():
      np.testing.assert_allclose(state.params[name], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.model_state["mean"], means, rtol=1e-4, atol=1e-5)


def test_too_many_steps_that_are_not_finite_stop_the_run(config, tmp_path):
  config.task_options.bad_from, config.task_options.bad_until = 4, 7
  config.max_skipped = 3
  with pytest.raises(NotFiniteError, match="Step 7 was skipped, and 2 before it"):
    train_and_evaluate(config, str(tmp_path / "a"))
  config.max_skipped = 4
  records = train_and_evaluate(config, str(tmp_path / "b"))
  assert records[-1]["skipped_steps"] == 3
  # What was not finite is nowhere in the state.
  assert np.isfinite(records[-1]["test_loss"])


def _corrupted(params, worker):
  """The weights with one bit of one worker's copy changed."""

  def leaf(x):
    copies = [np.array(s.data) for s in sorted(x.addressable_shards, key=lambda s: s.device.id)]
    copies[worker].reshape(-1).view(np.uint32)[3] ^= 1 << 20
    placed = [
      jax.device_put(c, d) for c, d in zip(copies, x.sharding.mesh.devices.flat, strict=True)
    ]
    return jax.make_array_from_single_device_arrays(
      x.shape, NamedSharding(x.sharding.mesh, P()), placed
    )

  return {**params, "w": leaf(params["w"])}


def test_a_worker_that_drifts_stops_the_run_and_is_named(config, tmp_path, monkeypatch):
  config.workers = "devices"
  step, taken = Workers.step, []

  def broken(self, state, *args):
    taken.append(1)
    if len(taken) == 7:
      state = state._replace(params=_corrupted(state.params, worker=2))
    return step(self, state, *args)

  monkeypatch.setattr(Workers, "step", broken)
  with pytest.raises(DriftError, match=r"After step 10 worker 2 has other weights than the 3 of 4"):
    train_and_evaluate(config, str(tmp_path))


def test_fingerprints_see_every_bit():
  rng = np.random.default_rng(0)
  tree = {
    "a": rng.standard_normal((5, 7)).astype(np.float32),
    "b": np.float16(rng.standard_normal(3)),
  }
  hashed = jax.jit(drift.fingerprint)
  seen = {int(hashed(tree))}
  for name, word in (("a", np.uint32), ("b", np.uint16)):
    for i in range(tree[name].size):
      for bit in (0, 11, 15):
        other = {key: x.copy() for key, x in tree.items()}
        other[name].reshape(-1).view(word)[i] ^= word(1 << bit)
        seen.add(int(hashed(other)))
  assert len(seen) == 1 + 3 * (35 + 3)
  swapped = {**tree, "a": tree["a"][::-1].copy()}
  assert int(hashed(swapped)) not in seen
  drift.check(np.array([4, 4, 4], np.uint32).reshape(3, 1, 1), 1)


def test_who_takes_part():
  assert present(1.0, 5, 0, 0) is None
  rounds = np.array([present(0.4, 5, seed=3, step=i) for i in range(200)])
  assert (rounds.sum(axis=1) == 2).all()
  assert (rounds.mean(axis=0) > 0.25).all()
  np.testing.assert_array_equal(rounds[7], present(0.4, 5, seed=3, step=7))
  assert present(0.01, 5, 0, 0).sum() == 1


@pytest.mark.parametrize(
  "methods", [("rtopk",), pytest.param(METHODS, marks=pytest.mark.slow)], ids=len
)
def test_federated_rounds_are_epochs(config, tmp_path, methods):
  config.setting, config.methods = "federated", methods
  config.warmup_epochs, config.participation = 2, 0.75
  records = train_and_evaluate(config, str(tmp_path))
  assert [x["step"] for x in records if x["method"] == "rtopk"] == [1, 2, 3]
  steps = lines(tmp_path / "runs" / "rtopk-0" / "steps.jsonl")
  sent = np.diff([0, *(x["sent_bytes"] for x in steps)])
  # 25 %, 15.8 % and 10 % of 130.
  assert sent.tolist() == [message(k) for k in (32, 21, 13)]
  assert records[2]["test_loss"] < records[0]["test_loss"]


def test_a_global_batch_is_dealt(config, tmp_path):
  config.global_batch_size, config.micro_batches = 40, 2
  config.epochs, config.warmup_epochs = 2, 0
  records = train_and_evaluate(config, str(tmp_path))
  # 240 examples make 12 batches of 5 for each of 4 workers, and 6 exchanges.
  assert [x["step"] for x in records] == [6, 12]
  assert json.loads((tmp_path / "config.json").read_text())["batch_size"] == 5


@pytest.mark.slow
def test_profile(config, tmp_path):
  config.profile_from, config.profile_steps, config.max_steps, config.warmup_epochs = 2, 2, 5, 0
  train_and_evaluate(config, str(tmp_path))
  assert list((tmp_path / "runs" / "rtopk-0" / "profile").rglob("*.xplane.pb"))
