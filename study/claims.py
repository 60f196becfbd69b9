"""The paper's claims as comparisons of settings: what is said, of which stage, and how it is judged."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from configs.rows import NAMES
from study.plan import Stage
from study.results import Results
from study.settings import Setting
from study.verdicts import Gain, gain

# The paper's tables that a stage's rows are of, and what is printed in them.
TABLE_OF = {"table1": 1, "table2": 2, "table4": 4, "table5": 5}


@dataclasses.dataclass(frozen=True)
class Claim:
  """One comparison.

  Attributes:
    letter: of the claim.
    text: what it says.
    stage: whose runs it is about.
    one: a row, "rtopk 0.99".
    other: another row, "none".
    relation: "above", "not below", or "loss above" (training loss, by any amount).
  """

  letter: str
  text: str
  stage: str
  one: str
  other: str
  relation: str = "above"


def _name(row: str) -> str:
  method, _, compression = row.partition(" ")
  return NAMES[method] + (f" {100 * float(compression):g} %" if compression else "")


def _says(letter: str, stage: str, one: str, other: str, relation: str = "above") -> Claim:
  words = {
    "above": "better than",
    "not below": "not worse than",
    "loss above": "training loss above that of",
  }
  return Claim(
    letter, f"{_name(one)} {words[relation]} {_name(other)}", stage, one, other, relation
  )


def _all() -> Iterator[Claim]:
  for stage in ("table1", "table2"):
    for compression in ("0.99", "0.999"):
      yield _says("a", stage, f"rtopk {compression}", f"topk {compression}")
    yield _says("a", stage, "rtopk 0.99", "randomk 0.99")
  yield _says("a", "table4", "rtopk 0.999", "topk 0.999")
  yield _says("a", "table4", "rtopk 0.99", "randomk 0.99")
  yield _says("a", "table5", "rtopk 0.95", "topk 0.95")
  yield _says("a", "table5", "rtopk 0.95", "randomk 0.95")
  yield _says("b", "table2", "rtopk 0.999", "topk 0.99")
  for stage in ("table1", "table2"):
    yield _says("c", stage, "rtopk 0.99", "none")
  yield _says("d", "table4", "rtopk 0.999", "none", "not below")
  yield _says("d", "table4", "topk 0.99", "none", "not below")
  for stage, row in (("table4", "rtopk 0.999"), ("table5", "rtopk 0.95")):
    yield _says("e", stage, row, "none")
    yield _says("e", stage, row, "none", "loss above")


CLAIMS = tuple(_all())


def setting_of(stage: Stage, row: str) -> Setting | None:
  """The cell of a stage that is a row of the table, "rtopk 0.99"."""
  method, _, compression = row.partition(" ")
  matches = lambda s: s.method == method and s.compression == compression
  return next((c.setting for c in stage.cells if matches(c.setting)), None)


def judge(claim: Claim, results: Results, protocol: str) -> tuple[Gain, str] | None:
  """The gain of a claim and the verdict; None where runs are missing.

  Args:
    claim: the claim.
    results: of its stage.
    protocol: "own" or "shared" learning rates.

  Returns:
    For "loss above" the gain is the difference of training losses in percent, and its margin is 0.
  """
  one, other = (setting_of(results.stage, row) for row in (claim.one, claim.other))
  if one is None or other is None:
    return None
  if claim.relation != "loss above":
    found = results.gain(one, other, protocol)
    if found is None:
      return None
    return found, found.above if claim.relation == "above" else found.not_below
  losses = [results.seen(setting, "loss", protocol) for setting in (one, other)]
  percent = [100 * np.log(loss) for loss in losses if loss is not None]
  if len(percent) < 2:
    return None
  found = gain("cifar", *percent)._replace(margin=0.0)
  return found, found.above
