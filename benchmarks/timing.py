"""Timing of rivals in turn, so that whatever else the machine does meets all of them alike."""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def in_turn(rivals: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
  """Times every rival once a round.

  Args:
    rivals: a name and a function that returns when its work is done; the first call is not counted.
    rounds: how many times each is timed.

  Returns:
    Seconds of every call.
  """
  for run in rivals.values():
    run()
  seconds: dict[str, list[float]] = {name: [] for name in rivals}
  for _ in range(rounds):
    for name, run in rivals.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def table(seconds: dict[str, list[float]], reference: str) -> str:
  """Medians and minima in milliseconds, and how many times the reference's each is.

  Args:
    seconds: what ``in_turn`` returned.
    reference: the rival that the others are divided by.

  Returns:
    A Markdown table.
  """
  median = {name: float(np.median(times)) for name, times in seconds.items()}
  least = {name: min(times) for name, times in seconds.items()}
  lines = [
    f"| | median, ms | minimum, ms | median / {reference} | minimum / {reference} |",
    "|---|---|---|---|---|",
  ]
  lines += [
    f"| {name} | {1e3 * median[name]:.2f} | {1e3 * least[name]:.2f} | "
    f"{median[name] / median[reference]:.2f} | {least[name] / least[reference]:.2f} |"
    for name in seconds
  ]
  return "\n".join(lines)


def save(path: str | None, result: dict[str, Any]) -> None:
  """Writes a result as JSON, where a path is given.

  Args:
    path: the file, or None.
    result: what goes into it.
  """
  if path is not None:
    pathlib.Path(path).write_text(json.dumps(result, indent=2) + "\n")
