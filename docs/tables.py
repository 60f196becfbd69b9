"""Fills in the tables of the documentation that code knows: `python -m docs.tables` rewrites the pages.

What stands between "<!-- name -->" and "<!-- end -->" is replaced. A test compares pages and code.
"""

import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

import rtopk_jax
from configs.fields import FIELDS
from configs.schema import Field

FOLDER = pathlib.Path(__file__).parent
SIZES = (1e6, 25.6e6, 350e6)
WORKERS = (4, 16, 64)
BANDWIDTHS = ("100 Mbit/s", "1 Gbit/s", "10 Gbit/s", "100 Gbit/s")
# Bytes a second of a data centre's GPU.
GPU_MEMORY = 2e12
# Defaults that the environment sets.
VARIABLES = {"data_dir": "$RTOPK_JAX_DATA"}


def fields() -> str:
  """Every field of a config: its name, default, meaning and range."""
  rows = [
    (f"`{name}`", f"`{_default(name, field)}`", _cell(field.says), _cell(field.wanted))
    for name, field in FIELDS.items()
  ]
  return _table(("field", "default", "meaning", "must be"), rows)


def _default(name: str, field: Field) -> str:
  if name in VARIABLES:
    return VARIABLES[name]
  return repr(field.default) if field.default == "" else str(field.default)


def choices_of_cpus() -> str:
  """What the planner advises for workers of two CPU cores each."""
  return _choices(None)


def choices_of_gpus() -> str:
  """What the planner advises for workers with a GPU each."""
  return _choices(rtopk_jax.LocalSpeed.of_memory(GPU_MEMORY))


def _choices(local: rtopk_jax.LocalSpeed | None) -> str:
  rows = [
    (
      f"{size / 1e6:g} million",
      str(workers),
      *(_choice(size, workers, b, local) for b in BANDWIDTHS),
    )
    for size in SIZES
    for workers in WORKERS
  ]
  return _table(("parameters", "workers", *BANDWIDTHS), rows)


def _choice(size: float, workers: int, bandwidth: str, local: rtopk_jax.LocalSpeed | None) -> str:
  advice = rtopk_jax.advise(size, workers, bandwidth, local=local)
  if not advice.compress:
    return "dense"
  faster = advice.dense.seconds / advice.choice.seconds
  digits = 1 if faster < 10 else 0
  return f"`{advice.choice.collective}` {100 * advice.choice.density:g}\N{NO-BREAK SPACE}%, {faster:.{digits}f}×"


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, dict[str, Callable[[], str]]] = {
  "config.md": {"fields": fields},
  "choosing.md": {"choices_of_cpus": choices_of_cpus, "choices_of_gpus": choices_of_gpus},
}


def fill(text: str, tables: dict[str, Callable[[], str]]) -> str:
  """A page with its tables as code has them.

  Args:
    text: of the page.
    tables: by the names that the page has for them.

  Returns:
    The page.

  Raises:
    KeyError: for a place that no table belongs to.
  """
  replace = lambda match: f"<!-- {match[1]} -->\n\n{tables[match[1]]()}\n\n<!-- end -->"
  return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> None:
  """Rewrites the pages."""
  for name, tables in TABLES.items():
    page = FOLDER / name
    page.write_text(fill(page.read_text(), tables))


if __name__ == "__main__":
  main()
