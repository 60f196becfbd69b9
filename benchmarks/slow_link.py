"""The whole exchange on slow links, from local gradient to mean: ``python -m benchmarks.slow_link``.

Makes hosts with rate-limited links on this machine (root and iproute2 are needed), runs one process on each, which
gets one core, times every exchange of the library and, where PyTorch is installed (``--torch=PYTHON`` names another
Python that has it), what its users have, and removes the hosts whatever happens. All exchange gradients of the
same shapes, and write the mean over the gradient; the time is from a barrier to the end of the slowest worker.
PyTorch's hooks are handed a full bucket directly, so that no forward or backward pass is in their time.

Beside each measured time stands what ``rtopk_jax``'s cost model makes of the link, the latency of a
barrier and the speed of one worker without a link, both measured in the same run; beside the bytes that
``wire_bytes`` counts stand those that the interface sent.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
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
from rtopk_jax import _axis, _plan

# Seconds that a method may take at a rate, and how often it is timed.
_BUDGET, _FEWEST, _MOST = 8.0, 3, 15
_PEERS = ("DDP dense", "PowerSGD rank 4", "DDP top-k hook")
_DENSE, _POWER = "dense_exchange", "PowerSGD rank 4"
_ROOT = pathlib.Path(__file__).resolve().parents[1]


class Group:
  """One worker on each of some hosts.

  Args:
    hosts: the hosts.
    program: of a worker, with the arguments that are the same for all.
    options: what all workers are told.
    port: of the first, where they meet.
    timeout: seconds after which they are ended.
  """

  def __init__(
    self,
    hosts: slow_hosts.Hosts,
    program: list[str],
    options: dict[str, Any],
    port: int,
    timeout: float,
  ):
    workers = len(hosts.names)
    self._errors = [tempfile.TemporaryFile("w+") for _ in hosts.names]  # noqa: SIM115 (it outlives this)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(_ROOT)}
    self._processes = [
      hosts.start(
        rank,
        [
          *program,
          str(rank),
          str(workers),
          address,
          f"{hosts.addresses[0]}:{port}",
          json.dumps(options),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._errors[rank],
        text=True,
        env=environment,
      )
      for rank, address in enumerate(hosts.addresses)
    ]
    self._late = threading.Event()
    self._watch = threading.Timer(timeout, self._give_up)
    self._watch.daemon = True
    self._watch.start()
    try:
      self.opening = self._read_until("ready")
    except BaseException:
      # Nobody else knows of them yet.
      self.end()
      raise

  def ask(self, order: dict[str, int]) -> list[list[dict[str, Any]]]:
    """Every worker's answers.

    Args:
      order: how often each method is to be timed.
    """
    for process in self._processes:
      process.stdin.write(json.dumps(order) + "\n")  # pyright: ignore[reportOptionalMemberAccess]
      process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
    return self._read_until("done")

  def _read_until(self, last: str) -> list[list[dict[str, Any]]]:
    answers = []
    for process, errors in zip(self._processes, self._errors, strict=True):
      mine: list[dict[str, Any]] = []
      while not mine or last not in mine[-1]:
        line = process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
          self.end()
          errors.seek(0)
          reason = "took longer than --timeout" if self._late.is_set() else "ended early"
          raise RuntimeError(f"a worker {reason}:\n{errors.read()[-3000:]}")
        if line.startswith("{"):
          mine.append(json.loads(line))
      answers.append(mine[:-1])
    return answers

  def _give_up(self) -> None:
    self._late.set()
    self.end()

  def end(self) -> None:
    """Ends them."""
    self._watch.cancel()
    for process in self._processes:
      process.kill()
      process.wait()


def _by_method(answers: list[list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
  """The slowest worker's seconds of each round, and the mean worker's bytes."""
  found = {}
  names = [line["method"] for line in answers[0] if "method" in line]
  for name in names:
    lines = [line for worker in answers for line in worker if line.get("method") == name]
    seconds = np.max([line["seconds"] for line in lines], axis=0).tolist()
    sent = float(np.mean([np.median(line["sent"]) for line in lines]))
    found[name] = {"seconds": seconds, "sent": sent}
  return found


def _mean(answers: list[list[dict[str, Any]]], *keys: str) -> float:
  found = []
  for worker in answers:
    for line in worker:
      value: Any = line
      for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
      if value is not None:
        found.append(value)
  return float(np.mean(found))


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

  def operands(self, method: str) -> list[tuple[str, int]]:
    """The collectives of a method, from the buffers that it exchanges."""
    tx = self.methods[method].tx
    with _axis.measure(self.workers, None) as measured:
      jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), self.params)
    return measured.operands

  def predicted(self, method: str, link: rtopk_jax.Link, local: rtopk_jax.LocalSpeed) -> float:
    """What the cost model says, in seconds."""
    network = link.seconds(self.operands(method), self.workers)
    known = self.methods[method]
    own = _plan.local_time(known.collective, self.size, self.k, self.workers, local)
    # All chips of a host do the same work, and share its cores.
    return network + known.chips * own

  def rounds(self, method: str, rate: float) -> int:
    """How often a method is timed; peers are taken for as slow as what they do is."""
    known = method if method in self.methods else "AllGather"
    known = _DENSE if method == "DDP dense" else known
    seconds = self.predicted(known, rtopk_jax.Link(rate), rtopk_jax.LocalSpeed())
    return max(_FEWEST, min(_MOST, int(_BUDGET / seconds)))


def _run_jax(
  case: Case,
  hosts: slow_hosts.Hosts,
  rates: list[float],
  chips: int,
  options: argparse.Namespace,
) -> list[dict[str, Any]]:
  """Times the library's exchanges between hosts of so many devices: one has no threads for a second."""
  names = [name for name in options.methods if case.methods[name].chips == chips]
  told = {"tree": options.tree, "density": options.density, "methods": names, "chips": chips}
  program = [sys.executable, "-m", "benchmarks.link_jax"]
  group = Group(hosts, program, told, 29_400 + chips, options.timeout)
  rows = []
  try:
    parts = [part.name for part in dataclasses.fields(rtopk_jax.LocalSpeed)]
    local = rtopk_jax.LocalSpeed(**{part: _mean(group.opening, "local", part) for part in parts})
    for rate in rates:
      hosts.limit(rate)
      answers = group.ask({name: case.rounds(name, rate) for name in names})
      link = rtopk_jax.Link(rate, latency=_mean(answers, "latency"))
      barrier = _mean(answers, "barrier")
      for name, found in _by_method(answers).items():
        traffic = [_plan.traffic_of(*x, case.workers).bytes for x in case.operands(name)]
        found |= {
          "predicted": case.predicted(name, link, local),
          "network": link.seconds(case.operands(name), case.workers),
          "counted": sum(traffic),
          "sent": found["sent"] - barrier,
        }
        rows.append({"workers": case.workers, "rate": rate, "method": name, **found})
  finally:
    group.end()
  return rows


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
  told = {"tree": options.tree, "density": options.density}
  rows = []
  with slow_hosts.hosts(workers) as hosts:
    for chips in sorted({case.methods[name].chips for name in options.methods}):
      rows += _run_jax(case, hosts, rates, chips, options)
    rows.sort(key=lambda row: (rates.index(row["rate"]), options.methods.index(row["method"])))
    if options.torch:
      program = [options.torch, str(_ROOT / "benchmarks" / "link_torch.py")]
      group = Group(hosts, program, told, 29_500, options.timeout)
      try:
        for rate in rates:
          hosts.limit(rate)
          answers = group.ask({name: case.rounds(name, rate) for name in _PEERS})
          rows += [
            {"workers": workers, "rate": rate, "method": name, **found}
            for name, found in _by_method(answers).items()
          ]
      finally:
        group.end()
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
  parser.add_argument("--timeout", type=float, default=600, help="seconds for one set of workers")
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
  rates = [_plan.parse_bandwidth(rate) for rate in options.rate or ("100Mbit/s", "1Gbit/s")]
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
