"""The real loop, on real digits, for a few steps."""

import collections
import contextlib
import itertools
import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from configs.rows import METHODS
from train import train_and_evaluate
from train.steps.layout import choose_mesh
from train.steps.methods import make_rounds
from train.steps.workers import Workers
from train.tasks.make import make_task

# Learning rate schedules of optax divide an int32 count by a float.
pytestmark = pytest.mark.usefixtures("usual_promotion")


@pytest.mark.slow
def test_compares_methods_from_the_same_start(digits, tmp_path):
  digits.seeds = (0, 1)
  records = train_and_evaluate(digits, str(tmp_path))
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


@contextlib.contextmanager
def _compiled():
  """How often programs are compiled, by their names."""
  found, log = collections.Counter(), logging.getLogger("jax._src.dispatch")

  class Note(logging.Handler):
    def emit(self, record):
      if name := re.match(r"Finished XLA compilation of jit\((\S+)\)", record.getMessage()):
        found[name[1]] += 1

  note, passes, level = Note(), log.propagate, log.level
  log.addHandler(note)
  log.propagate = False
  log.setLevel(logging.DEBUG)
  try:
    yield found
  finally:
    log.removeHandler(note)
    log.propagate = passes
    log.setLevel(level)


def test_methods_and_seeds_are_paired_and_share_programs(config, tmp_path):
  config.methods, config.seeds = METHODS, (0, 1)
  config.epochs, config.warmup_epochs, config.max_steps = 1, 0, 1
  with _compiled() as programs:
    records = train_and_evaluate(config, str(tmp_path))
  # Each method has its state and its exchange; all else is compiled once for all runs.
  once = ("_first_one", "mean", "schedule")
  assert [programs[name] for name in once] == [1, 1, 1]
  assert programs["_init_simulated"] == programs["_exchange_simulated"] == len(METHODS)
  assert [(r["method"], r["seed"]) for r in records] == [*itertools.product(METHODS, (0, 1))]
  # The first step's loss is that of the initial weights on the first batch.
  losses = {seed: {r["train_loss"] for r in records if r["seed"] == seed} for seed in (0, 1)}
  assert len(losses[0]) == len(losses[1]) == 1
  assert losses[0] != losses[1]


@pytest.mark.parametrize(
  "method",
  ["rtopk", "none", *(pytest.param(x, marks=pytest.mark.slow) for x in ("topk", "randomk"))],
)
def test_simulated_workers_do_what_devices_do(config, method):
  _compare_layouts(config, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_simulated_workers_do_what_devices_do_with_a_network(digits, method):
  _compare_layouts(digits, method)


def _compare_layouts(config, method):
  task, n = make_task(config), config.num_workers
  make = make_rounds(config, method, task.loss, per_epoch=2, total=4, batches=1)
  batches = list(data.load(task.source(seed=0), range(n), steps=3))
  states = []
  for kind in ("simulated", "devices"):
    config.workers = kind
    workers = Workers(make, n, choose_mesh(config))
    assert workers.local == tuple(range(n))
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


@pytest.mark.slow
def test_loss_falls_on_the_digits(digits, tmp_path):
  digits.methods, digits.model.stages = ("rtopk",), (1,)
  digits.batch_size, digits.epochs, digits.density, digits.warmup_epochs = 28, 6, 0.1, 0
  records = train_and_evaluate(digits, str(tmp_path))
  assert records[-1]["train_loss"] < records[0]["train_loss"] - 0.2


def test_too_few_devices_are_refused(config):
  config.workers, config.num_workers = "devices", 1000
  with pytest.raises(ValueError, match=r"config.num_workers=1000 and 8 devices"):
    choose_mesh(config)
  config.workers = "auto"
  assert choose_mesh(config) is None


def test_command_line(zygote, tmp_path):
  run = zygote.main(
    tmp_path / "log",
    "--config=configs/quickstart.py",
    f"--workdir={tmp_path / 'job'}",
    "--config.methods=('rtopk',)",
    "--config.seeds=(0,)",
    "--config.warmup_epochs=0",
    "--config.max_steps=1",
    "--config.model.stages=(1,)",
  )
  assert run.wait() == 0, run.output()
  assert "| rTop-k |" in run.output()
  assert len((tmp_path / "job" / "metrics.jsonl").read_text().splitlines()) == 1
