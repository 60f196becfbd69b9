"""Starts runs in real processes, and reads what they leave behind."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[2]

# What no two runs have in common.
TIMES = (
  "seconds",
  "seconds_left",
  "seconds_waiting_for_data",
  "seconds_evaluating",
  "steps_per_second",
  "examples_per_second",
)


class Zygote:
  """Processes to start runs in."""

  def __init__(self, cache: pathlib.Path):
    self.cache = cache
    self._process = subprocess.Popen(
      [sys.executable, "-m", "tests.train.zygote"],
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )

  def ask(self, **request: Any) -> int:
    assert self._process.stdin
    assert self._process.stdout
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def start(
    self,
    workdir: pathlib.Path,
    *options: str,
    devices: int = 1,
    log: str = "log",
    environment: dict[str, str] | None = None,
  ) -> "Child":
    """A run of ``train.main`` in a process of its own."""
    path = workdir.parent / f"{workdir.name}.{log}"
    arguments = ["--config=tests/train/tiny.py", f"--workdir={workdir}", *options]
    return self.main(path, *arguments, devices=devices, environment=environment)

  def main(
    self,
    log: pathlib.Path,
    *arguments: str,
    devices: int = 1,
    environment: dict[str, str] | None = None,
  ) -> "Child":
    """``train.main`` with these arguments alone."""
    pid = self.ask(
      arguments=arguments,
      log=str(log),
      devices=devices,
      cache=str(self.cache),
      environment=environment or {},
    )
    return Child(self, pid, log)

  def close(self) -> None:
    assert self._process.stdin
    assert self._process.stdout
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()


@dataclasses.dataclass
class Child:
  """A running process."""

  zygote: Zygote
  pid: int
  log: pathlib.Path

  def kill(self, number: signal.Signals) -> None:
    os.kill(self.pid, number)

  def wait(self) -> int:
    """Its exit code; minus the signal that ended it."""
    return self.zygote.ask(wait=self.pid)

  def output(self) -> str:
    return self.log.read_text() if self.log.exists() else ""


def free_port() -> str:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def until(condition: Any, child: Child, seconds: float = 120) -> None:
  """Waits for a condition."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, child.output()
    time.sleep(0.005)


def sealed(workdir: pathlib.Path) -> int:
  """The number of the last complete checkpoint, or 0."""
  return max((int(x.stem) for x in workdir.glob("runs/*/digests/*.json")), default=0)


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Metrics, without what takes its time."""
  records = map(json.loads, path.read_text().splitlines())
  return [{name: x for name, x in record.items() if name not in TIMES} for record in records]


def state(run: pathlib.Path) -> Any:
  """The arrays of the last checkpoint of a run."""
  (last,) = sorted(run.glob("checkpoints/*"), key=lambda x: int(x.name))[-1:]
  reader = ocp.StandardCheckpointer()
  stored = reader.metadata(last / "state").item_metadata.tree
  return reader.restore(last / "state", jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored))


def leaves(tree: Any) -> Iterator[np.ndarray]:
  """All arrays."""
  return iter(jax.tree.leaves(tree))


def same_end(one: pathlib.Path, other: pathlib.Path, but: tuple[str, ...] = ()) -> None:
  """Two jobs ended with the same state and metrics of rTop-k, bit for bit; some metrics aside."""
  of = lambda path: [x for x in lines(path) if x.get("method", "rtopk") == "rtopk"]
  files = ("metrics.jsonl", "runs/rtopk-0/steps.jsonl")
  for file in files:
    first, second = (of(path / file) for path in (one, other))
    assert first
    for a, b in zip(first, second, strict=True):
      assert a.keys() == b.keys()
      assert {x for x in a if a[x] != b[x]} <= set(but)
  # The last file: a line for every step, none twice.
  assert [x["step"] for x in first] == list(range(1, len(first) + 1))
  for a, b in zip(*(leaves(state(x / "runs" / "rtopk-0")) for x in (one, other)), strict=True):
    assert a.tobytes() == b.tobytes()
