"""The whole exchange on slow links, from local gradient to mean: ``python -m benchmarks.slow_link``.

Makes hosts with rate-limited links on this machine (root and iproute2 are needed), times every exchange of the library
and, where PyTorch is installed (``--torch=PYTHON`` names another Python that has it), what its users have, and removes
the hosts whatever happens. As in training, a process has one exchange: each exchange, a peer's too, has a process on
every host, which gets one core. They are timed in turn, a few times each, while the others wait for theirs, so that
whatever else the machine does meets all alike. All exchange gradients of the same shapes, and write the mean over the
gradient; the time is from a barrier to the end of the slowest worker. PyTorch's hooks are handed a full bucket directly,
so that no forward or backward pass is in their time.

Beside each measured time stands what ``rtopk_jax``'s cost model makes of the link, the latency of a
barrier and the speed of one worker without a link, both measured in the same run; beside the bytes that
``wire_bytes`` counts stand those that the interface sent.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rtopk_jax
from benchmarks import hosts as slow_hosts
from benchmarks import link_jax, picture, timing, trees
from rtopk_jax import _modes
from rtopk_jax.exchange import _cost

# Seconds that an exchange may take at a rate, how often it is timed, and in how many turns.
_BUDGET, _FEWEST, _MOST, _TURNS = 8.0, 3, 15, 5
_BARRIERS = 20
_PEERS = ("DDP dense", "PowerSGD rank 4", "DDP top-k hook")
_DENSE, _POWER = "dense_exchange", "PowerSGD rank 4"
_ROOT = pathlib.Path(__file__).resolve().parents[1]


class Group:
  """One worker on each of some hosts, for as long as the context lasts.

  Args:
    hosts: the hosts.
    program: of a worker.
    told: what all workers are told.
    port: of the first, where they meet.
    timeout: seconds after which they are ended, from their start or from an order.

  Attributes:
    opening: what every worker said at first.
  """

  def __init__(
    self,
    hosts: slow_hosts.Hosts,
    program: list[str],
    told: dict[str, Any],
    port: int,
    timeout: float,
  ):
    workers = len(hosts.names)
    self._timeout = timeout
    self._late = threading.Event()
    self._errors = [tempfile.TemporaryFile("w+") for _ in hosts.names]  # noqa: SIM115 (it outlives this)
    self._processes = [
      hosts.start(
        rank,
        [
          *program,
          str(rank),
          str(workers),
          address,
          f"{hosts.addresses[0]}:{port}",
          json.dumps(told),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._errors[rank],
        text=True,
        env=slow_hosts.environment(),
      )
      for rank, address in enumerate(hosts.addresses)
    ]
    try:
      self.opening = self._read_until("ready")
    except BaseException:
      # Nobody else knows of them yet.
      self.end()
      raise

  def __enter__(self) -> "Group":
    return self

  def __exit__(self, *error: object) -> None:
    self.end()

  def ask(self, rounds: int) -> list[list[dict[str, Any]]]:
    """Every worker's answers.

    Args:
      rounds: how often they are to time what they have.
    """
    for process in self._processes:
      # What ended one of them is in what it wrote last.
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(f"{rounds}\n")  # pyright: ignore[reportOptionalMemberAccess]
        process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
    return self._read_until("done")

  def _read_until(self, last: str) -> list[list[dict[str, Any]]]:
    watch = threading.Timer(self._timeout, self._give_up)
    watch.daemon = True
    watch.start()
    try:
      return [self._answers(rank, last) for rank in range(len(self._processes))]
    finally:
      watch.cancel()

  def _answers(self, rank: int, last: str) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    while not answers or last not in answers[-1]:
      line = self._processes[rank].stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
      if not line:
        self.end()
        self._errors[rank].seek(0)
        reason = "took longer than --timeout" if self._late.is_set() else "ended early"
        raise RuntimeError(f"a worker {reason}:\n{self._errors[rank].read()[-3000:]}")
      if line.startswith("{"):
        answers.append(json.loads(line))
    return answers[:-1]

  def _give_up(self) -> None:
    self._late.set()
    self.end()

  def end(self) -> None:
    """Ends them."""
    for process in self._processes:
      process.kill()
      process.wait()


@dataclasses.dataclass
class _Times:
  """What was seen of one exchange at one rate.

  Attributes:
    seconds: of the slowest worker, each time.
    sent: by the mean worker's interface in one time of each turn, in bytes.
  """

  seconds: list[float] = dataclasses.field(default_factory=list)
  sent: list[float] = dataclasses.field(default_factory=list)

  def add(self, group: Group, rounds: int) -> None:
    """Has a group time its exchange."""
    lines = [line for worker in group.ask(rounds) for line in worker]
    self.seconds += np.max([line["seconds"] for line in lines], axis=0).tolist()
    self.sent.append(float(np.mean([np.median(line["sent"]) for line in lines])))


def _mean(answers: list[list[dict[str, Any]]], key: str) -> float:
  return float(np.mean([line[key] for worker in answers for line in worker]))


class Case:
  """What is exchanged, by how many.

  Args:
    tree: of the gradient.
    density: k/d.
    workers: n.
  """

  def __init__(self, tree: str, density: float, workers: int):
    self.params = [jax.ShapeDtypeStruct(x, jnp.float32) for x in trees.shapes(tree)]
    self.methods = link_jax.methods(density)
    self.workers = workers
    self.size = sum(leaf.size for leaf in self.params)
    self.k = max(1, round(density * self.size))

  def traffic(self, method: str) -> rtopk_jax.Traffic:
    """What a method does to a worker's link, from the buffers that it exchanges."""
    tx = self.methods[method].tx
    with _modes.measure(self.workers, None) as measured:
      jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), self.params)
    return sum(measured.traffic, rtopk_jax.Traffic.none())

  def predicted(self, method: str, link: rtopk_jax.Link, local: rtopk_jax.LocalSpeed) -> float:
    """What the cost model says, in seconds."""
    network = link.seconds(self.traffic(method))
    known = self.methods[method]
    own = known.local(self.size, self.k, self.workers, local)
    # All chips of a host do the same work, and share its cores.
    return network + known.chips * own

  def model(
    self, method: str, link: rtopk_jax.Link, local: rtopk_jax.LocalSpeed
  ) -> dict[str, float]:
    """The columns of what is predicted and counted; peers have none."""
    if method not in self.methods:
      return {}
    traffic = self.traffic(method)
    return {
      "predicted": self.predicted(method, link, local),
      "network": link.seconds(traffic),
      "counted": traffic.link,
    }

  def rounds(self, method: str, rate: float) -> int:
    """How often a method is timed; peers are taken for as slow as what they do is."""
    known = method if method in self.methods else "AllGather"
    known = _DENSE if method == "DDP dense" else known
    seconds = self.predicted(known, rtopk_jax.Link(rate), rtopk_jax.LocalSpeed())
    return max(_FEWEST, min(_MOST, int(_BUDGET / seconds)))


def _in_turn(groups: dict[str, Group], rounds: dict[str, int]) -> dict[str, _Times]:
  """Times every group's exchange so often, a few times in each turn."""
  times = {name: _Times() for name in groups}
  for _ in range(_TURNS):
    for name, group in groups.items():
      left = rounds[name] - len(times[name].seconds)
      if left:
        times[name].add(group, min(left, -(-rounds[name] // _TURNS)))
  return times


def run(workers: int, rates: list[float], options: argparse.Namespace) -> list[dict[str, Any]]:
  """Times all methods for one number of workers.

  Args:
    workers: n.
    rates: bits a second.
    options: of the command.

  Returns:
    A row for every rate and method.
  """
  case = Case(options.tree, options.density, workers)
  in_jax = [sys.executable, "-m", "benchmarks.link_jax"]
  in_torch = [options.torch, str(_ROOT / "benchmarks" / "link_torch.py")]
  programs = dict.fromkeys(options.methods, in_jax)
  programs |= dict.fromkeys(_PEERS if options.torch else (), in_torch)
  rows = []
  with slow_hosts.hosts(workers) as hosts, contextlib.ExitStack() as stack:

    def start(port: int, program: list[str], does: str) -> Group:
      told = {"tree": options.tree, "density": options.density, "does": does}
      return Group(hosts, program, told, port, options.timeout)

    # It takes a lot of memory, which nobody needs afterwards.
    with start(29_400, in_jax, "local") as group:
      parts = [part.name for part in dataclasses.fields(rtopk_jax.LocalSpeed)]
      local = rtopk_jax.LocalSpeed(**{part: _mean(group.opening, part) for part in parts})
    probe = stack.enter_context(start(29_401, in_jax, "probe"))
    groups = {
      method: stack.enter_context(start(29_402 + i, program, method))
      for i, (method, program) in enumerate(programs.items())
    }
    for rate in rates:
      hosts.limit(rate)
      answers = probe.ask(_BARRIERS)
      link = rtopk_jax.Link(rate, latency=_mean(answers, "latency"))
      rounds = {method: case.rounds(method, rate) for method in groups}
      for method, times in _in_turn(groups, rounds).items():
        sent = float(np.median(times.sent)) - _mean(answers, "barrier")
        row = {"workers": workers, "rate": rate, "method": method, "seconds": times.seconds}
        row["sent"] = sent
        rows.append(row | case.model(method, link, local))
  return rows


def table(rows: list[dict[str, Any]]) -> str:
  """Times, ratios, predictions and bytes, as a Markdown table.

  Args:
    rows: what ``run`` returned.
  """
  lines = [
    "| workers | link | exchange | median, ms | minimum, ms | dense is so many times slower | of minima "
    "| PowerSGD | of minima | predicted, ms | of it network | off by | sent, kB | counted, kB |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    alike = {
      x["method"]: x["seconds"]
      for x in rows
      if (x["workers"], x["rate"]) == (row["workers"], row["rate"])
    }
    median, least = float(np.median(row["seconds"])), min(row["seconds"])
    times = lambda other, alike=alike, median=median, least=least: (
      f"{np.median(alike[other]) / median:.1f} | {min(alike[other]) / least:.1f}"
      if other in alike
      else " | "
    )
    predicted = share = off = counted = ""
    if "predicted" in row:
      predicted = f"{1e3 * row['predicted']:.1f}"
      share = f"{100 * row['network'] / row['predicted']:.0f} %"
      off = f"{100 * (row['predicted'] / median - 1):+.0f} %"
      counted = f"{row['counted'] / 1e3:.1f}"
    lines.append(
      f"| {row['workers']} | {row['rate'] / 1e6:.0f} Mbit/s | {row['method']} | {1e3 * median:.1f} "
      f"| {1e3 * least:.1f} | {times(_DENSE)} | {times(_POWER)} | {predicted} | {share} | {off} "
      f"| {row['sent'] / 1e3:.1f} | {counted} |"
    )
  return "\n".join(lines)


def main() -> None:
  """Runs what is asked for, and prints the table."""
  parser = argparse.ArgumentParser(description="Times exchanges on rate-limited links.")
  parser.add_argument("--workers", type=int, action="append", help="n; default: 2 and 4")
  parser.add_argument("--rate", action="append", help="default: 100Mbit/s and 1Gbit/s")
  parser.add_argument("--tree", choices=trees.TREES, default="resnet18", help="the gradient")
  parser.add_argument("--density", type=float, default=0.001, help="k/d")
  parser.add_argument("--methods", nargs="+", help="default: all")
  installed = sys.executable if importlib.util.find_spec("torch") else None
  parser.add_argument("--torch", default=installed, help="a Python that has PyTorch; '': no peers")
  parser.add_argument("--timeout", type=float, default=600, help="seconds for an answer of workers")
  parser.add_argument("--json", help="a file for the times")
  parser.add_argument("--png", help="a file for the picture")
  options = parser.parse_args()
  methods = list(link_jax.methods(options.density))
  unknown = [name for name in options.methods or () if name not in methods]
  if unknown:
    parser.error(f"--methods must be of {methods}, got {unknown}.")
  options.methods = options.methods or methods
  lacks = slow_hosts.missing()
  if lacks:
    sys.exit(f"Making hosts with slow links needs {', '.join(lacks)}.")
  if not options.torch:
    print("PyTorch is not installed here (--torch=PYTHON names another): no peers.")
  rates = [_cost.parse_bandwidth(rate) for rate in options.rate or ("100Mbit/s", "1Gbit/s")]
  rows: list[dict[str, Any]] = []
  for workers in options.workers or (2, 4):
    rows += run(workers, rates, options)
    # What there is survives an interruption.
    timing.save(options.json, {"options": vars(options), "rows": rows})
  print(table(rows))
  dots = {f"{x['workers']} × {x['rate'] / 1e6:.0f} Mbit/s": {} for x in rows}
  for x in rows:
    dots[f"{x['workers']} × {x['rate'] / 1e6:.0f} Mbit/s"][x["method"]] = 1e3 * float(
      np.median(x["seconds"])
    )
  picture.dots(options.png, dots, "milliseconds")


if __name__ == "__main__":
  main()
