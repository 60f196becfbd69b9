"""What the workers of ``slow_link`` have in common: timing in step, and talking to who started them.

A worker reads a line of JSON for every rate, ``{method: rounds}``, and answers with a line for every method.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_SENT = pathlib.Path("/sys/class/net/eth0/statistics/tx_bytes")


@dataclasses.dataclass(frozen=True)
class Exchange:
  """What is timed.

  Attributes:
    fill: puts a new gradient where the last mean is, as a backward pass does; is not timed.
    run: returns when the gradient's mean is there in its place.
  """

  fill: Callable[[], Any]
  run: Callable[[], Any]


def orders() -> Iterator[dict[str, int]]:
  """How often each method is to be timed, one order after another, after saying that all is ready."""
  answer({"ready": True})
  for line in sys.stdin:
    yield json.loads(line)
    answer({"done": True})


def answer(message: dict[str, Any]) -> None:
  """Tells who started this worker.

  Args:
    message: what becomes a line of JSON.
  """
  print(json.dumps(message), flush=True)


def sent() -> int:
  """Bytes that this host's interface has sent so far."""
  return int(_SENT.read_text())


def measure(
  methods: dict[str, Exchange], order: dict[str, int], barrier: Callable[[], Any]
) -> None:
  """Times methods in turn, from a barrier to this worker's end, and counts what its interface sent.

  Args:
    methods: an exchange by its name.
    order: how often each is timed.
    barrier: returns once all workers have come to it.
  """
  methods = {name: methods[name] for name in order}
  seconds: dict[str, list[float]] = {name: [] for name in order}
  counted: dict[str, list[int]] = {name: [] for name in order}
  for method in methods.values():
    method.fill()
    method.run()
  for turn in range(max(order.values())):
    for name, method in methods.items():
      if turn < order[name]:
        method.fill()
        barrier()
        before = sent()
        begun = time.perf_counter()
        method.run()
        seconds[name].append(time.perf_counter() - begun)
        # The last of it may wait in a queue until everybody has what it needs.
        barrier()
        counted[name].append(sent() - before)
  for name in order:
    answer({"method": name, "seconds": seconds[name], "sent": counted[name]})
