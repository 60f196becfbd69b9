"""A work directory that is another run's, is full, or cannot be written to; real processes each time."""

import contextlib
import json
import os
import re
import subprocess

import pytest

from tests.train.runs import lines, sealed, until
from train.checkpointing import folder

QUICK = ("--config.workers=simulated", "--config.warmup_epochs=0")
SLOW = ("--config.task_options.pause=0.05", *QUICK)


def test_a_folder_has_one_run_at_a_time(zygote, tmp_path):
  job = tmp_path / "job"
  first = zygote.start(job, *SLOW, "--config.max_steps=15")
  until((job / "runs" / "rtopk-0" / "steps.jsonl").exists, first)
  second = zygote.start(job, *SLOW, log="second")
  assert second.wait() == 2
  host = os.uname().nodename
  assert second.output().splitlines()[-1] == (
    f"error: Another run, process {first.pid} on host {host}, is training in {job}."
  )
  # The first one does not notice.
  assert first.wait() == 0, first.output()
  assert [x["step"] for x in lines(job / "runs" / "rtopk-0" / "steps.jsonl")] == [*range(1, 16)]
  assert [x["step"] for x in lines(job / "metrics.jsonl")] == [10, 15]


@contextlib.contextmanager
def _disk(place, options):
  """A disk of its own, as root may make it."""
  place.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False
  )
  if mounted.returncode:
    pytest.skip("disks cannot be mounted here")
  try:
    yield
  finally:
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_that_says_what_is_safe(zygote, tmp_path):
  disk = tmp_path / "disk"
  options = (*QUICK, "--config.checkpoint_every=5")
  with _disk(disk, "size=200k"):
    log = tmp_path / "first"
    arguments = ("--config=tests/train/tiny.py", f"--workdir={disk / 'job'}", *options)
    child = zygote.main(log, *arguments, "--config.epochs=100")
    assert child.wait() == 74, child.output()
    *_, last = said = child.output().splitlines()
    step = sealed(disk / "job")
    assert last == (
      f"error: {disk / 'job'} cannot be written to: No space left on device; the last checkpoint is step {step} of "
      "rtopk-0, from which the same command goes on."
    )
    assert len(said) == 2  # the headline, and the line
    assert step > 0
    # With more space it does.
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    log = tmp_path / "second"
    child = zygote.main(log, *arguments, "--config.max_steps=200", "--config.epochs=100")
    assert child.wait() == 0, child.output()
    # Or from the one after, if the disk was full before its digests were written.
    goes_on = re.search(r"goes on at step (\d+) of 200", child.output())
    assert goes_on
    assert int(goes_on[1]) in (step, step + 5)


def test_a_place_that_cannot_be_written_to_is_one_line(zygote, tmp_path):
  (tmp_path / "file").write_text("")
  child = zygote.start(tmp_path / "file", log="taken")
  assert child.wait() == 2
  file = tmp_path / "file"
  said = f"error: --workdir must be a folder, got '{file}', and {file} is a file.\n"
  assert child.output() == said
  child = zygote.main(tmp_path / "proc", "--config=tests/train/tiny.py", "--workdir=/proc/job")
  assert child.wait() == 74
  assert child.output() == "error: /proc/job cannot be made: No such file or directory.\n"
  disk = tmp_path / "disk"
  with _disk(disk, "ro"):
    child = zygote.main(
      tmp_path / "log", "--config=tests/train/tiny.py", f"--workdir={disk / 'job'}"
    )
    assert child.wait() == 74
    assert child.output().endswith(
      f"Read-only file system: {disk / 'job'}; nothing of it was saved yet.\n"
    )
    assert child.output().count("\n") == 1


def test_json_is_valid_whatever_the_numbers():
  text = folder.dumps({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}})
  assert json.loads(text, parse_constant=pytest.fail) == {
    "a": None,
    "b": [None, 1.5],
    "c": {"d": None},
  }
