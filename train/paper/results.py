"""What a table of the paper becomes: Markdown with every row beside the paper's, and a picture."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

import rtopk_jax
from configs.rows import NAMES, Row
from train.paper.printed import ROMAN, Table
from train.reporting.report import COLOURS, plain_ticks

Record = dict[str, Any]
# Lines of a method differ by compression, in the table's order.
_DASHES = ("-", "--", ":", "-.")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a row has come to so far.

  Attributes:
    row: the row.
    config: what it was run with; {} where it was not.
    seeds: of each seed, a record an epoch in their order.
  """

  row: Row
  config: dict[str, Any]
  seeds: dict[int, list[Record]]

  @property
  def ends(self) -> list[Record]:
    """The last record of every seed."""
    return [records[-1] for records in self.seeds.values()]


def read(row: Row, workdir: pathlib.Path) -> Outcome:
  """A row's outcome from the directory it ran in.

  Args:
    row: the row.
    workdir: where ``train_and_evaluate`` has left its config and metrics, or not yet.

  Returns:
    The outcome.
  """
  config_file, metrics_file = workdir / "config.json", workdir / "metrics.jsonl"
  if not metrics_file.exists():
    return Outcome(row, {}, {})
  seeds: dict[int, dict[int, Record]] = collections.defaultdict(dict)
  for line in metrics_file.read_text().splitlines():
    record = json.loads(line)
    seeds[record["seed"]][record["epoch"]] = record
  found = {seed: [by[epoch] for epoch in sorted(by)] for seed, by in sorted(seeds.items())}
  return Outcome(row, json.loads(config_file.read_text()), found)


def sent_share(outcome: Outcome) -> float:
  """The share of the entries of an exchange that a worker has sent, mean over exchanges and seeds."""
  config = outcome.config
  if outcome.row.method == "none":
    return 1.0
  density, warmup = config["density"], config["warmup_epochs"]
  stages = rtopk_jax.warmup_density(density, 1, warmup + 1).densities if warmup else (density,)
  sent = entries = 0
  for records in outcome.seeds.values():
    before = 0
    for record in records:
      stage = stages[min(record["epoch"], len(stages)) - 1]
      exchanges, size = record["step"] - before, record["parameters"]
      sent += exchanges * rtopk_jax.top_k(stage).counts(size)[0]
      entries += exchanges * size
      before = record["step"]
  return sent / entries


def markdown(table: Table, outcomes: list[Outcome], picture: str) -> str:
  """The table.

  Args:
    table: of the paper.
    outcomes: of its rows, in their order.
    picture: the name of its picture.

  Returns:
    Markdown. Scores are those after the last epoch that was run, never the best of several: the mean over
    seeds ± the standard deviation.
  """
  lines = [
    f"# Table {ROMAN[table.number]}: {table.title}",
    "",
    f"| method | compression | {table.score.name} | the paper's | variant | epochs | seeds | "
    "entries sent | MB sent a worker | minutes |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for outcome in outcomes:
    cells = [NAMES[outcome.row.method], _compression(outcome.row), *_measured(table, outcome)]
    lines.append(f"| {' | '.join(cells)} |")
  lines += [
    "",
    "Entries sent: the share of the entries of an exchange that a worker sends, mean over the run, warm-up "
    "included. MB: what a worker handed to its collectives over the run. Scores are those after the last "
    "epoch, means over seeds ± standard deviation.",
    "",
    f"![Figure {table.figure}]({picture})",
  ]
  return "\n".join(lines) + "\n"


def _compression(row: Row) -> str:
  return "none" if row.compression is None else f"{100 * float(row.compression):g} %"


def _measured(table: Table, outcome: Outcome) -> list[str]:
  paper = table.printed(outcome.row)
  ends, config = outcome.ends, outcome.config
  if not ends:
    return ["not run", paper, *["–"] * 6]
  key = table.score.key
  scored = [[r[key] for r in records if key in r] for records in outcome.seeds.values()]
  scores = np.array([values[-1] for values in scored if values], np.float64)
  shown = table.score.shown(scores.mean()) if len(scores) else "none yet"
  spread = f" ± {table.score.shown(scores.std(ddof=1))}" if len(scores) > 1 else ""
  mean = lambda key: float(np.mean([end[key] for end in ends]))
  return [
    shown + spread,
    paper,
    config["variant"],
    f"{min(end['epoch'] for end in ends)} of {config['epochs']}",
    f"{len(ends)} of {len(config['seeds'])}",
    f"{100 * sent_share(outcome):.3g} %",
    f"{mean('sent_bytes') / 1e6:.4g}",
    f"{sum(end['seconds'] for end in ends) / 60:.1f}",
  ]


def _of_all(outcome: Outcome, key: str) -> list[list[Record]]:
  """By seed, the records of the epochs in which all seeds have a figure; evaluations may be rarer."""
  by_epoch = [
    {record["epoch"]: record for record in records if record.get(key) is not None}
    for records in outcome.seeds.values()
  ]
  common = sorted(set.intersection(*map(set, by_epoch)))
  return [[records[epoch] for epoch in common] for records in by_epoch]


def draw(table: Table, outcomes: list[Outcome], path: pathlib.Path) -> None:
  """The figure that goes with a table: loss and score, over epochs and over bytes sent.

  Args:
    table: of the paper.
    outcomes: of its rows; those that have not run are left out.
    path: the PNG file.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(11, 7.5), layout="constrained")
  panels = figure.subplots(2, 2)
  score = table.score
  scale = 100 if score.percent else 1
  quantities: list[tuple[str, str, float, bool]] = [
    ("training loss", "train_loss", 1, False),
    (score.name + (", %" if score.percent else ""), score.key, scale, not score.percent),
  ]
  ways: list[tuple[str, Callable[[Record], float], bool]] = [
    ("epochs", lambda r: r["epoch"], False),
    ("megabytes sent by a worker (logarithmic)", lambda r: r["sent_bytes"] / 1e6, True),
  ]
  dashes = dict(
    zip(
      dict.fromkeys(o.row.compression for o in outcomes if o.row.compression), _DASHES, strict=False
    )
  )
  for outcome in outcomes:
    if not outcome.seeds:
      continue
    row = outcome.row
    label = NAMES[row.method] + (f", {_compression(row)}" if row.compression else "")
    style = {"color": COLOURS[row.method], "linestyle": dashes.get(row.compression or "", "-")}
    for line, (_, key, factor, _) in zip(panels, quantities, strict=True):
      runs = _of_all(outcome, key)
      mean = lambda of, runs=runs: np.mean([[of(r) for r in run] for run in runs], axis=0)
      values = mean(lambda r, key=key, factor=factor: factor * r[key])
      for panel, (_, place, _) in zip(line, ways, strict=True):
        panel.plot(mean(place), values, label=label, marker=".", markersize=4, **style)
  for line, (name, _, _, logarithmic) in zip(panels, quantities, strict=True):
    for panel, (way, _, many) in zip(line, ways, strict=True):
      panel.set_xlabel(way)
      panel.set_ylabel(name)
      if many:
        panel.set_xscale("log")
        plain_ticks(panel.xaxis)
      else:
        panel.xaxis.get_major_locator().set_params(integer=True)
      if logarithmic:
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
      panel.grid(alpha=0.25)
      panel.spines[["top", "right"]].set_visible(False)
  if panels[0, 0].lines:
    # Below all panels, where no line can run through it.
    lines, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False)
  variants = sorted({o.config["variant"] for o in outcomes if o.config})
  figure.suptitle(
    f"Figure {table.figure} ({table.title}), variant {', '.join(variants) or 'not run'}",
    fontsize="medium",
  )
  figure.savefig(path, dpi=150)
