"""Real processes that are killed, preempted or spread over hosts: the end is the same."""

import functools
import json
import random
import signal
import time

import numpy as np
import pytest

from tests.train.runs import free_port, leaves, lines, same_end, sealed, state, until

SETTINGS = {
  "distributed": ("--config.checkpoint_every=3",),
  "federated": (
    "--config.setting=federated",
    "--config.local_steps=2",
    "--config.participation=0.5",
    "--config.keep_local_optimizer",
    "--config.outer_momentum=0.5",
    "--config.checkpoint_every=2",
  ),
}


@pytest.fixture(scope="module")
def whole(zygote, tmp_path_factory):
  """A function of a setting to the folder of a run that nothing has interrupted."""

  @functools.cache
  def run(setting):
    folder = tmp_path_factory.mktemp("whole") / "job"
    child = zygote.start(folder, *SETTINGS[setting])
    assert child.wait() == 0, child.output()
    return folder

  return run


# One that is killed once is in ``processes/test_watch``.
@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_at_any_step_it_ends_as_if_it_never_was(zygote, whole, tmp_path, setting):
  options, end = SETTINGS[setting], whole(setting)
  chance = random.Random(setting)
  run, kills, most = tmp_path / "killed", 0, 4
  # So slow that between a checkpoint and its end a process takes a few steps, and there are some left to the end.
  slow = (*options, "--config.task_options.pause=0.05")
  enough = 0.8 * sealed(end)
  while kills < most and sealed(run) < enough:
    # Killed some time after some checkpoint: while it trains, saves, or writes digests.
    child = zygote.start(run, *slow)
    before, more = sealed(run), chance.randrange(1, 3)
    until(lambda: sealed(run) > before + more, child)
    time.sleep(chance.random() / 4)
    child.kill(signal.SIGKILL)
    assert child.wait() != 0, child.output()
    kills += 1
  assert kills >= 2
  last = zygote.start(run, *slow)
  assert last.wait() == 0, last.output()
  assert "goes on at step" in last.output()
  same_end(end, run)


def test_sigterm_saves_and_exits(zygote, whole, tmp_path):
  run = tmp_path / "told"
  slow = ("--config.checkpoint_every=1000", "--config.task_options.pause=0.05")
  child = zygote.start(run, *slow)
  until(lambda: (run / "runs" / "rtopk-0" / "steps.jsonl").exists(), child)
  child.kill(signal.SIGTERM)
  assert child.wait() == 128 + signal.SIGTERM, child.output()
  step = sealed(run)
  assert 0 < step < 30
  assert f"told to end; is saved at step {step} of 30" in child.output()
  last = zygote.start(run, *slow)
  assert last.wait() == 0, last.output()
  assert f"goes on at step {step} of 30" in last.output()
  same_end(whole("distributed"), run)


def _processes(zygote, workdir, *options):
  address = free_port()
  return [
    zygote.start(
      workdir,
      *options,
      f"--coordinator={address}",
      "--processes=2",
      f"--process={rank}",
      devices=2,
      log=f"log{rank}",
    )
    for rank in range(2)
  ]


@pytest.mark.slow
def test_two_processes_of_two_devices_train_as_one_of_four(zygote, tmp_path):
  options = (
    *('--config.methods=("rtopk","none")', "--config.workers=devices"),
    *("--config.warmup_epochs=0", "--config.epochs=1"),
  )
  alone = zygote.start(tmp_path / "one", *options, devices=4)
  assert alone.wait() == 0, alone.output()
  children = _processes(zygote, tmp_path / "two", *options)
  for child in children:
    assert child.wait() == 0, child.output()
  # Process 0 alone speaks and writes.
  assert "2 processes" in children[0].output()
  assert "workers" not in children[1].output()
  one, two = (tmp_path / name for name in ("one", "two"))
  same_end(one, two)
  for a, b in zip(*(leaves(state(x / "runs" / "none-0")) for x in (one, two)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  assert len(lines(two / "metrics.jsonl")) == 2


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_ends_both(zygote, tmp_path):
  options = ("--config.workers=devices", "--config.epochs=30", "--config.checkpoint_every=1000")
  run = tmp_path / "two"
  children = _processes(zygote, run, *options, "--config.task_options.pause=0.05")
  until(lambda: (run / "runs" / "rtopk-0" / "steps.jsonl").exists(), children[0])
  children[1].kill(signal.SIGTERM)
  for child in children:
    assert child.wait() == 128 + signal.SIGTERM, child.output()
  record = json.loads((run / "config.json").read_text())
  assert record["epochs"] == 30
  assert 0 < sealed(run) < 300
