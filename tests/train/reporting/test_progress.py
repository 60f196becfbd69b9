"""What a run says while it goes on: lines, a bar, TensorBoard's scalars, evaluations when they are due."""

import io
import json
import re

import pytest
from rich.console import Console

from tests.train.reporting.test_events import read
from tests.train.runs import lines
from train import Score, train_and_evaluate
from train.reporting.clock import Clock
from train.reporting.progress import Progress

pytestmark = pytest.mark.usefixtures("usual_promotion")


def _job(progress):
  """Two runs of three steps, an evaluation after each."""
  for name in ("rtopk seed 0", "none seed 0"):
    progress.begin(name, 0, 3)
    for step in range(1, 4):
      progress.step(step, 0.1 * step, 2_000_000 * step)
      progress.score(f"test loss {step}")
      progress.epoch()


def test_a_job_that_is_not_watched_says_lines(capsys):
  with Progress(6, 2, every=0.0) as progress:
    assert progress.left() is None
    _job(progress)
    assert progress.left() == 0.0
  said = capsys.readouterr().out.splitlines()
  assert len(said) == 12  # a step and an epoch each
  assert said[0].startswith("rtopk seed 0: step 1 of 3, loss 0.1, 2.00 MB sent")
  assert re.fullmatch(
    r"rtopk seed 0: step 3 of 3, loss 0\.3, test loss 3, \S+ steps/s, 6\.00 MB sent, \d+ s left",
    said[5],
  )
  # The score of another run is not this one's.
  assert "test loss" not in said[6]


def test_lines_are_at_most_one_a_minute(capsys):
  with Progress(6, 2) as progress:
    _job(progress)
  assert capsys.readouterr().out == ""


def test_a_bar_shows_loss_score_and_what_is_left():
  terminal = Console(file=io.StringIO(), force_terminal=True, width=160)
  with Progress(6, 2, console=terminal) as progress:
    _job(progress)
  text = terminal.file.getvalue()
  assert "loss 0.3, test loss 3" in text
  assert "s left" in text
  assert "100%" in text


def test_a_run_that_goes_on_counts_what_is_done():
  with Progress(10, 1, every=0.0) as progress:
    progress.begin("rtopk seed 0", 8, 10)
    progress.step(9, None, 0)
    assert progress.left() is None  # the first step compiled
    progress.step(10, None, 0)
    assert progress.left() == 0.0


def test_time_left_is_of_steps_that_do_not_compile():
  clock = Clock(step=5, seconds=0.0)
  clock.left(6, 100)
  # Nothing but this test has passed since the first step.
  assert 0 < clock.left(7, 100) < 60
  assert clock.left(100, 100) == 0


def test_tensorboard_has_scores_rate_density_and_norms(config, tmp_path):
  train_and_evaluate(config, str(tmp_path))
  run = tmp_path / "runs" / "rtopk-0"
  (events,) = run.glob("events.out.tfevents.*")
  scalars = {}
  for step, name, value in read(events):
    scalars.setdefault(name, {})[step] = value
  for name in ("train_loss", "learning_rate", "density", "residual_norm"):
    assert sorted(scalars[name]) == list(range(1, 31))
  records = lines(tmp_path / "metrics.jsonl")
  assert scalars["test_loss"] == pytest.approx({x["step"]: x["test_loss"] for x in records})
  # A quarter in the epoch of warm-up, then a tenth; along a cosine.
  assert scalars["density"][10] == 0.25
  assert scalars["density"][11] == pytest.approx(0.1)
  assert scalars["learning_rate"][1] == pytest.approx(0.3)
  assert scalars["learning_rate"][16] == pytest.approx(0.15)


@pytest.mark.parametrize(
  ("every", "at_end", "scored"),
  [
    (2, True, [2, 3]),
    (2, False, [2]),
    *(pytest.param(i, True, x, marks=pytest.mark.slow) for i, x in ((1, [1, 2, 3]), (0, [3]))),
  ],
)
def test_evaluations_come_when_they_are_due(config, tmp_path, every, at_end, scored):
  config.warmup_epochs, config.eval_every, config.eval_at_end = 0, every, at_end
  records = train_and_evaluate(config, str(tmp_path))
  assert [x["epoch"] for x in records] == [1, 2, 3]
  assert [x["epoch"] for x in records if "test_loss" in x] == scored
  score = next(x["test_loss"] for x in reversed(records) if "test_loss" in x)
  assert f"| rTop-k | {score:.4g} |" in (tmp_path / "results.md").read_text()
  assert (tmp_path / "loss.png").read_bytes()


def test_figures_that_are_not_finite_are_null(config, tmp_path):
  config.warmup_epochs, config.epochs = 0, 1
  config.task_options.bad_from, config.task_options.bad_until = 0, 3
  train_and_evaluate(config, str(tmp_path))
  for path in (tmp_path / "metrics.jsonl", tmp_path / "runs" / "rtopk-0" / "steps.jsonl"):
    for line in path.read_text().splitlines():
      json.loads(line, parse_constant=pytest.fail)
  assert lines(tmp_path / "runs" / "rtopk-0" / "steps.jsonl")[0]["train_loss"] is None


@pytest.mark.parametrize(
  ("value", "shown"),
  [
    *((0.0, "0"), (0.00123456, "0.001235"), (1.5, "1.5"), (98.345, "98.34"), (1.2e17, "1.2e+17")),
    *((float("nan"), "not finite"), (None, "not finite")),
  ],
)
def test_scores_have_enough_digits(value, shown):
  assert Score("test_loss", "test loss").shown(value) == shown
