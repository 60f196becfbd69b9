"""Intervals and verdicts against figures worked out by hand."""

import numpy as np
import pytest

from study import claims, verdicts
from study.plan import STAGES
from study.verdicts import FAILS, HOLDS, UNDECIDED, Gain, gain


def test_a_paired_t_interval():
  # Differences 1, 2, 3, 4, 5: mean 3, standard error sqrt(2.5 / 5), t = 2.776 with 4 degrees of freedom.
  found = gain("cifar", np.array([51.0, 52, 53, 54, 55]), np.full(5, 50.0))
  assert found.mean == 3
  assert found.high - found.mean == pytest.approx(2.7764 * np.sqrt(0.5), abs=1e-4)
  assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_pairs_count_and_not_the_spread_of_seeds():
  seeds = np.array([40.0, 50, 60, 70, 80])
  found = gain("cifar", seeds + 1, seeds)
  assert found.low == found.high == 1


def test_of_perplexities_less_is_better_in_percent():
  found = gain("ptb", np.array([100.0, 200.0]), np.array([102.0, 204.0]))
  assert found.mean == pytest.approx(100 * np.log(1.02))
  assert found.above == HOLDS


@pytest.mark.parametrize(
  ("low", "high", "above", "not_below", "who"),
  [
    (0.4, 0.9, HOLDS, HOLDS, "first"),
    (0.2, 0.9, UNDECIDED, HOLDS, UNDECIDED),
    (-0.2, 0.2, FAILS, HOLDS, "alike"),
    (-0.5, 0.2, FAILS, UNDECIDED, UNDECIDED),
    (-0.9, -0.4, FAILS, FAILS, "second"),
    (-2.0, 2.0, UNDECIDED, UNDECIDED, UNDECIDED),
  ],
)
def test_verdicts(low, high, above, not_below, who):
  found = Gain((low + high) / 2, low, high, 0.3)
  assert (found.above, found.not_below, found.who) == (above, not_below, who)


def test_unpaired_scores_are_refused():
  with pytest.raises(ValueError, match="same 2 seeds or more, got 3 and 2"):
    gain("cifar", np.zeros(3), np.zeros(2))
  with pytest.raises(ValueError, match="got 1 and 1"):
    gain("cifar", np.zeros(1), np.zeros(1))


def test_claims_are_about_cells_of_the_plan():
  stages = {stage.name: stage for stage in STAGES}
  for claim in claims.CLAIMS:
    for row in (claim.one, claim.other):
      assert claims.setting_of(stages[claim.stage], row) is not None, claim
  assert {claim.letter for claim in claims.CLAIMS} == set("abcde")
  assert verdicts.MARGINS["cifar"] == 0.3
