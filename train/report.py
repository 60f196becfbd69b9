"""What a comparison ends with: a table and a picture."""

import pathlib
from typing import Any

import numpy as np

NAMES = {"none": "no compression", "rtopk": "rTop-k", "topk": "top-k", "randomk": "random-k"}
COLOURS = {"none": "0.35", "rtopk": "#d1495b", "topk": "#2e6f95", "randomk": "#8d9f3a"}


def _by_method(records: list[dict[str, Any]]) -> dict[str, dict[int, list[dict[str, Any]]]]:
  runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
  for record in records:
    runs.setdefault(record["method"], {}).setdefault(record["seed"], []).append(record)
  return runs


def table(records: list[dict[str, Any]]) -> str:
  """Every method's accuracy after the last epoch, and what it sent.

  Args:
    records: a line an epoch, of every method and seed.

  Returns:
    A Markdown table. Accuracy is the mean over seeds ± the standard deviation; compression is what the
    ring collectives of the dense baseline put on a worker's link for each byte of the method's, over
    the whole run and, in brackets, in its last step.
  """
  runs = _by_method(records)
  last = {method: [seed[-1] for seed in seeds.values()] for method, seeds in runs.items()}
  lines = [
    "| method | test accuracy | seeds | MB sent a worker | MB on its link | compression |",
    "|---|---|---|---|---|---|",
  ]
  for method, ends in last.items():
    accuracy = 100 * np.array([end["test_accuracy"] for end in ends])
    spread = f" ± {accuracy.std(ddof=1):.2f}" if len(accuracy) > 1 else ""
    end = ends[0]
    ratio = "not measured"
    if "none" in last:
      dense = last["none"][0]
      ratio = (
        f"{dense['link_bytes'] / end['link_bytes']:.1f} "
        f"({dense['link_bytes_a_step'] / end['link_bytes_a_step']:.1f})"
      )
    lines.append(
      f"| {NAMES[method]} | {accuracy.mean():.2f}{spread} % | {len(ends)} | "
      f"{end['sent_bytes'] / 1e6:.2f} | {end['link_bytes'] / 1e6:.2f} | {ratio} |"
    )
  return "\n".join(lines) + "\n"


def picture(records: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Draws test accuracy against megabytes sent, the mean over seeds with the spread behind it.

  Args:
    records: a line an epoch, of every method and seed.
    path: the PNG file.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4.5), layout="constrained")
  axes = figure.subplots()
  for method, seeds in _by_method(records).items():
    sent = np.array([[r["sent_bytes"] for r in run] for run in seeds.values()]).mean(0) / 1e6
    accuracy = 100 * np.array([[r["test_accuracy"] for r in run] for run in seeds.values()])
    mean = accuracy.mean(0)
    axes.plot(sent, mean, label=NAMES[method], color=COLOURS[method], linewidth=1.8)
    if len(accuracy) > 1:
      spread = accuracy.std(0, ddof=1)
      axes.fill_between(
        sent, mean - spread, mean + spread, color=COLOURS[method], alpha=0.18, linewidth=0
      )
  axes.set_xscale("log")
  axes.xaxis.set_major_formatter("{x:g}")
  axes.set_xlabel("megabytes sent by a worker (logarithmic)")
  axes.set_ylabel("test accuracy, %")
  axes.grid(alpha=0.25)
  axes.legend(frameon=False)
  axes.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, dpi=150)
