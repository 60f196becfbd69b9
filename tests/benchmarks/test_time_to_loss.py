"""The parts of ``benchmarks.time_to_loss`` that are not measurements."""

import json
import math
import pathlib

import numpy as np
import pytest

import data
from benchmarks import loss_task, picture, time_to_loss
from benchmarks.time_to_loss import Course
from train.planning import experiment

pytestmark = pytest.mark.usefixtures("usual_promotion")


@pytest.mark.parametrize(
  ("loss", "batches"),
  [(7.0, 60), (6.5, 60), (6.25, 90), (6.0, 120), (5.9, math.nan)],
)
def test_a_loss_is_reached_between_two_evaluations(loss, batches):
  made = Course([60, 120], [6.5, 6.0], [3.0, 6.0], True)
  assert np.isclose(made.until(loss, made.batches), batches, equal_nan=True)


def test_the_table_compares_at_the_loss_that_the_dense_run_ends_with():
  dense = vars(Course([60, 120], [6.5, 6.0], [60.0, 120.0], False))
  sparse = vars(Course([60, 120, 180], [6.6, 6.1, 5.9], [6.0, 12.0, 18.0], True))
  never = vars(Course([60], [6.1], [6.0], True))
  runs = {"dense": dense, "sparse": sparse, "SparseLoCo": never, "DiLoCo": sparse}
  predicted = {"dense": 108.0, "sparse": 18.0, "SparseLoCo": 7.0, "DiLoCo": 18.0}
  found = {"batch_seconds": 0.1, "100Mbit/s": runs, "predicted": {"100Mbit/s": predicted}}
  rows = time_to_loss.table(found).splitlines()
  assert rows[0] == "|  | batches | 100Mbit/s: s (predicted) | dense / this |"
  assert rows[2:] == [
    "| dense | 120 | 120\\* (108) | 1.0 |",
    "| sparse | 150 | 15 (15) | 8.0 |",
    "| SparseLoCo | not reached | – | – |",
    "| DiLoCo | 150 | 15 (15) | 8.0 |",
  ]


def test_the_committed_runs_give_the_table_of_the_page():
  docs = pathlib.Path(__file__).parents[2] / "docs"
  found = json.loads((docs / "performance" / "time_to_loss.json").read_text())
  assert time_to_loss.table(found) in (docs / "performance.md").read_text()


def test_seconds_are_those_of_training_without_compilation(tmp_path):
  """Two batches an exchange, 30 exchanges an interval; the first interval also compiles."""
  (tmp_path / "config.json").write_text(json.dumps({"local_steps": 2}))
  records = [
    {"step": 30, "steps_per_second": 0.5, "valid_loss": 6.5},
    {"step": 60, "steps_per_second": 5.0, "valid_loss": 6.0},
    {"step": 90, "steps_per_second": 2.5, "valid_loss": 5.5},
    {"step": 120, "steps_per_second": 5.0, "valid_loss": 5.0},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
  made = time_to_loss.course(tmp_path)
  assert made == Course([60, 120, 180, 240], [6.5, 6.0, 5.5, 5.0], [6.0, 12.0, 24.0, 30.0], True)
  run = tmp_path / "runs" / "topk-0"
  run.mkdir(parents=True)
  (run / "steps.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
  assert time_to_loss.batch_seconds(tmp_path) == pytest.approx(0.1)


@pytest.mark.parametrize("row", loss_task.ROWS)
def test_rows_are_configs(row):
  config = experiment.settled(loss_task.get_config(row))
  batches = loss_task.ROWS[row][1]
  assert config.max_batches == batches
  assert batches % config.task_options.interval == 0
  assert config.task_options.interval % (config.local_steps or 1) == 0


def test_epochs_are_as_short_as_is_said(monkeypatch):
  words = np.arange(5000, dtype=np.int32) % 50
  text = data.Text(words, words, words, tuple(f"w{i}" for i in range(50)))
  monkeypatch.setitem(data.TEXTS, "ptb", lambda data_dir: text)
  config = loss_task.get_config("dense")
  task = loss_task.Words(config)
  source = task.source(0)
  assert source.steps_per_epoch == 50
  assert source.batch(1, 49, 3)["input"].shape == (4, 32)
  assert len(task.text.valid) == 5000
  config.task_options.scored = 2048
  assert len(loss_task.Words(config).text.valid) == 2048


@pytest.mark.parametrize("log_y", [False, True])
def test_a_picture_of_curves(tmp_path, log_y):
  path = tmp_path / "curves.png"
  curves = {"dense": ([1.0, 200.0], [6.0, 5.0]), "sparse": ([1.0, 20.0], [6.5, 5.0])}
  picture.curves(str(path), curves, ("seconds", "loss"), log_y)
  assert path.stat().st_size > 10_000
