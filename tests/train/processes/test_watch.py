"""Processes of one job that die, stop, do not come or do not fit: the others say so, and end soon.

Every process here is a real one. How long it takes is not measured; without the watch these tests would take
minutes each, JAX's own patience.
"""

import configparser
import importlib
import os
import re
import signal
import subprocess
import sys
import time

import jax
import pytest
import yaml

from tests.train.runs import ROOT, free_port, same_end, sealed, until
from train.errors import DISK, FAILED, GONE, MISTAKE
from train.loop.preemption import EXIT_CODE
from train.processes import identity

# As many workers as processes; a short timeout, which a busy machine keeps nevertheless.
OPTIONS = (
  *("--config.workers=devices", "--config.warmup_epochs=0"),
  *("--config.checkpoint_every=3", "--config.peer_timeout=4"),
)
SLOW = ("--config.task_options.pause=0.05",)


def _start(zygote, workdir, count, *options, ranks=None, each=(), environments=()):
  """The processes of a job, or some of them; ``each`` and ``environments``: what differs between them."""
  address = free_port()
  children = {}
  for rank in range(count) if ranks is None else ranks:
    log = workdir.parent / f"{workdir.name}.log{rank}"
    log.unlink(missing_ok=True)
    children[rank] = zygote.start(
      workdir,
      *OPTIONS,
      f"--config.num_workers={count}",
      *options,
      f"--coordinator={address}",
      f"--processes={count}",
      f"--process={rank}",
      *(each[rank] if each else ()),
      log=f"log{rank}",
      environment=environments[rank] if environments else None,
    )
  return children


def _said(child):
  """What it said, without what Gloo prints of its connections."""
  return [line for line in child.output().splitlines() if not line.startswith("[Gloo]")]


def _gone(child, rank, how):
  assert child.wait() == GONE, child.output()
  last = _said(child)[-1]
  assert re.fullmatch(
    rf"error: process {rank} \(host \S+, pid \d+\) is gone: {how}\. The same command goes on from the last "
    "checkpoint\\.",
    last,
  ), child.output()
  # One line, and process 0's headline and what it said of where it goes on.
  assert len(_said(child)) <= 3, child.output()


CLOSED = r"its connection was closed at \d\d:\d\d:\d\d"
SILENT = r"nothing was heard of it since \d\d:\d\d:\d\d, for \d+ s"


@pytest.mark.parametrize(
  ("count", "victims"),
  [(2, (0,)), *(pytest.param(n, range(n), marks=pytest.mark.slow) for n in (2, 3))],
)
def test_each_process_may_be_killed_and_the_same_command_goes_on(zygote, tmp_path, count, victims):
  # One process with as many devices ends alike.
  options = (*OPTIONS, f"--config.num_workers={count}")
  whole = zygote.start(tmp_path / "whole", *options, devices=count)
  run, before = tmp_path / "killed", 0
  for victim in victims:
    children = _start(zygote, run, count, *SLOW)
    until(lambda: sealed(run) > before, children[0])
    children[victim].kill(signal.SIGKILL)
    assert children.pop(victim).wait() == -signal.SIGKILL
    for child in children.values():
      _gone(child, victim, CLOSED)
    before = sealed(run)
    assert before < 39
  for child in (whole, *_start(zygote, run, count, *SLOW).values()):
    assert child.wait() == 0, child.output()
  same_end(tmp_path / "whole", run)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_stopped_is_taken_for_dead_and_finds_itself_so(zygote, tmp_path, victim):
  children = _start(zygote, tmp_path / "job", 2, *SLOW, "--config.epochs=30")
  until(lambda: sealed(tmp_path / "job") > 0, children[0])
  children[victim].kill(signal.SIGSTOP)
  _gone(children[1 - victim], victim, SILENT)
  children[victim].kill(signal.SIGCONT)
  assert children[victim].wait() == GONE
  assert "is gone" in _said(children[victim])[-1]


@pytest.mark.parametrize("missing", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_partner_that_never_comes_is_named(zygote, tmp_path, missing):
  ((_, child),) = _start(zygote, tmp_path / "job", 2, ranks=[1 - missing]).items()
  assert child.wait() == GONE
  (line,) = _said(child)
  assert line.startswith(f"error: process {missing} did not come within 4 s")
  assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
  ("option", "said"),
  [
    (
      "--config.learning_rate=0.25",
      "config.learning_rate must be the same in all processes, got 0.3 in ",
    ),
    pytest.param(
      "--processes=3",
      "--processes must be the same everywhere, got 3 in process 1 and 2 in process 0.",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "--config.task_options.bad_from=3",
      "config.task_options.bad_from must be the same in all processes, got 0 in ",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "--process=0",
      "--process must be different everywhere, got 0 twice: ",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_processes_that_do_not_fit_do_not_start(zygote, tmp_path, option, said):
  children = _start(zygote, tmp_path / "job", 2, each=[(), (option,)])
  if option.startswith("--process="):
    children.pop(0).wait()
    # Two that are process 0 on one host fight for its port.
    assert children[1].wait() in (2, GONE)
    assert "error: " in _said(children[1])[-1]
    return
  for child in children.values():
    assert child.wait() == 2, child.output()
    assert f"error: {said}" in child.output()
    assert len(_said(child)) == 1
  assert not (tmp_path / "job").exists()


def test_processes_with_other_data_do_not_start(zygote, tmp_path):
  children = _start(zygote, tmp_path / "job", 2, environments=[{}, {"TINY_SHIFT": "0.5"}])
  for child in children.values():
    assert child.wait() == 2, child.output()
    assert _said(child)[-1].startswith(
      "error: the data set (a digest) must be the same in all processes, got '"
    )
  assert not (tmp_path / "job").exists()


def test_a_bug_in_one_process_ends_all_with_its_code(zygote, tmp_path):
  # A supervisor on each host sees it alike, and none of them starts again.
  children = _start(zygote, tmp_path / "job", 2, environments=[{}, {"TINY_SHIFT": "bug"}])
  for child in children.values():
    assert child.wait() == 1, child.output()
  assert "Traceback" in children[1].output()
  (line,) = _said(children[0])
  assert re.fullmatch(
    r"error: process 1 \(host \S+, pid \d+\) has ended: ValueError: could not convert .*'bug'\.",
    line,
  )
  assert not (tmp_path / "job").exists()


def test_code_and_versions_have_digests(tmp_path, monkeypatch):
  module = tmp_path / "own_module.py"
  monkeypatch.syspath_prepend(tmp_path)
  found = []
  for text in ("Task = 1\n", "Task = 2\n"):
    module.write_text(text)
    importlib.invalidate_caches()
    sys.modules.pop("own_module", None)
    importlib.import_module("own_module")
    found.append(identity.of_code("own_module:Task"))
  first, second = found
  assert first["the version of jax"] == jax.__version__
  assert [name for name in first if first[name] != second[name]] == ["the code (a digest)"]


@pytest.mark.slow
def test_a_cluster_that_jax_detects_is_watched_too(zygote, tmp_path):
  """Slurm's variables; nothing on the command line."""
  run = tmp_path / "job"
  slurm = {"SLURM_JOB_ID": "54321", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
  children = [
    zygote.start(
      run,
      *OPTIONS,
      *SLOW,
      "--config.num_workers=2",
      log=f"log{rank}",
      environment={**slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
    )
    for rank in range(2)
  ]
  until(lambda: sealed(run) > 0, children[0])
  children[0].kill(signal.SIGKILL)
  children[0].wait()
  _gone(children[1], 0, CLOSED)


def test_what_stops_one_process_stops_all(zygote, tmp_path):
  # The folder is another run's: process 0 alone knows.
  job = tmp_path / "job"
  first = zygote.start(job, *SLOW, "--config.workers=simulated", "--config.epochs=100", log="first")
  until((job / "lock").exists, first)
  until(lambda: (job / "lock").read_text(), first)
  children = _start(zygote, job, 2)
  line = f"error: Another run, process {first.pid} on host "
  assert children[0].wait() == children[1].wait() == 2
  assert _said(children[0])[-1].startswith(line)
  assert f"has ended: {line}" in _said(children[1])[-1]
  first.kill(signal.SIGKILL)
  first.wait()


def _recipe(language):
  """The first block of the docs in a language."""
  found = re.search(
    rf"```{language}\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL
  )
  assert found
  return found[1]


def test_supervisors_of_the_docs_are_whole_and_know_the_exit_codes():
  final = {FAILED, MISTAKE, DISK}
  for language in ("sh", "bash"):
    script = _recipe(language)
    assert subprocess.run([language, "-n", "-c", script], check=False).returncode == 0
    (codes,) = re.findall(r"case \$code in ([\d|]+)\)", script)
    assert {int(x) for x in codes.split("|")} - {0} == final
  unit = configparser.ConfigParser()
  unit.read_string(_recipe("ini"))
  assert {int(x) for x in unit["Service"]["RestartPreventExitStatus"].split()} == final
  assert int(unit["Service"]["SuccessExitStatus"]) == EXIT_CODE
  service, job = yaml.safe_load_all(_recipe("yaml"))
  spec, pod = job["spec"], job["spec"]["template"]["spec"]
  failing, _ = spec["podFailurePolicy"]["rules"]
  assert set(failing["onExitCodes"]["values"]) == final
  assert pod["subdomain"] == service["metadata"]["name"] == service["spec"]["selector"]["job-name"]
  (arguments,) = pod["containers"][0]["args"]
  assert f"--processes={spec['completions']}" in arguments
  assert spec["completions"] == spec["parallelism"]


@pytest.mark.slow
def test_the_supervisors_loop_of_the_docs_brings_a_job_to_its_end(zygote, tmp_path):
  """Two hosts, each with the loop; a process of each is killed, and nobody does anything else."""
  whole = _start(zygote, tmp_path / "whole", 2)
  for child in whole.values():
    assert child.wait() == 0, child.output()
  run, address = tmp_path / "job", free_port()
  # Each process says its number before it becomes the program.
  program = tmp_path / "train.sh"
  program.write_text(f'echo $$ > "$PID_FILE"\nexec {sys.executable} -m train.main "$@"\n')
  loop = _recipe("sh").replace("python -m train.main", f"sh {program}")
  loops, files = [], [tmp_path / f"pid{rank}" for rank in range(2)]
  for rank in range(2):
    options = (
      *("--config=tests/train/tiny.py", f"--workdir={run}", *OPTIONS, *SLOW),
      *("--config.num_workers=2", f"--coordinator={address}", "--processes=2", f"--process={rank}"),
    )
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PID_FILE": str(files[rank])}
    with open(tmp_path / f"loop{rank}", "w") as log:
      loops.append(
        subprocess.Popen(
          ["sh", "-c", loop, "loop", *options],
          cwd=ROOT,
          env={**os.environ, **environment},
          stdout=log,
          stderr=log,
        )
      )
  before = 0
  for victim in (1, 0):
    while sealed(run) <= before:
      assert all(loop.poll() is None for loop in loops)
      time.sleep(0.01)
    os.kill(int(files[victim].read_text()), signal.SIGKILL)
    before = sealed(run)
    # The one that goes on is another process.
    first = files[victim].read_text()
    while files[victim].read_text() in (first, ""):
      time.sleep(0.01)
  assert [loop.wait() for loop in loops] == [0, 0]
  same_end(tmp_path / "whole", run)
  said = (tmp_path / "loop0").read_text()
  assert "is gone" in said
  assert "goes on at step" in said


NET = ROOT.parent / "shared" / "net" / "netns.sh"


@pytest.mark.slow
@pytest.mark.skipif(
  not NET.exists() or os.getuid() > 0, reason="hosts on a link cannot be made here"
)
def test_a_link_that_is_cut_ends_both_sides(tmp_path):
  run = tmp_path / "job"
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "P": "cut"}
  subprocess.run([NET, "up", "2", "100mbit"], env=environment, check=True)
  try:
    children = []
    for rank in range(2):
      options = (
        *(
          "--config=tests/train/tiny.py",
          f"--workdir={run}",
          *OPTIONS,
          *SLOW,
          "--config.epochs=30",
        ),
        *("--config.num_workers=2", "--coordinator=10.77.0.1:7777", "--processes=2"),
      )
      program = [sys.executable, "-m", "train.main", *options, f"--process={rank}"]
      children.append(
        subprocess.Popen(
          ["ip", "netns", "exec", f"cut{rank}", *program],
          cwd=ROOT,
          env=environment,
          stdout=subprocess.DEVNULL,
          stderr=subprocess.PIPE,
          text=True,
        )
      )
    while not sealed(run):
      assert all(child.poll() is None for child in children)
      time.sleep(0.01)
    subprocess.run(["ip", "netns", "exec", "cutsw", "ip", "link", "set", "p1", "down"], check=True)
    for rank, child in enumerate(children):
      _, said = child.communicate()
      assert child.returncode == GONE, said
      assert re.search(rf"process {1 - rank} \(host \S+, pid \d+\) is gone: {SILENT}", said), said
  finally:
    subprocess.run([NET, "down"], env=environment, check=True)
