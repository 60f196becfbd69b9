"""The stages of the study, in the order in which they are run."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from study.search import Cell
from study.settings import Setting

# Exponents of the grids of learning rates (study.search): without momentum steps are ten times larger.
MOMENTUM, PLAIN = tuple(range(-1, 2)), tuple(range(1, 4))
# Federated, the rate of the local steps; language without momentum, its loss summed over 35 words.
LOCAL, WORDS = tuple(range(-2, 1)), tuple(range(1, 4))


@dataclasses.dataclass(frozen=True)
class Stage:
  """Cells with a question in common, whose runs are in one log.

  Attributes:
    name: of the log.
    cells: what is run, after the baselines whose rates it needs.
  """

  name: str
  cells: tuple[Cell, ...]

  def cell(self, setting: Setting) -> Cell | None:
    """The cell of a setting, or None."""
    return next((c for c in self.cells if c.setting == setting), None)


def _stage(name: str, settings: Iterable[Setting], grid: tuple[int, ...], **fields: Any) -> Stage:
  """A stage: its settings, each after its baseline."""
  settings = list(settings)
  every = dict.fromkeys(s for setting in settings for s in (setting.baseline, setting))
  wide = lambda s: PLAIN if grid is MOMENTUM and s.momentum == "none" else grid
  return Stage(name, tuple(Cell(s, wide(s), **fields) for s in every))


_BOTH = ("rtopk", "topk")
_RATIO = Setting(compression="0.99")


def _factors(memories: Iterable[float], momenta: Iterable[str]) -> list[Setting]:
  return [
    _RATIO.but(memory=memory, momentum=momentum, average=average, method=method)
    for memory, momentum, average, method in itertools.product(
      memories, momenta, ("workers", "senders"), _BOTH
    )
  ]


def _claims(common: Setting, rows: Iterable[tuple[str, str]]) -> list[Setting]:
  return [common.but(method=method, compression=compression) for method, compression in rows]


_IMAGES = [*itertools.product(_BOTH, ("0.99", "0.999")), ("randomk", "0.99")]
_PAPER = Setting(average="senders")

FACTORS = _stage("factors", _factors((1.0, 0.0), ("correction", "after", "none")), MOMENTUM)
# With a memory and momentum, with a memory alone, with momentum alone.
_WITH = _RATIO.but(memory=1.0, momentum="correction", average="workers")
_PLAIN = _RATIO.but(memory=1.0, momentum="none", average="workers")
_WITHOUT = _RATIO.but(memory=0.0, momentum="after", average="senders")


def _each(settings: Iterable[Setting]) -> list[Setting]:
  return [setting.but(method=method) for setting in settings for method in _BOTH]


# Half the momentum, and momentum that is not masked.
MOMENTA = _stage(
  "momenta",
  _each([_WITH.but(m=0.5), _WITH.but(m=0.5, momentum="after"), _WITH.but(masking=False)]),
  MOMENTUM,
)
# r/k, of which 1 is top-k and 5 is n.
RATIOS = _stage(
  "ratios",
  [
    setting.but(method="rtopk", subsample=ratio)
    for setting, ratio in itertools.product((_PLAIN, _WITH), (2, 10, 20))
  ],
  MOMENTUM,
  shared=False,
)
SHARES = _stage("shares", _each(s.but(share="same") for s in (_WITH, _PLAIN, _WITHOUT)), MOMENTUM)
CLASSES = _stage(
  "classes",
  _each(s.but(share="classes") for s in (_WITH, _PLAIN, _WITHOUT)),
  MOMENTUM,
  shared=False,
)
LONG = _stage(
  "long",
  _each([_PLAIN.but(epochs=40)]),
  MOMENTUM,
  shared=False,
  finalists=1,
)
# Fewer and more workers, each with batches of its own; r/k goes with n.
WORKERS = _stage(
  "workers",
  _each([_PLAIN.but(workers=n) for n in (2, 10, 20)]),
  MOMENTUM,
  shared=False,
  finalists=1,
)
DECAY = _stage("decay", _factors((0.9,), ("correction", "none")), MOMENTUM)
SPARSER = _stage(
  "sparser",
  [
    Setting(compression="0.999", memory=m, momentum=u, average=a, method=method)
    for (m, u), a, method in itertools.product(
      ((1.0, "correction"), (0.0, "after")), ("workers", "senders"), _BOTH
    )
  ],
  MOMENTUM,
)
TABLE_1 = _stage(
  "table1",
  _claims(_PAPER.but(epochs=40, warmup=2), _IMAGES),
  MOMENTUM,
  finalists=1,
)
TABLE_2 = _stage(
  "table2",
  _claims(_PAPER.but(epochs=30, warmup=2, exchange_every="epoch"), _IMAGES),
  LOCAL,
  finalists=1,
)
TABLE_4 = _stage(
  "table4",
  _claims(
    _PAPER.but(task="ptb", momentum="none", epochs=3, warmup=2),
    (
      ("rtopk", "0.999"),
      ("topk", "0.999"),
      ("topk", "0.99"),
      ("rtopk", "0.99"),
      ("randomk", "0.99"),
    ),
  ),
  WORDS,
  higher=False,
  finalists=1,
)
TABLE_5 = _stage(
  "table5",
  _claims(
    _PAPER.but(task="ptb", momentum="none", epochs=8, memory=0.0, exchange_every="epoch", warmup=2),
    (("rtopk", "0.95"), ("topk", "0.95"), ("topk", "0.75"), ("randomk", "0.95")),
  ),
  WORDS,
  higher=False,
)
# How entries travel, and other ways to choose them: score against bytes.
BYTES = _stage(
  "bytes",
  [
    *(_PLAIN.but(method=method, compression="0.999") for method in _BOTH),
    _PLAIN.but(method="randomk"),
    *(
      _PLAIN.but(method="topk", channel=channel) for channel in ("block", "owners", "bf16", "int8")
    ),
    *(_PLAIN.but(method="rtopk", channel=channel) for channel in ("block", "bf16", "int8")),
  ],
  MOMENTUM,
  shared=False,
)
# Language at 99 %, with one thing changed: the average, the memory, momentum.
_WORDS = _PAPER.but(task="ptb", momentum="none", compression="0.99", epochs=3, warmup=2)
LANGUAGE = _stage(
  "language",
  _each([_WORDS.but(average="workers"), _WORDS.but(memory=0.0), _WORDS.but(momentum="correction")]),
  WORDS,
  higher=False,
  finalists=1,
  shared=False,
)
# What it costs that messages arrive a step later; as at once in factors and table4.
_LATER = {"finalists": 1, "shared": False, "seeds": (0, 1, 2)}
DELAY = Stage(
  "delay",
  tuple(
    Cell(s.but(channel="later"), PLAIN if s.momentum == "none" else MOMENTUM, **_LATER)
    for s in _each([_PLAIN, _WITH])
  ),
)
DELAYED_WORDS = Stage(
  "delayed_words",
  tuple(Cell(s.but(channel="later"), WORDS, higher=False, **_LATER) for s in _each([_WORDS])),
)
STAGES = (
  FACTORS,
  RATIOS,
  TABLE_4,
  TABLE_2,
  LANGUAGE,
  TABLE_1,
  SHARES,
  LONG,
  MOMENTA,
  TABLE_5,
  BYTES,
  CLASSES,
  WORKERS,
  DELAY,
  DELAYED_WORDS,
  DECAY,
  SPARSER,
)
