"""The pictures of docs/reproduction.md."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from configs.rows import NAMES
from study import search
from study.exchanges import bytes_of
from study.report_tables import CHANNEL, SEEN, by_bytes, gains, labels
from study.results import Results
from study.settings import Setting

All = dict[str, Results]
_COLOURS = {"none": "0.5", "rtopk": "C0", "topk": "C1", "randomk": "C2"}


_KINDS = (("memory and momentum", "C3"), ("memory alone", "C1"), ("no memory", "C0"))


def _kind(setting: Setting) -> tuple[str, str]:
  """What a setting is called and the colour it has."""
  return _KINDS[2 if not setting.memory else 0 if setting.heavy else 1]


def _figure(width: float, height: float) -> Any:
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")


def _tidy(panel: Any, x: str, y: str, title: str = "") -> None:
  panel.set(xlabel=x, ylabel=y)
  panel.set_title(title, fontsize="medium")
  panel.grid(alpha=0.25)
  panel.spines[["top", "right"]].set_visible(False)


def differences(everything: All) -> Any:
  """rTop-k minus top-k at own rates, with intervals, for every combination of the factors."""
  found = list(gains(everything["factors"]))
  figure = _figure(7.5, 0.8 + 0.32 * max(len(found), 1))
  panel = figure.subplots()
  for place, (one, gain, _) in enumerate(reversed(found)):
    colour = _kind(one)[1]
    panel.plot([gain.low, gain.high], [place, place], color=colour)
    panel.plot([gain.mean], [place], "o", color=colour)
  if found:
    margin = found[0][1].margin
    panel.axvspan(-margin, margin, color="0.85", zorder=0)
  panel.set_yticks(range(len(found)), [labels(one) for one, _, _ in reversed(found)])
  _tidy(panel, "rTop-k − top-k, points (grey: the margin)", "")
  return figure


def coverage(everything: All) -> Any:
  """The gain against what subsampling buys in coverage, of all pairs of the images' short runs."""
  figure = _figure(7.5, 4.5)
  panel = figure.subplots()
  marks = {"equal": "o", "same": "s", "classes": "^"}
  seen, shares = set[str](), list[str]()
  for name in ("factors", "shares", "classes"):
    for one, gain, ratio in gains(everything[name]):
      if one.text in seen:
        continue
      seen.add(one.text)
      shares.append(one.share)
      colour = _kind(one)[1]
      panel.errorbar(
        [ratio],
        [gain.mean],
        [[gain.mean - gain.low], [gain.high - gain.mean]],
        fmt=marks[one.share],
        color=colour,
        alpha=0.8,
      )
  for label, colour in _KINDS:
    panel.plot([], [], "o", color=colour, label=label)
  for share in dict.fromkeys(shares):
    mark = marks[share]
    words = {"equal": "random shares", "same": "the same batch", "classes": "classes of their own"}
    panel.plot([], [], mark, color="0.4", label=words[share])
  panel.axhline(0, color="0.4", linewidth=0.8)
  panel.set_xscale("log")
  last = 5.2 if "same" in shares else 1.65
  ticks = [x for x in (1, 1.2, 1.4, 1.6, 2, 3, 4, 5) if x < last]
  panel.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
  panel.set_xticks([], [], minor=True)
  panel.set_xlim(0.95, last)
  panel.legend(frameon=False, fontsize="small", loc="lower center")
  _tidy(panel, "entries that some worker sends: rTop-k's over top-k's", "rTop-k − top-k, points")
  return figure


def rates(everything: All) -> Any:
  """Held-out accuracy over the learning rate, first seed."""
  results = everything["factors"]
  kinds = ((1.0, "correction"), (1.0, "none"), (0.0, "after"))
  figure = _figure(9, 7.5)
  panels = figure.subplots(len(kinds), 2, sharex=True, sharey=True)
  for line, (memory, momentum) in zip(panels, kinds, strict=True):
    for panel, average in zip(line, ("workers", "senders"), strict=True):
      base = Setting(compression="0.99", memory=memory, momentum=momentum, average=average)
      for setting in (base.baseline, base.but(method="rtopk"), base.but(method="topk")):
        points = [
          (search.rate(j), run["valid"])
          for j in range(-8, 6)
          if (run := results.log.find(setting, search.rate(j), 0)) is not None
        ]
        panel.plot(
          [x for x, _ in points],
          [y for _, y in points],
          ".-",
          color=_COLOURS[setting.method],
          label=NAMES[setting.method],
        )
      panel.set_xscale("log")
      _tidy(panel, "learning rate", "held-out accuracy, %", labels(base))
  panels[0, 0].legend(frameon=False, fontsize="small")
  return figure


def course(everything: All) -> Any:
  """Coverage, residual, and the update against the dense one over the epochs, with memory and without."""
  results = everything["factors"]
  figure = _figure(10, 2.6 * len(SEEN))
  panels = figure.subplots(len(SEEN), 4, squeeze=False)
  kinds = {
    "coverage": "sent by some worker, in k",
    "residual": "residual / gradient, norms",
    "update": "update / dense update, norms",
    "cosine": "cosine of the two",
  }
  for line, (memory, momentum, average) in zip(panels, SEEN, strict=True):
    base = Setting(compression="0.99", memory=memory, momentum=momentum, average=average)
    for panel, (name, label) in zip(line, kinds.items(), strict=True):
      for method in ("rtopk", "topk"):
        values = results.course(base.but(method=method), name) or []
        scale = 100 if name == "coverage" else 1
        panel.plot(
          range(1, len(values) + 1),
          [scale * x for x in values],
          color=_COLOURS[method],
          label=NAMES[method],
        )
      panel.set_ylim(bottom=0)
      _tidy(panel, "epoch", label, "")
    line[0].set_title(labels(base), fontsize="small", loc="left")
  panels[0, 0].legend(frameon=False, fontsize="small")
  return figure


def score_over_bytes(everything: All) -> Any:
  """Test accuracy over what a worker sends in a step, by method and code, with standard deviations."""
  figure = _figure(7.5, 4.5)
  panel = figure.subplots()
  marks = dict(zip(CHANNEL, "os^Dv", strict=True))
  shown = set[Setting]()
  for results, setting in by_bytes(everything):
    scores = results.scores(setting)
    if scores is None:
      continue
    shown.add(setting)
    panel.errorbar(
      bytes_of(setting),
      scores.mean(),
      scores.std(ddof=1),
      fmt=marks[setting.channel],
      color=_COLOURS[setting.method],
      alpha=0.8,
    )
  for method in dict.fromkeys(setting.method for setting in shown):
    panel.plot([], [], "o", color=_COLOURS[method], label=NAMES[method])
  for channel in (x for x in CHANNEL if x in {setting.channel for setting in shown}):
    panel.plot([], [], marks[channel], color="0.4", label=CHANNEL[channel])
  panel.set_xscale("log")
  panel.legend(frameon=False, fontsize="small")
  _tidy(panel, "bytes that a worker sends in a step (logarithmic)", "test accuracy, %")
  return figure


PICTURES: dict[str, Callable[[All], Any]] = {
  "differences.png": differences,
  "coverage.png": coverage,
  "rates.png": rates,
  "course.png": course,
  "bytes.png": score_over_bytes,
}


def draw(everything: All, folder: pathlib.Path) -> Iterator[str]:
  """Writes the pictures; their names."""
  for name, picture in PICTURES.items():
    picture(everything).savefig(folder / name, dpi=80)
    yield name
