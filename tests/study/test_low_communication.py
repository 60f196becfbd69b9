"""The study of presets: its rows are configs that can run, its log survives a kill, its page is what the log says."""

import json

import numpy as np
import pytest

from study import low_communication as study
from study import low_communication_report as pages
from study import report
from study.low_communication import Row
from train.planning import settings

TEXT = study.TEXTS[0]


def _record(row, seed, loss, sent=1000):
  return {
    "text": TEXT.name,
    "preset": row.preset,
    "steps": row.steps,
    "method": row.method,
    "memory": row.memory,
    "seed": seed,
    "valid_loss": loss,
    "sent_bytes": sent,
  }


def test_every_row_is_a_config_of_as_many_batches():
  assert len(set(study.ROWS)) == len(study.ROWS)
  for text in study.TEXTS:
    for row in study.ROWS:
      config = study.config_of(text, row)
      settings.check(config)
      assert text.batches % row.steps == 0
      assert (config.local_steps or 1) == row.steps or row.steps == 1
      assert config.error_feedback == row.memory
      assert config.seeds == study.SEEDS


def test_a_line_that_a_kill_cut_short_is_run_again(tmp_path):
  path = tmp_path / "deep" / "runs.jsonl"
  row = Row("dense", 1)
  study._append(path, [_record(row, 0, 2.0)])
  with path.open("a") as file:
    file.write('{"text": "tiny_sh')
  assert [study.key(x) for x in study.read(path)] == [(TEXT.name, row, 0)]
  study._append(path, [_record(row, 1, 2.5)])
  assert [study.key(x)[2] for x in study.read(path)] == [0, 1]
  assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_subset_is_judged_by_paired_seeds():
  top, random = Row("sparseloco", 30, "topk"), Row("sparseloco", 30, "rtopk")
  losses = {top: (2.0, 2.3, 2.1), random: (2.1, 2.41, 2.19)}
  records = [_record(row, i, x) for row, own in losses.items() for i, x in enumerate(own)]
  found = pages.Found(records)
  # 0.1, 0.11 and 0.09, with a deviation of 0.01: 0.1 ± 4.303 · 0.01 / √3.
  assert "| +0.100 (+0.075 to +0.125) | **hurts** |" in pages.subsets(found)
  assert pages.subsets(pages.Found(records[:-1])).count("\n") == 1
  half = pages._interval(np.array([0.1, -0.1, 0.0]))
  assert half[0] < 0 < half[1]
  assert "| sparseloco | 30 | top-k | 1 kB | 2.133 ± 0.153 | – |" in pages.losses(found)


def test_the_committed_log_gives_the_committed_tables():
  page = pages.PAGE.read_text()
  assert report.fill(page, pages.Found(study.read()), pages.TABLES) == page
  rows = {(text.name, row) for text in study.TEXTS for row in study.ROWS}
  assert {study.key(record)[:2] for record in study.read()} <= rows


def test_the_picture_has_a_panel_for_each_text_that_is_run():
  pytest.importorskip("matplotlib")
  records = [_record(row, seed, 2.0 + seed, 10**6) for row in study.ROWS for seed in study.SEEDS]
  assert len(pages.picture(pages.Found(records)).axes) == 1
