"""Draws every figure of docs/estimation.md: ``python -m study.estimation_figures --out=DIR``.

Each is seeded and a few seconds to a minute of work. What a figure finds is printed beside its name.
"""

import argparse
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from study import estimation_practice, estimation_scheme

# A function of a matplotlib figure that draws on it and says in words what it found.
Draw = Callable[[Any], str]

FIGURES: dict[str, Draw] = {
  "unbiased": estimation_scheme.unbiased,
  "risk_n": estimation_scheme.risk_n,
  "risk_k": estimation_scheme.risk_k,
  "risk_s": estimation_scheme.risk_s,
  "knee": estimation_scheme.knee,
  "competitors": estimation_scheme.competitors,
  "gaussian": estimation_scheme.gaussian,
  "orlicz": estimation_scheme.orlicz,
  "contraction": estimation_practice.contraction,
  "memory_sgd": estimation_practice.memory_sgd,
  "gradient_fit": estimation_practice.gradient_fit,
  "subsample": estimation_practice.subsample,
}


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the command line and draws.

  Args:
    argv: arguments; None takes the command line's.

  Raises:
    SystemExit: for arguments that are not understood, and without matplotlib.
  """
  parser = argparse.ArgumentParser(prog="python -m study.estimation_figures", description=__doc__)
  parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the PNG files")
  parser.add_argument(
    "--only", nargs="+", choices=FIGURES, default=list(FIGURES), help="some of the figures"
  )
  arguments = parser.parse_args(argv)
  try:
    from matplotlib.figure import Figure
  except ModuleNotFoundError:
    parser.exit(1, "The figures need matplotlib: pip install matplotlib\n")
  arguments.out.mkdir(parents=True, exist_ok=True)
  for name in arguments.only:
    start = time.perf_counter()
    figure = Figure(layout="constrained", dpi=90)
    try:
      found = FIGURES[name](figure)
    except ModuleNotFoundError as missing:
      print(f"{name}: skipped, {missing}. The networks' data: pip install scikit-learn")
      continue
    figure.savefig(arguments.out / f"{name}.png")
    print(f"{name}.png ({time.perf_counter() - start:.0f} s): {found}", flush=True)


if __name__ == "__main__":
  main()
