"""Timing of rivals in turn, so that whatever else the machine does meets all of them alike."""

import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def in_turn(
  rivals: dict[str, Callable[[], Any]],
  rounds: int,
  warm: int = 0,
  first: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
  """Times every rival once a round.

  Args:
    rivals: a name and a function that returns when its work is done; the first call is not counted.
    rounds: how many times each is timed.
    warm: calls before each that is timed, of what finds its data in the caches and all cores awake where it is used.
    first: what has to be done before each call of some rivals, and is not timed.

  Returns:
    Seconds of every call.
  """
  first = first or {}
  nothing = lambda: None
  for name, run in rivals.items():
    first.get(name, nothing)()
    run()
  seconds: dict[str, list[float]] = {name: [] for name in rivals}
  for _ in range(rounds):
    for name, run in rivals.items():
      for _ in range(warm):
        first.get(name, nothing)()
        run()
      first.get(name, nothing)()
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def table(
  seconds: dict[str, list[float]], reference: str, **columns: Mapping[str, float | str]
) -> str:
  """Medians and minima in milliseconds, and how many times the reference's each is.

  Args:
    seconds: what ``in_turn`` returned.
    reference: the rival that the others are divided by.
    **columns: further columns, a value for each rival that has one.

  Returns:
    A Markdown table.
  """
  median = {name: float(np.median(times)) for name, times in seconds.items()}
  least = {name: min(times) for name, times in seconds.items()}
  heads = [
    "",
    "median, ms",
    "minimum, ms",
    f"median / {reference}",
    f"minimum / {reference}",
    *columns,
  ]
  rows = [
    [
      name,
      f"{1e3 * median[name]:.2f}",
      f"{1e3 * least[name]:.2f}",
      f"{median[name] / median[reference]:.2f}",
      f"{least[name] / least[reference]:.2f}",
      *(_cell(column.get(name, "")) for column in columns.values()),
    ]
    for name in seconds
  ]
  return markdown(heads, rows)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table.

  Args:
    heads: of its columns.
    rows: their cells.
  """
  return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def _cell(value: float | str) -> str:
  return value if isinstance(value, str) else f"{value:.1f}"


def save(path: str | None, result: dict[str, Any]) -> None:
  """Writes a result as JSON, where a path is given.

  Args:
    path: the file, or None.
    result: what goes into it.
  """
  if path is not None:
    pathlib.Path(path).write_text(json.dumps(result, indent=2) + "\n")
