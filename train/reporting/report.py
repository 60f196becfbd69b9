"""What a comparison ends with: a table and a picture."""

import pathlib
from typing import Any

import numpy as np

from configs.rows import NAMES
from train.tasks.task import Score

COLOURS = {"none": "0.35", "rtopk": "#d1495b", "topk": "#2e6f95", "randomk": "#8d9f3a"}


def _by_method(records: list[dict[str, Any]]) -> dict[str, dict[int, list[dict[str, Any]]]]:
  runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
  for record in records:
    runs.setdefault(record["method"], {}).setdefault(record["seed"], []).append(record)
  return runs


def last(records: list[dict[str, Any]], score: Score) -> dict[str, Any]:
  """The last record of a run that has a score."""
  return [record for record in records if score.key in record][-1]


def table(records: list[dict[str, Any]], score: Score) -> str:
  """Every method's score after the last epoch, and what it sent.

  Args:
    records: a line an epoch, of every method and seed.
    score: what is compared.

  Returns:
    A Markdown table. The score is the mean over seeds ± the standard deviation; compression is what the
    ring collectives of the dense baseline put on a worker's link for each byte of the method's, over
    the whole run and, in brackets, in its last step. Without a run of the baseline there is none.
  """
  runs = _by_method(records)
  ends = {method: [seed[-1] for seed in seeds.values()] for method, seeds in runs.items()}
  lines = [
    f"| method | {score.name} | seeds | MB sent a worker | MB on its link | compression (last step) |",
    "|---|---|---|---|---|---|",
  ]
  for method, seeds in runs.items():
    values = np.array([last(seed, score)[score.key] for seed in seeds.values()], np.float64)
    spread = f" ± {score.shown(values.std(ddof=1))}" if len(values) > 1 else ""
    end = ends[method][0]
    ratio = "no baseline"
    if not end["link_bytes"]:
      ratio = "nothing sent"  # one worker alone
    elif "none" in ends:
      dense = ends["none"][0]
      ratio = (
        f"{dense['link_bytes'] / end['link_bytes']:.1f} "
        f"({dense['link_bytes_a_step'] / end['link_bytes_a_step']:.1f})"
      )
    lines.append(
      f"| {NAMES[method]} | {score.shown(values.mean())}{spread} | {len(values)} | "
      f"{end['sent_bytes'] / 1e6:.2f} | {end['link_bytes'] / 1e6:.2f} | {ratio} |"
    )
  return "\n".join(lines) + "\n"


def plain_ticks(axis: Any) -> None:
  """Round numbers, written out, on a logarithmic axis."""
  from matplotlib import ticker

  axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.set_major_formatter("{x:g}")
  axis.set_minor_formatter(ticker.NullFormatter())


def picture(records: list[dict[str, Any]], score: Score, path: pathlib.Path) -> None:
  """Draws the score against megabytes sent, the mean over seeds with the spread behind it.

  Args:
    records: a line an epoch, of every method and seed.
    score: what is compared.
    path: the PNG file.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4.5), layout="constrained")
  axes = figure.subplots()
  scored = [record for record in records if score.key in record]
  for method, seeds in _by_method(scored).items():
    sent = np.array([[r["sent_bytes"] for r in run] for run in seeds.values()]).mean(0) / 1e6
    scale = 100 if score.percent else 1
    values = scale * np.array([[r[score.key] for r in run] for run in seeds.values()], np.float64)
    mean = values.mean(0)
    axes.plot(sent, mean, label=NAMES[method], color=COLOURS[method], linewidth=1.8)
    if len(values) > 1:
      spread = values.std(0, ddof=1)
      axes.fill_between(
        sent, mean - spread, mean + spread, color=COLOURS[method], alpha=0.18, linewidth=0
      )
  axes.set_xscale("log")
  axes.set_xlabel("megabytes sent by a worker (logarithmic)")
  axes.set_ylabel(score.name + (", %" if score.percent else ""))
  if not score.percent:
    axes.set_yscale("log")
  for axis in (axes.xaxis,) if score.percent else (axes.xaxis, axes.yaxis):
    plain_ticks(axis)
  axes.grid(alpha=0.25)
  axes.legend(frameon=False)
  axes.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, dpi=150)
