"""What the workers of ``slow_link`` have in common: timing in step, and talking to who started them.

A worker has one exchange, as in training. It reads how often to time it, line by line, and answers each line with
lines of JSON.
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


def orders() -> Iterator[int]:
  """How often the exchange is to be timed, one order after another, after saying that all is ready."""
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


def measure(exchange: Exchange, rounds: int, barrier: Callable[[], Any]) -> None:
  """Times an exchange, from a barrier to this worker's end, and counts what its interface sent.

  Args:
    exchange: what is timed; a first time is not counted.
    rounds: how often.
    barrier: returns once all workers have come to it.
  """
  seconds, counted = [], []
  exchange.fill()
  exchange.run()
  for _ in range(rounds):
    exchange.fill()
    barrier()
    before = sent()
    begun = time.perf_counter()
    exchange.run()
    seconds.append(time.perf_counter() - begun)
    # The last of it may wait in a queue until everybody has what it needs.
    barrier()
    counted.append(sent() - before)
  answer({"seconds": seconds, "sent": counted})
