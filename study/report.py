"""Writes the tables and pictures of docs/reproduction.md from the logs that lie beside it.

    python -m study.report

What stands between "<!-- name -->" and "<!-- end -->" is replaced; the rest of the page is written by hand.
"""

import pathlib
import re
from collections.abc import Callable

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


def fill(page: str, results: All, tables: dict[str, Callable[[All], str]]) -> str:
  """The page with its tables made anew.

  Args:
    page: Markdown with marked places.
    results: of all stages.
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
  from study import pictures

  results = load()
  PAGE.write_text(fill(PAGE.read_text(), results, report_tables.TABLES))
  for name in pictures.draw(results, FOLDER):
    print(f"{FOLDER / name}")
  print(f"{PAGE}")


if __name__ == "__main__":
  main()
