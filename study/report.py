"""Writes the tables and pictures of docs/reproduction.md and docs/low_communication.md from the logs beside them.

    python -m study.report

What stands between "<!-- name -->" and "<!-- end -->" is replaced; the rest of the page is written by hand.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any

from study import report_tables
from study.log import FOLDER, open_all
from study.plan import STAGES
from study.results import Results

PAGE = FOLDER.parent / "reproduction.md"
All = dict[str, Results]


def load(folder: pathlib.Path = FOLDER) -> All:
  """Every stage with its log, by name."""
  logs = open_all((stage.name for stage in STAGES), folder)
  return {stage.name: Results(stage, logs[stage.name]) for stage in STAGES}


def fill(page: str, results: Any, tables: dict[str, Callable[[Any], str]]) -> str:
  """The page with its tables made anew.

  Args:
    page: Markdown with marked places.
    results: what tables are made of.
    tables: what goes where, by the names of the places.

  Returns:
    The page.

  Raises:
    ValueError: for a place that there is no table for.
  """

  def replace(match: re.Match[str]) -> str:
    name = match.group(1)
    if name not in tables:
      raise ValueError(f"{name!r} is not a table; there are {', '.join(tables)}.")
    return f"<!-- {name} -->\n\n{tables[name](results)}\n\n<!-- end -->"

  return re.sub(r"<!-- ([a-z_0-9]+) -->\n.*?<!-- end -->", replace, page, flags=re.DOTALL)


def main() -> None:
  """Writes them."""
  from study import low_communication, low_communication_report, pictures

  results = load()
  PAGE.write_text(fill(PAGE.read_text(), results, report_tables.TABLES))
  for name in pictures.draw(results, FOLDER):
    print(f"{FOLDER / name}")
  print(f"{PAGE}")
  page = low_communication_report.PAGE
  found = low_communication_report.Found(low_communication.read())
  page.write_text(fill(page.read_text(), found, low_communication_report.TABLES))
  drawn = low_communication.FOLDER / low_communication_report.PICTURE
  low_communication_report.picture(found).savefig(drawn, dpi=80)
  print(f"{drawn}\n{page}")


if __name__ == "__main__":
  main()
