"""Runs what is missing of the study, one run after another, and appends each to its stage's log.

    RTOPK_JAX_DATA=… RTOPK_JAX_PTB=… python -m study.run --minutes=60
    python -m study.run --stage=factors --dry_run

It may be stopped and started again at any time. With one seed, one machine and one version of JAX, a run
gives the same figures again; on another machine their last digits may differ.
"""

import argparse
import itertools
import os
import time

from study import search
from study.log import Log, open_all
from study.plan import STAGES, Stage
from study.settings import Setting


def late(setting: Setting) -> bool:
  """What is run after everything else: random-k, which decides little, and images at 99.9 %."""
  return setting.method == "randomk" or (setting.task, setting.compression) == ("cifar", "0.999")


def pending(
  stage: Stage, log: Log, last: bool
) -> tuple[search.Cell, list[tuple[float, int]]] | None:
  """The first cell of a stage that is not done, and its next runs; None when all are done.

  Args:
    stage: the stage.
    log: its runs.
    last: whether the late cells are meant, or the others.
  """
  for cell in stage.cells:
    if late(cell.setting) != last:
      continue
    baseline = stage.cell(cell.setting.baseline)
    shared = search.own_rate(log, baseline) if baseline else None
    runs = search.missing(log, cell, shared)
    if runs:
      return cell, runs
  return None


def main() -> None:
  """Runs."""
  parser = argparse.ArgumentParser(prog="python -m study.run")
  names = [stage.name for stage in STAGES]
  parser.add_argument("--stage", action="append", choices=names, help="only this one; may repeat")
  parser.add_argument("--minutes", type=float, default=float("inf"), help="then it stops")
  parser.add_argument("--dry_run", action="store_true", help="say what is next, and run nothing")
  options = parser.parse_args()
  # One thread: sums in one order, and the machine stays usable. It counts before JAX starts.
  os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from study import training

  end = time.monotonic() + 60 * options.minutes
  logs = open_all(names)
  for last, stage in itertools.product((False, True), STAGES):
    if options.stage and stage.name not in options.stage:
      continue
    log = logs[stage.name]
    while (todo := pending(stage, log, last)) is not None:
      cell, runs = todo
      if options.dry_run:
        print(f"{stage.name}: {cell.setting.text}: {runs}")
        break
      for rate, seed in runs:
        if time.monotonic() > end:
          return
        record = training.run(cell.setting, rate, seed)
        log.append(cell.setting, rate, seed, record)
        print(
          f"{stage.name} {cell.setting.text} rate={rate:g} seed={seed} "
          f"valid={record['valid']} test={record['test']} {record['seconds']} s",
          flush=True,
        )


if __name__ == "__main__":
  main()
