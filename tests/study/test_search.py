"""Which runs come next: the grid grows to the best rate, and the test score has no say."""

import math

import numpy as np
import pytest

from study import search
from study.log import Log, open_all
from study.search import Cell
from study.settings import Setting

SETTING = Setting(method="rtopk", compression="0.99", memory=0.0, average="senders")
CELL = Cell(SETTING, (-1, 0, 1))


def test_a_setting_is_read_from_what_differs_in_it():
  assert Setting(**SETTING.changed()) == SETTING
  assert Setting().text == "{}"
  assert SETTING.density == 0.01
  assert SETTING.baseline == Setting()
  after = SETTING.but(momentum="after", workers=2, share="same", warmup=5)
  assert after.baseline == Setting(workers=2, share="same")
  assert after.but(momentum="none").baseline.momentum == "none"


def test_two_steps_of_the_grid_are_five_times_the_rate():
  assert search.rate(2) == 0.5
  assert search.rate(-2) == 0.02
  assert [search.exponent(search.rate(j)) for j in range(-5, 6)] == list(range(-5, 6))


def seeds(log, j):
  """How many seeds a rate has, if all."""
  scores = search.tests(log, CELL, search.rate(j))
  return 0 if scores is None else len(scores)


def play(log, cell, shared=None, valid=lambda j, seed: -abs(j), test=lambda j, seed: 0.0):
  """Runs what is missing until nothing is; the number of runs."""
  count = 0
  while runs := search.missing(log, cell, shared):
    assert len(set(runs)) == len(runs)
    for rate, seed in runs:
      assert log.find(cell.setting, rate, seed) is None
      j = search.exponent(rate)
      log.append(cell.setting, rate, seed, {"valid": valid(j, seed), "test": test(j, seed)})
      count += 1
  return count


@pytest.mark.parametrize("best", [-6, -3, 0, 2])
def test_the_grid_grows_to_the_best_rate(tmp_path, best):
  log = Log(tmp_path / "log.jsonl")
  play(log, CELL, valid=lambda j, seed: 50 - abs(j - best))
  assert search.own_rate(log, CELL) == search.rate(best)
  # The best has both neighbours, and all seeds.
  assert all(log.find(SETTING, search.rate(best + i), 0) for i in (-1, 0, 1))
  assert seeds(log, best) == 5


def test_the_grid_does_not_grow_for_ever(tmp_path):
  log = Log(tmp_path / "log.jsonl")
  assert play(log, CELL, valid=lambda j, seed: j) < 20


def test_the_second_seed_decides_between_the_best_two(tmp_path):
  log = Log(tmp_path / "log.jsonl")
  first = {-1: 40, 0: 50, 1: 49}
  play(log, CELL, valid=lambda j, seed: first[j] if seed == 0 else first[j] + 10 * (j == 1))
  assert search.own_rate(log, CELL) == search.rate(1)
  one = Log(tmp_path / "one.jsonl")
  single = Cell(SETTING, (-1, 0, 1), finalists=1)
  play(one, single, valid=lambda j, seed: first[j] if seed == 0 else first[j] + 10 * (j == 1))
  assert search.own_rate(one, single) == search.rate(0)


def test_test_scores_have_no_say(tmp_path):
  rng = np.random.default_rng(0)
  kinds = (lambda j, seed: 0.0, lambda j, seed: 100.0 * j, lambda j, seed: float(rng.normal()))
  rates = []
  for i, test in enumerate(kinds):
    log = Log(tmp_path / f"{i}.jsonl")
    play(log, CELL, valid=lambda j, seed: 50 - abs(j + 2), test=test)
    rates.append(search.own_rate(log, CELL))
  assert rates == [search.rate(-2)] * 3


def test_the_baselines_rate_gets_all_seeds_too(tmp_path):
  log = Log(tmp_path / "log.jsonl")
  play(log, CELL, shared=search.rate(3))
  assert seeds(log, 3) == 5
  assert seeds(log, 1) == 0


def test_lower_is_better_and_what_diverged_is_worst(tmp_path):
  log = Log(tmp_path / "log.jsonl")
  cell = Cell(SETTING, (-1, 0, 1), higher=False)
  play(log, cell, valid=lambda j, seed: math.nan if j >= 0 else 100 + abs(j + 2))
  assert search.own_rate(log, cell) == search.rate(-2)


def test_a_log_that_was_cut_short_goes_on(tmp_path):
  path = tmp_path / "log.jsonl"
  log = Log(path)
  for seed in range(3):
    log.append(SETTING, 0.1, seed, {"valid": seed, "test": seed})
  text = path.read_text()
  path.write_text(text[:-20])
  again = Log(path)
  assert again.find(SETTING, 0.1, 1) == log.find(SETTING, 0.1, 1)
  assert again.find(SETTING, 0.1, 2) is None
  again.append(SETTING, 0.1, 2, {"valid": 2, "test": 2})
  assert path.read_text() == text


def test_stages_share_their_runs(tmp_path):
  logs = open_all(("one", "two"), tmp_path)
  logs["one"].append(SETTING, 0.1, 0, {"valid": 1, "test": 2})
  assert logs["two"].find(SETTING, 0.1, 0) == logs["one"].find(SETTING, 0.1, 0)
  assert not logs["two"].runs
  assert open_all(("one", "two"), tmp_path)["two"].find(SETTING, 0.1, 0)
