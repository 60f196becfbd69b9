"""The table and the picture of docs/low_communication.md."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import stats

from configs.rows import NAMES
from study import low_communication as study
from study.low_communication import Record, Row, Text
from study.report_tables import table

PAGE = study.FOLDER.parent / "low_communication.md"
PICTURE = "loss_over_bytes.png"
_COLOURS = {"none": "0.35", "topk": "#2e6f95", "rtopk": "#d1495b", "randomk": "#8d9f3a"}
_MARKS = {1: "o", 15: "s", 30: "^"}
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


class Found:
  """The runs of a log, by text and row.

  Args:
    records: its lines.
  """

  def __init__(self, records: Iterable[Record]):
    self._runs: dict[tuple[str, Row], dict[int, Record]] = {}
    for record in records:
      name, row, seed = study.key(record)
      self._runs.setdefault((name, row), {})[seed] = record

  def runs(self, text: Text, row: Row) -> list[Record] | None:
    """The runs of all seeds, in their order; None where one is missing."""
    found = self._runs.get((text.name, row), {})
    return [found[seed] for seed in study.SEEDS] if len(found) == len(study.SEEDS) else None

  def losses(self, text: Text, row: Row) -> np.ndarray | None:
    """Validation losses of all seeds, likewise."""
    runs = self.runs(text, row)
    return None if runs is None else np.array([run["valid_loss"] for run in runs])


def _what(row: Row) -> str:
  if row.method == "none":
    return "everything"
  return NAMES[row.method] + ("" if row.memory else ", no memory")


def _spread(values: np.ndarray) -> str:
  return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _bytes(count: float) -> str:
  unit, size = next((x for x in _UNITS if count >= x[1]), _UNITS[-1])
  return f"{count / size:.3g} {unit}"


def losses(found: Found) -> str:
  """Loss against bytes of every row, least first where loss is least."""
  lines = []
  for text in study.TEXTS:
    for row in sorted(text.rows, key=lambda x: (-_sent(found, text, x), x)):
      runs, values = found.runs(text, row), found.losses(text, row)
      if runs is None or values is None:
        continue
      dense = found.losses(text, Row("dense", 1))
      more = "–" if dense is None or row.preset == "dense" else f"{(values - dense).mean():+.3f}"
      sent = [text.title, row.preset, str(row.steps), _what(row), _bytes(runs[0]["sent_bytes"])]
      lines.append([*sent, _spread(values), more])
  head = ("text", "preset", "H", "sent", "sent a worker", "validation loss", "above dense")
  return table(head, lines)


def _sent(found: Found, text: Text, row: Row) -> float:
  runs = found.runs(text, row)
  return 0.0 if runs is None else runs[0]["sent_bytes"]


def subsets(found: Found) -> str:
  """What a random subset does to the loss, seed by seed, with a memory and without."""
  lines = []
  for text in study.TEXTS:
    for row in text.rows:
      if row.method not in ("rtopk", "randomk"):
        continue
      top = Row(row.preset, row.steps, "topk", row.memory)
      values, others = found.losses(text, row), found.losses(text, top)
      if values is None or others is None:
        continue
      low, high = _interval(values - others)
      said = "hurts" if low > 0 else "helps" if high < 0 else "undecided"
      lines.append(
        [
          text.title,
          row.preset,
          str(row.steps),
          NAMES[row.method],
          "yes" if row.memory else "no",
          f"{(values - others).mean():+.3f} ({low:+.3f} to {high:+.3f})",
          f"**{said}**",
        ]
      )
  head = ("text", "preset", "H", "subset", "memory", "loss above top-k's", "the random subset")
  return table(head, lines)


def _interval(differences: np.ndarray) -> tuple[float, float]:
  """Of 95 %, by Student's t."""
  quantile = float(stats.t.ppf(0.975, len(differences) - 1))
  half = quantile * differences.std(ddof=1) / len(differences) ** 0.5
  return differences.mean() - half, differences.mean() + half


def missing(found: Found) -> str:
  """What of the plan has not been run."""
  lines = []
  for text in study.TEXTS:
    lacks = [row for row in text.rows if found.runs(text, row) is None]
    lines.append(f"{text.title}: {len(text.rows) - len(lacks)} of {len(text.rows)} rows are run.")
  return "\n".join(lines)


TABLES = {"losses": losses, "subsets": subsets, "missing": missing}


def picture(found: Found) -> Any:
  """Loss over bytes sent, a panel a text."""
  from matplotlib.figure import Figure

  texts = [text for text in study.TEXTS if any(found.runs(text, row) for row in text.rows)]
  figure = Figure(figsize=(6.2 * max(len(texts), 1), 4.6), layout="constrained")
  for panel, text in zip(
    figure.subplots(1, max(len(texts), 1), squeeze=False)[0], texts, strict=False
  ):
    for row in text.rows:
      runs, values = found.runs(text, row), found.losses(text, row)
      if runs is None or values is None:
        continue
      colour = _COLOURS[row.method]
      panel.errorbar(
        runs[0]["sent_bytes"] / 1e6,
        values.mean(),
        values.std(ddof=1),
        marker=_MARKS[row.steps],
        color=colour,
        markerfacecolor=colour if row.memory else "white",
      )
    panel.set_xscale("log")
    panel.set(xlabel="megabytes sent by a worker (logarithmic)", ylabel="validation loss, nats")
    panel.set_title(text.title, fontsize="medium")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
  if texts:
    _legend(figure)
  return figure


def _legend(figure: Any) -> None:
  panel = figure.axes[0]
  for method, colour in _COLOURS.items():
    panel.plot([], [], "o", color=colour, label=NAMES[method])
  panel.plot([], [], "o", color="0.5", markerfacecolor="white", label="no memory")
  for steps, mark in _MARKS.items():
    panel.plot([], [], mark, color="0.5", label=f"H = {steps}")
  figure.legend(loc="outside right center", frameon=False, fontsize="small")
