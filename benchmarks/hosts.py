"""Hosts with slow links on one machine: network namespaces on a switch of their own, shaped by token buckets.

Nothing leaves the switch: it lies in a namespace too, without a way out. Every host can send at its rate and
receive at its rate, both at once.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator, Sequence

_TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux"}
_NETWORK = "10.99.0"
_ROOT = pathlib.Path(__file__).resolve().parents[1]
# Large packets are cut in software; a bucket must hold a whole one.
_PACKET = 16_384
# How long a bucket may save up what was not sent, and how long a packet may wait in its queue.
_SAVED, _WAIT = 0.25e-3, "25ms"
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def environment() -> dict[str, str]:
  """That of a worker: it finds this repository, and computes on its core."""
  return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)}


def missing() -> list[str]:
  """What this machine lacks for making hosts; empty where nothing is."""
  lacks = [] if os.geteuid() == 0 else ["root"]
  return lacks + [
    f"{tool} (of {package})" for tool, package in _TOOLS.items() if not shutil.which(tool)
  ]


class Hosts:
  """Some hosts on a switch.

  Attributes:
    names: their namespaces.
    addresses: their IPv4 addresses.
  """

  def __init__(self, count: int):
    prefix = f"rtopk{os.getpid()}"
    self._switch = f"{prefix}s"
    self.names = [f"{prefix}h{i}" for i in range(count)]
    self.addresses = [f"{_NETWORK}.{i + 1}" for i in range(count)]

  def up(self) -> None:
    """Makes them."""
    _run("ip", "netns", "add", self._switch)
    self._at_switch("ip", "link", "add", "bridge", "type", "bridge")
    self._at_switch("ip", "link", "set", "bridge", "up")
    for i, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
      _run("ip", "netns", "add", name)
      ends = ["eth0", "netns", name, "type", "veth", "peer", "name", f"port{i}"]
      _run("ip", "link", "add", *ends, "netns", self._switch)
      self._at_switch("ip", "link", "set", f"port{i}", "master", "bridge", "up")
      _run(*self._at(i), "ip", "link", "set", "eth0", "gso_max_size", str(_PACKET))
      _run(*self._at(i), "ip", "address", "add", f"{address}/24", "dev", "eth0")
      for device in ("lo", "eth0"):
        _run(*self._at(i), "ip", "link", "set", device, "up")

  def limit(self, rate: float) -> None:
    """Sets the rate of every link, each way.

    Args:
      rate: bits a second.
    """
    burst = max(2 * _PACKET, round(rate / 8 * _SAVED)) if rate > 2e8 else 4096
    shape = ["root", "tbf", "rate", f"{round(rate)}bit", "burst", str(burst), "latency", _WAIT]
    for i in range(len(self.names)):
      _run(*self._at(i), "tc", "qdisc", "replace", "dev", "eth0", *shape)
      self._at_switch("tc", "qdisc", "replace", "dev", f"port{i}", *shape)

  def start(self, host: int, command: Sequence[str], **options: object) -> subprocess.Popen:
    """Starts a process on a host, which has a core of this machine: with fewer cores than hosts, one of them.

    Args:
      host: which.
      command: the program and its arguments.
      **options: of ``subprocess.Popen``.

    Returns:
      The process, which may rename its host: what it sees of that name is its own.
    """
    cores = os.sched_getaffinity(0)
    # What a process starts inherits its cores, and libraries make as many threads as they see cores: workers
    # that each made one for every core would wait for each other's threads more than they compute.
    os.sched_setaffinity(0, {sorted(cores)[host % len(cores)]})
    try:
      return subprocess.Popen([*self._at(host), "unshare", "--uts", *command], **options)  # pyright: ignore
    finally:
      os.sched_setaffinity(0, cores)

  def down(self) -> None:
    """Removes whatever is there of them."""
    for name in (*self.names, self._switch):
      subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)

  def _at(self, host: int) -> list[str]:
    return ["ip", "netns", "exec", self.names[host]]

  def _at_switch(self, *command: str) -> None:
    _run("ip", "netns", "exec", self._switch, *command)


def _run(*command: str) -> None:
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
  """Hosts for as long as the context lasts; an exception, Ctrl-C or a signal to end removes them too.

  Args:
    count: how many.

  Yields:
    The hosts, whose links are not limited yet.
  """
  made = Hosts(count)
  before = {number: signal.signal(number, _leave) for number in _ENDING}
  try:
    made.up()
    yield made
  finally:
    _ignore_signals()
    made.down()
    for number, handler in before.items():
      signal.signal(number, handler)


def _leave(number: int, frame: types.FrameType | None) -> None:
  del frame
  _ignore_signals()
  sys.exit(128 + number)


def _ignore_signals() -> None:
  """Who ends a group of processes may signal twice, and the second time must not interrupt the end."""
  for number in _ENDING:
    signal.signal(number, signal.SIG_IGN)
