"""The tables of docs/reproduction.md."""

from collections.abc import Callable, Iterable, Iterator

from configs.rows import NAMES
from study import claims, delay
from study.exchanges import bytes_of
from study.results import PROTOCOLS, Results, score
from study.settings import Setting
from study.verdicts import Gain, gain
from train.paper.printed import TABLES as PAPER

All = dict[str, Results]
_BOTH = ("rtopk", "topk")
_TASK = {"cifar": "images", "ptb": "language"}
CHANNEL = {
  "plain": "float32, int32 indices",
  "bf16": "bfloat16, Elias–Fano",
  "int8": "int8, Elias–Fano",
  "block": "within blocks of 1,024",
  "owners": "ReduceScatter",
}
_MEMORY = {1.0: "on", 0.0: "off", 0.9: "decay 0.9"}
# Of the ratios r/k that a stage of its own runs; n and 1 are in the factors.
RATIOS_RUN = (2, 10, 20)
# Memory, momentum and average of what is looked into.
SEEN = ((1.0, "correction", "workers"), (1.0, "none", "workers"), (0.0, "after", "senders"))
_SHARE = {"equal": "random shares", "same": "the same for all", "classes": "classes of their own"}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """A table in Markdown."""
  head = list(head)
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _who(found: Gain | None) -> tuple[str, str]:
  if found is None:
    return "–", "not run"
  names = {"first": "rTop-k", "second": "top-k"}
  return found.text, f"**{names[found.who]}**" if found.who in names else found.who


def _pairs(results: Results) -> list[tuple[Setting, Setting]]:
  """Settings with rTop-k, each beside the one with top-k."""
  settings = [cell.setting for cell in results.stage.cells]
  return [(s, s.but(method="topk")) for s in settings if s.method == "rtopk"]


def momentum(setting: Setting) -> str:
  """Where it stands, and how large it is."""
  if setting.momentum == "none":
    return "none"
  words = {"correction": "correction", "after": "after the mean"}[setting.momentum]
  return f"{words} {setting.m:g}" + ("" if setting.masking else ", not masked")


def labels(setting: Setting) -> str:
  """The factors of a setting in words."""
  memory = {1.0: "memory", 0.0: "no memory"}.get(setting.memory, f"memory × {setting.memory:g}")
  return f"{memory}; momentum {momentum(setting)}; {setting.average}"


def gains(results: Results) -> Iterator[tuple[Setting, Gain, float]]:
  """At own rates: rTop-k's setting, its gain over top-k, and how many times as many entries get through."""
  for one, other in _pairs(results):
    found = results.gain(one, other)
    covered = [results.seen(setting, "coverage") for setting in (one, other)]
    if found is not None and covered[0] is not None and covered[1] is not None:
      yield one, found, float(covered[0].mean() / covered[1].mean())


def ratios(everything: All) -> str:
  """rTop-k by r/k, with momentum and without, at own rates."""
  results, factors = everything["ratios"], everything["factors"]
  rows = []
  for cell in results.stage.cells:
    setting = cell.setting
    if setting.method == "none" or setting.subsample != min(RATIOS_RUN):
      continue
    top = setting.but(method="topk", subsample=0)
    for ratio in (1, *RATIOS_RUN, setting.workers):
      asked = setting.but(subsample=0 if ratio == setting.workers else ratio)
      where, found = (factors, asked) if ratio == setting.workers else (results, asked)
      where, found = (factors, top) if ratio == 1 else (where, found)
      scores, against = where.scores(found), factors.scores(top)
      gained = None
      if scores is not None and against is not None and ratio > 1:
        gained = gain(setting.task, scores, against)
      seen = where.seen(found, "cosine")
      rows.append(
        (
          setting.heavy,
          ratio,
          [
            f"{setting.heavy:g}",
            str(ratio),
            f"{delay.implicit_momentum(ratio):.2f}",
            f"{delay.stable_step(setting.heavy, ratio):.3g}",
            score(scores, where.rate(found, "own")),
            "–" if seen is None else f"{seen.mean():.2f}",
            "–" if gained is None else gained.text,
            "–" if gained is None else _who(gained)[1],
          ],
        )
      )
  head = ["momentum", "r/k", "of waiting", "stable ηh", "accuracy [own rate]", "cosine"]
  return table([*head, "minus top-k", "ahead"], [row for *_, row in sorted(rows)])


def why(everything: All) -> str:
  """What is seen in the last epoch, at own rates, by how the data is shared out."""
  pairs = [
    (results, *pair)
    for results in (everything[name] for name in ("factors", "shares", "classes"))
    for pair in _pairs(results)
    if (pair[0].memory, pair[0].momentum, pair[0].average) in SEEN
  ]
  rows = []
  for results, one, other in pairs:
    for setting in (one, other):
      names = ("coverage", "residual", "update", "cosine", "wait")
      seen = [results.seen(setting, name) for name in names]
      # Coverage in units of k: 1 where all send the same entries, n where no two do.
      scales = (1 / setting.density, 1, 1, 1, 1)
      values = [
        "–" if x is None or not x.any() else f"{scale * x.mean():.3g}"
        for scale, x in zip(scales, seen, strict=True)
      ]
      verdict = _who(results.gain(one, other)) if setting is one else ("", "")
      rows.append(
        [
          _SHARE[one.share],
          _MEMORY[one.memory],
          momentum(one),
          NAMES[setting.method],
          score(results.scores(setting), results.rate(setting, "own")),
          *values,
          *verdict,
        ]
      )
  return table(
    [
      *("batches", "memory", "momentum", "method", "accuracy [rate]", "entries sent, in k"),
      "residual",
      *("update", "cosine", "wait", "rTop-k − top-k", "ahead"),
    ],
    rows,
  )


def summary(everything: All) -> str:
  """rTop-k against top-k at 99 %, own rates: what the rest of the page is about."""
  image, found = Setting(compression="0.99"), everything["factors"]
  rows: list[tuple[str, str, str, Results, Setting]] = []
  for memory in (1.0, 0.0):
    for where in ("correction", "after", "none"):
      for average in ("workers", "senders"):
        one = image.but(memory=memory, momentum=where, average=average, method="rtopk")
        rows.append(("images", _MEMORY[memory], momentum(one), found, one))
  for name in ("table4", "language"):
    for one, _ in _pairs(everything[name]):
      if one.compression == "0.99":
        rows.append(("language", _MEMORY[one.memory], momentum(one), everything[name], one))
  lines = []
  for task, memory, momentum_of, results, one in rows:
    cells = [task, memory, momentum_of, one.average]
    for other in (one.but(method="topk"), one.baseline):
      gained = results.gain(one, other)
      cells += ["–", "not run"] if gained is None else [gained.text, f"**{gained.above}**"]
    lines.append(cells)
  head = ["task", "memory", "momentum", "average", "rTop-k − top-k", "rTop-k is better"]
  return table([*head, "rTop-k − no compression", "rTop-k is better"], lines)


def stability(everything: All) -> str:
  """Stable steps of an entry that waits for its draw."""
  del everything
  ratios_shown = (1, 2, 5, 10, 20)
  rows = [
    [f"{m:g}", *(f"{delay.stable_step(m, ratio):.3g}" for ratio in ratios_shown)]
    for m in (0.0, 0.5, 0.8, 0.9)
  ]
  waits = ["waiting is momentum", *(f"{delay.implicit_momentum(r):.2f}" for r in ratios_shown)]
  return table(["momentum", *(f"r/k = {r}" for r in ratios_shown)], [waits, *rows])


def accumulation(everything: All) -> str:
  """What a memory brings to each method, at own rates."""
  results = everything["factors"]
  rows = []
  for method in ("rtopk", "topk"):
    for cell in results.stage.cells:
      setting = cell.setting
      if setting.method == method and setting.memory:
        found = results.gain(setting, setting.but(memory=0.0))
        texts = ["–", "not run"] if found is None else [found.text, f"**{found.above}**"]
        rows.append([NAMES[method], momentum(setting), setting.average, *texts])
  return table(["method", "momentum", "average", "memory − no memory", "memory is better"], rows)


def factors(names: Iterable[str]) -> Callable[[All], str]:
  """rTop-k against top-k in every combination of the factors, at own and at shared learning rates."""

  def of(everything: All) -> str:
    rows = []
    for name in names:
      results = everything[name]
      for one, other in _pairs(results):
        for protocol in PROTOCOLS if results.stage.cells[0].shared else PROTOCOLS[:1]:
          scores = [
            score(results.scores(s, protocol), results.rate(s, protocol))
            for s in (one.baseline, one, other)
          ]
          rows.append(
            [
              _MEMORY[one.memory],
              momentum(one),
              one.average,
              f"{100 * float(one.compression):g} %",
              str(one.epochs),
              {"own": "own", "shared": "baseline's"}[protocol],
              *scores,
              *_who(results.gain(one, other, protocol)),
            ]
          )
    return table(
      [
        *("memory", "momentum", "average", "compression", "epochs", "rate", "no compression"),
        *("rTop-k", "top-k", "rTop-k − top-k", "ahead"),
      ],
      rows,
    )

  return of


def language(everything: All) -> str:
  """Language at 99 %, one thing changed at a time, at own rates."""
  rows = []
  for name in ("table4", "language"):
    results = everything[name]
    for one, other in _pairs(results):
      if one.compression != "0.99":
        continue
      scores = [
        score(results.scores(s), results.rate(s, "own")) for s in (one.baseline, one, other)
      ]
      covered = [results.seen(s, "coverage") for s in (one, other)]
      entries = ["–" if x is None else f"{x.mean() / one.density:.3g}" for x in covered]
      gained = _who(results.gain(one, other))
      rows.append([_MEMORY[one.memory], momentum(one), one.average, *scores, *entries, *gained])
  head = ["memory", "momentum", "average", "no compression", "rTop-k 99 %", "top-k 99 %"]
  return table([*head, "sent by rTop-k, in k", "by top-k", "gain of rTop-k, %", "ahead"], rows)


def later(everything: All) -> str:
  """What a step of delay costs, at own rates, by the seeds that both have."""
  rows = []
  for name, at_once in (("delay", "factors"), ("delayed_words", "table4")):
    for cell in everything[name].stage.cells:
      one, other = cell.setting, cell.setting.but(channel="plain")
      where = ((everything[name], one), (everything[at_once], other))
      scores = [results.scores(setting) for results, setting in where]
      rates = [results.rate(setting, "own") for results, setting in where]
      lost = None
      if scores[0] is not None and scores[1] is not None:
        lost = gain(one.task, scores[0], scores[1][: len(scores[0])])
      texts = [score(x, rate) for x, rate in zip(scores, rates, strict=True)]
      gained = "–" if lost is None else lost.text
      rows.append([_TASK[one.task], NAMES[one.method], momentum(one), texts[1], texts[0], gained])
  head = ["task", "method", "momentum", "at once", "a step later", "later − at once, points or %"]
  return table(head, rows)


def by_workers(everything: All) -> str:
  """rTop-k, r/k being the number of workers, against top-k."""
  rows = []
  found = [(x, everything["workers"]) for x in _pairs(everything["workers"])]
  five = Setting(compression="0.99", momentum="none", method="rtopk")
  found.append(((five, five.but(method="topk")), everything["factors"]))
  for (one, other), results in sorted(found, key=lambda x: x[0][0].workers):
    scores = [score(results.scores(s), results.rate(s, "own")) for s in (one.baseline, one, other)]
    covered = [results.seen(s, "coverage") for s in (one, other)]
    entries = ["–" if x is None else f"{x.mean() / one.density:.3g}" for x in covered]
    rows.append([str(one.workers), *scores, *entries, *_who(results.gain(one, other))])
  head = ["workers", "no compression", "rTop-k 99 %", "top-k 99 %", "sent by rTop-k, in k"]
  return table([*head, "by top-k", "rTop-k − top-k", "ahead"], rows)


def by_bytes(everything: All) -> list[tuple[Results, Setting]]:
  """What is compared at equal bytes, and whose results."""
  plain = Setting(momentum="none", compression="0.99")
  settings = [(everything["factors"], plain.but(method=method)) for method in _BOTH]
  return settings + [
    (everything["bytes"], cell.setting) for cell in everything["bytes"].stage.cells
  ]


def equal_bytes(everything: All) -> str:
  """Bytes that a worker hands over in a step, and the score, by what is sent and how."""
  rows = []
  for results, setting in by_bytes(everything):
    sent = bytes_of(setting)
    size = f"{100 * float(setting.compression):g} %" if setting.compression else "–"
    text = score(results.scores(setting), results.rate(setting, "own"))
    how = CHANNEL[setting.channel] if size != "–" else "–"
    rows.append((sent, [NAMES[setting.method], size, how, f"{sent:,}", text]))
  head = ["method", "compression", "how", "bytes a worker and step", "accuracy [own rate]"]
  return table(head, [row for _, row in sorted(rows, key=lambda x: -x[0])])


def rows_of_a_table(name: str) -> Callable[[All], str]:
  """The rows of a table of the paper: its figure, and the study's."""

  def of(everything: All) -> str:
    results, paper = everything[name], PAPER[claims.TABLE_OF[name]]
    printed = {(row.method, row.compression or ""): paper.printed(row) for row in paper.rows}
    rows = []
    for cell in results.stage.cells:
      setting = cell.setting
      size = f"{100 * float(setting.compression):g} %" if setting.compression else "–"
      rows.append(
        [
          NAMES[setting.method],
          size,
          printed.get((setting.method, setting.compression), "–"),
          *(score(results.scores(setting, p), results.rate(setting, p)) for p in PROTOCOLS),
        ]
      )
    return table(["method", "compression", "the paper's", "own rate", "baseline's rate"], rows)

  return of


def all_claims(everything: All) -> str:
  """Every claim, the gain and the verdict by both protocols."""
  rows = []
  for claim in claims.CLAIMS:
    judged = [claims.judge(claim, everything[claim.stage], p) for p in PROTOCOLS]
    texts = [text for found in judged for text in _judged(found)]
    number = {1: "I", 2: "II", 4: "IV", 5: "V"}[claims.TABLE_OF[claim.stage]]
    rows.append([f"({claim.letter})", number, claim.text, *texts])
  return table(
    [
      "claim",
      "table",
      "the paper says",
      "gain, own rates",
      "verdict",
      "gain, baseline's rate",
      "verdict",
    ],
    rows,
  )


def _judged(found: tuple[Gain, str] | None) -> tuple[str, str]:
  if found is None:
    return "–", "not run"
  return found[0].text, f"**{found[1]}**"


def undone(everything: All) -> str:
  """What of the plan has not been run."""
  rows = []
  for name, results in everything.items():
    missing = results.undone
    total = len(results.stage.cells)
    rows.append([f"`{name}`", str(total), str(total - len(missing)), str(len(results.log.runs))])
  return table(["stage", "settings", "done", "runs"], rows)


TABLES: dict[str, Callable[[All], str]] = {
  "factors": factors(["factors", "momenta"]),
  "summary": summary,
  "accumulation": accumulation,
  "stability": stability,
  "why": why,
  "ratios": ratios,
  "long": factors(["long"]),
  "others": factors(["decay", "sparser"]),
  "language": language,
  "claims": all_claims,
  "later": later,
  "workers": by_workers,
  "bytes": equal_bytes,
  "undone": undone,
  **{name: rows_of_a_table(name) for name in claims.TABLE_OF},
}
