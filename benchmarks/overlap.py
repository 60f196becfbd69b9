"""Whether the network is used while the next gradient is computed: ``python -m benchmarks.overlap``.

A small transformer is trained on hosts with rate-limited links (root and iproute2 are needed), one process and one
core each. In one run, in turns: the step without a network, the collective alone, the step whose messages arrive at
once, and the step whose messages arrive a step later. What is compared is the last with the longer of the first two.
"""

import argparse
import sys
from typing import Any

import numpy as np

from benchmarks import hosts as slow_hosts
from benchmarks import overlap_worker, timing
from benchmarks.overlap_worker import AT_ONCE, COMPUTATION, LATER, NETWORK, PARTS
from benchmarks.slow_link import Group


def table(found: dict[str, dict[str, list[float]]]) -> str:
  """Medians in milliseconds a step.

  Args:
    found: seconds of the slowest worker for each part, by the case.

  Returns:
    A Markdown table.
  """
  heads = ["", *(f"{part}, ms" for part in PARTS), "delay=0 / longer", "delay=1 / longer"]
  lines = []
  for name, seconds in found.items():
    median = {part: 1e3 * float(np.median(times)) for part, times in seconds.items()}
    longer = max(median[COMPUTATION], median[NETWORK])
    ratios = [median[part] / longer for part in (AT_ONCE, LATER)]
    cells = [f"{median[part]:.0f}" for part in PARTS]
    lines.append([name, *cells, *(f"{x:.2f}" for x in ratios)])
  return timing.markdown(heads, lines)


def measure(workers: int, rate: float, rounds: int, told: dict[str, Any]) -> dict[str, list[float]]:
  """Seconds of a step of the slowest worker, by the part.

  Args:
    workers: n, a host each.
    rate: of every link, bits a second.
    rounds: how often each part is timed.
    told: what all workers are told.
  """
  program = [sys.executable, "-m", overlap_worker.__name__]
  with slow_hosts.hosts(workers) as hosts:
    hosts.limit(rate)
    with Group(hosts, program, told, port=9300, timeout=600) as group:
      answers = [worker[0] for worker in group.ask(rounds)]
  return {part: np.max([x[part] for x in answers], axis=0).tolist() for part in PARTS}


def main() -> None:
  """Prints a row for each number of workers."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workers", type=int, action="append", help="2 and 4 if not given")
  parser.add_argument("--rate", type=float, default=1e8, help="bits a second")
  parser.add_argument("--density", type=float, default=0.02)
  parser.add_argument("--layers", type=int, default=10)
  parser.add_argument("--width", type=int, default=128)
  parser.add_argument("--batch", type=int, default=8, help="of a worker")
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--json", help="a file for all that was measured")
  options = parser.parse_args()
  lacks = slow_hosts.missing()
  if lacks:
    parser.error(f"hosts with slow links need {', '.join(lacks)}.")
  told = {name: getattr(options, name) for name in ("density", "layers", "width", "batch")}
  found = {}
  for workers in options.workers or [2, 4]:
    name = f"n = {workers}, {options.rate / 1e6:g} Mbit/s"
    found[name] = measure(workers, options.rate, options.rounds, told)
  print(table(found))
  timing.save(options.json, found)


if __name__ == "__main__":
  main()
