"""The table that a comparison ends with says what its figures are."""

from train.reporting import report
from train.tasks.task import Score

SCORE = Score("test_error", "test error")


def record(method, link, last):
  sizes = {"sent_bytes": link, "link_bytes": link, "link_bytes_a_step": last}
  return {"method": method, "seed": 0, "test_error": 0.5, **sizes}


def test_compression_is_that_of_the_run_and_of_its_last_step():
  head, _, *rows = report.table([record("none", 800, 80), record("rtopk", 200, 8)], SCORE).split(
    "\n"
  )
  assert head.endswith("| compression (last step) |")
  assert rows[0].endswith("| 1.0 (1.0) |")
  assert rows[1].endswith("| 4.0 (10.0) |")


def test_without_a_baseline_there_is_no_compression():
  assert report.table([record("rtopk", 200, 8)], SCORE).endswith("| no baseline |\n")
  assert report.table([record("rtopk", 0, 0)], SCORE).endswith("| nothing sent |\n")
