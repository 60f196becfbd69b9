"""The committed page is what the committed logs say."""

import pytest

from study import report, report_tables
from study.plan import STAGES


def test_the_committed_logs_give_the_committed_tables():
  page = report.PAGE.read_text()
  assert report.fill(page, report.load(), report_tables.TABLES) == page


def test_every_run_of_a_log_belongs_to_the_plan():
  for name, results in report.load().items():
    settings = {cell.setting.text for cell in results.stage.cells}
    assert {text for text, _, _ in results.log.runs} <= settings, name


def test_stages_have_a_baseline_for_every_cell():
  for stage in STAGES:
    settings = [cell.setting for cell in stage.cells]
    assert len(set(settings)) == len(settings)
    # What is compared with the same method needs no run without compression.
    for setting in (cell.setting for cell in stage.cells if cell.shared):
      assert settings.index(setting.baseline) <= settings.index(setting)


def test_places_are_filled_and_unknown_ones_refused():
  page = "a\n<!-- one -->\nold\n<!-- end -->\nb\n"
  filled = report.fill(page, {}, {"one": lambda _: "new"})
  assert filled == "a\n<!-- one -->\n\nnew\n\n<!-- end -->\nb\n"
  assert report.fill(filled, {}, {"one": lambda _: "new"}) == filled
  with pytest.raises(ValueError, match="'one' is not a table; there are two"):
    report.fill(page, {}, {"two": str})
