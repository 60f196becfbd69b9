"""The real loop, on real digits, for a few steps."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import data
from configs import quickstart
from train import ConfigError, settings, train_and_evaluate
from train.methods import METHODS, make_rounds
from train.schedules import learning_rate
from train.tasks import make_task
from train.workers import Workers, choose_mesh

ROOT = pathlib.Path(__file__).parents[2]


# Learning rate schedules of optax divide an int32 count by a float.
pytestmark = pytest.mark.usefixtures("usual_promotion")


@pytest.fixture
def config():
  """The quickstart made tiny: a network of 5,122 parameters, 2 epochs of 2 steps."""
  config = quickstart.get_config()
  config.model.stages = (1, 1)
  config.model.width = 8
  config.batch_size = 143
  config.seeds = (0,)
  config.epochs = 2
  config.warmup_epochs = 1
  config.compilation_cache = None
  return config


@pytest.mark.slow
def test_compares_methods_from_the_same_start(config, tmp_path):
  config.seeds = (0, 1)
  records = train_and_evaluate(config, str(tmp_path))
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert lines == records
  assert [(r["method"], r["seed"], r["epoch"]) for r in records] == [
    (method, seed, epoch) for method in METHODS for seed in (0, 1) for epoch in (1, 2)
  ]
  assert json.loads((tmp_path / "config.json").read_text())["density"] == 0.01
  assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
  for name in ("no compression", "rTop-k", "top-k", "random-k"):
    assert f"| {name} |" in (tmp_path / "results.md").read_text()
  assert all(np.isfinite(r["train_loss"]) and r["skipped_steps"] == 0 for r in records)
  # d = 5,122: two steps at a density of 25 %, then two at 1 %; pairs of words behind three of header, in
  # whole tiles of 128 words.
  message = lambda k: 4 * 128 * -(-(3 + 2 * k) // 128)
  sent = {r["epoch"]: r["sent_bytes"] for r in records if r["method"] == "rtopk"}
  assert sent == {1: 2 * message(1280), 2: 2 * message(1280) + 2 * message(51)}
  dense = {r["epoch"]: r["sent_bytes"] for r in records if r["method"] == "none"}
  assert dense == {1: 2 * 4 * 5122, 2: 4 * 4 * 5122}


def test_methods_and_seeds_are_paired(config, tmp_path):
  config.epochs, config.warmup_epochs, config.max_steps, config.seeds = 1, 0, 1, (0, 1)
  records = train_and_evaluate(config, str(tmp_path))
  # The first step's loss is that of the initial weights on the first batch.
  losses = {seed: {r["train_loss"] for r in records if r["seed"] == seed} for seed in (0, 1)}
  assert len(losses[0]) == len(losses[1]) == 1
  assert losses[0] != losses[1]


@pytest.mark.parametrize("method", METHODS)
def test_simulated_workers_do_what_devices_do(config, method):
  task = make_task(config)
  make = make_rounds(config, method, task.loss, per_epoch=2, total=4, batches=1)
  batches = list(data.load(task.source(seed=0), range(5), steps=3))
  states = []
  for kind in ("simulated", "devices"):
    workers = Workers(make, 5, choose_mesh(kind, 5))
    assert workers.local == tuple(range(5))
    state = workers.init(*task.init(jax.random.key(0)), jnp.int32(0))
    for batch in batches:
      state, metrics = workers.step(state, (batch,), jnp.int32(0))
    assert float(metrics["skipped_steps"]) == 0
    states.append(jax.device_get(state))
  simulated, devices = states
  assert jax.tree.structure(simulated) == jax.tree.structure(devices)
  for a, b in zip(jax.tree.leaves(simulated), jax.tree.leaves(devices), strict=True):
    assert a.shape == b.shape
    # Gradients of two programs differ in rounding, and an entry at the threshold may go either way, instead
    # of another: in a small leaf that is a large share.
    differ = np.count_nonzero(np.abs(a - b) > 1e-4 + 1e-3 * np.abs(b))
    assert differ <= 4 + 0.02 * a.size


def test_loss_falls_on_the_digits(config, tmp_path):
  config.methods = ("rtopk",)
  config.batch_size, config.epochs, config.density, config.warmup_epochs = 28, 6, 0.2, 0
  records = train_and_evaluate(config, str(tmp_path))
  assert records[-1]["train_loss"] < records[0]["train_loss"] - 0.2


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("batchsize", 4, "config.batchsize is not a field; did you mean config.batch_size?"),
    ("setting", "gossip", "setting must be one of distributed, federated, got 'gossip'"),
    ("local_steps", 3, "config.local_steps must be None with config.setting='distributed'"),
    ("participation", 0.5, "config.participation must be 1.0 with config.setting='distributed'"),
    ("global_batch_size", 12, "config.global_batch_size must be a multiple of 5"),
    ("keep_checkpoints", 1, "keep_checkpoints must be at least 2, got 1"),
    ("methods", ("rtopk", "qsgd"), r"got \('rtopk', 'qsgd'\)"),
    ("seeds", (), "config.seeds must be a tuple of at least one"),
    ("schedule", "linear", "schedule must be one of cosine, step, zaremba, got 'linear'"),
    ("unroll", 0, "unroll must be at least 1, got 0"),
    ("warmup_epochs", 2, "config.warmup_epochs must be below config.epochs=2, got 2"),
    ("max_steps", 0, "config.max_steps must be at least 1"),
    ("epochs", 0, "epochs must be at least 1, got 0"),
  ],
)
def test_impossible_configs_are_refused(config, field, value, message):
  config[field] = value
  with pytest.raises(ValueError, match=message):
    settings.check(config)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("workers", "cloud", "workers must be one of auto, devices, simulated"),
    ("num_workers", 2000, "a worker's share of the data, which is 0 .*num_workers=2000"),
    ("micro_batches", 3, "config.micro_batches must be at most 2, the batches of a worker"),
    ("density", 1e-4, "density=0.0001 of 5122 parameters is 0.512 of them: nothing would be sent"),
    ("density", 1.0, "density=1.0 of 5122 parameters is all of them"),
    ("collective", "ring", "collective must be one of"),
    ("wire_values", "float12", "values must be one of"),
    ("scope", "block:x", 'scope must be "global", "leaf" or "block:SIZE", got'),
    ("task", "nowhere:Task", "got 'nowhere:Task', which cannot be imported"),
    ("task", "train.loop", 'task must be "package.module:name"'),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_compiles(
  config, tmp_path, field, value, message
):
  config.warmup_epochs = 0
  config[field] = value
  with jax.disable_jit(), pytest.raises(ValueError, match=message):
    train_and_evaluate(config, str(tmp_path / "job"))
  assert not (tmp_path / "job").exists()


def test_wrong_types_are_refused(config):
  wrong = ml_collections.ConfigDict(config.to_dict() | {"momentum": "0.9"})
  with pytest.raises(ConfigError, match=r"config.momentum must be a number, got '0.9'"):
    settings.check(wrong)


def test_unknown_data_set_is_refused(config):
  config.dataset = "mnist"
  with pytest.raises(ValueError, match=r"dataset must be one of digits, .*, got 'mnist'"):
    make_task(config)


def test_learning_rate_of_zaremba(config):
  config.schedule, config.learning_rate, config.constant_epochs, config.decay = "zaremba", 2, 3, 1.5
  rate = learning_rate(config, per_epoch=10, total=100)
  # The first three epochs are constant; from the fourth on each begins with a division.
  steps = [0, 29, 30, 39, 40, 55]
  np.testing.assert_allclose(
    [rate(step) for step in steps], [2, 2, 2 / 1.5, 2 / 1.5, 2 / 1.5**2, 2 / 1.5**3], rtol=1e-6
  )


def test_learning_rate_in_steps_and_along_a_cosine(config):
  config.learning_rate, config.schedule = 2.0, "step"
  config.step_epochs, config.step_factor = (2, 5), 0.5
  rate = learning_rate(config, per_epoch=10, total=100)
  np.testing.assert_allclose([rate(x) for x in (0, 19, 20, 49, 50, 99)], [2, 2, 1, 1, 0.5, 0.5])
  config.schedule = "cosine"
  rate = learning_rate(config, per_epoch=10, total=100)
  steps = np.arange(0, 101, 20)
  np.testing.assert_allclose(
    [rate(int(x)) for x in steps], 1 + np.cos(np.pi * steps / 100), atol=1e-6
  )


def test_too_few_devices_are_refused():
  with pytest.raises(ValueError, match=r"config.num_workers=1000 and 8 devices"):
    choose_mesh("devices", 1000)
  assert choose_mesh("auto", 1000) is None


def _main(*arguments: str) -> subprocess.CompletedProcess:
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, "-m", "train.main", *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


def test_command_line(tmp_path):
  run = _main(
    "--config=configs/quickstart.py",
    f"--workdir={tmp_path}",
    "--config.methods=('rtopk',)",
    "--config.seeds=(0,)",
    "--config.warmup_epochs=0",
    "--config.max_steps=1",
  )
  assert run.returncode == 0, run.stderr
  assert "| rTop-k |" in run.stdout
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_command_line_without_cifar10(tmp_path):
  run = _main(
    "--config=configs/cifar10.py", f"--workdir={tmp_path}", f"--config.data_dir={tmp_path}"
  )
  assert run.returncode == 2
  assert run.stderr.startswith("error: cifar10 is not in ")
  assert run.stderr.count("\n") == 1
  assert "python -m data.prepare cifar10" in run.stderr
