"""How long until a loss is reached on slow links: ``python -m benchmarks.time_to_loss --data_dir=DATA``.

Real processes of ``train``, one a host, on hosts with rate-limited links (root and iproute2 are needed), train a transformer
on the words of the Penn Treebank (``python -m data.prepare ptb``) until they have reached the validation loss with which the
dense run ends. Time is that of training: compilation and evaluations are not counted.

What is computed does not depend on the link. A run that would take longer than ``--minutes`` is therefore timed for some of
its batches, and its losses are those of another rate; the table says so. ``--json`` keeps every run that has ended, and a
second start goes on from there. The planner's prediction stands beside each time.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

import rtopk_jax
from benchmarks import hosts as slow_hosts
from benchmarks import loss_task, picture, timing

RATES = (1e9, 1e8, 1e7)
WORKERS = 4
_PICTURED = 1e8
# Batches of a run that is not taken to its end.
SAMPLE = 24
_BATCH, _LOCAL, _PREDICTED = "batch_seconds", "local", "predicted"
_TIMEOUT = 7200


@dataclasses.dataclass(frozen=True)
class Course:
  """What a run came to.

  Attributes:
    batches: of a worker, at every evaluation.
    losses: found there.
    seconds: of training, until there.
    whole: whether it was taken to its end; otherwise seconds are those of a batch, times the batches.
  """

  batches: list[int]
  losses: list[float]
  seconds: list[float]
  whole: bool

  def until(self, loss: float, axis: list[float]) -> float:
    """Where on an axis a loss is reached, between two evaluations in proportion; NaN where it is not."""
    below = [i for i, x in enumerate(self.losses) if x <= loss]
    if not below:
      return float("nan")
    i = below[0]
    if i == 0:
      return axis[0]
    share = (self.losses[i - 1] - loss) / (self.losses[i - 1] - self.losses[i])
    return axis[i - 1] + share * (axis[i] - axis[i - 1])


def rate_name(rate: float) -> str:
  """A rate as the planner reads it."""
  return f"{rate / 1e6:g}Mbit/s" if rate < 1e9 else f"{rate / 1e9:g}Gbit/s"


class Trainings:
  """Runs of ``train`` on hosts.

  Args:
    hosts: one a worker.
    data_dir: of the Penn Treebank.
  """

  def __init__(self, hosts: slow_hosts.Hosts, data_dir: str):
    self._hosts, self._data_dir, self._port = hosts, data_dir, 9400

  def run(self, row: str, folder: pathlib.Path, batches: int | None = None, *changes: str) -> None:
    """Trains.

    Args:
      row: of ``loss_task.ROWS``.
      folder: where metrics go.
      batches: after which it ends; None: the row's.
      *changes: of the config, as on the command line.
    """
    self._port += 4
    common = [
      f"--config={loss_task.__file__}:{row}",
      f"--config.data_dir={self._data_dir}",
      f"--workdir={folder}",
      f"--coordinator={self._hosts.addresses[0]}:{self._port}",
      f"--processes={WORKERS}",
      *(
        [] if batches is None else [f"--config.max_batches={batches}", "--config.eval_at_end=false"]
      ),
      *changes,
    ]
    train = [sys.executable, "-m", "train.main", *common]
    self._wait([[*train, f"--process={i}"] for i in range(WORKERS)])

  def local(self, size: int) -> dict[str, float]:
    """How fast a worker compresses while all others do: ``LocalSpeed``, medians over the hosts."""
    program = (
      "import dataclasses, json, rtopk_jax; "
      f"print(json.dumps(dataclasses.asdict(rtopk_jax.measure_local({size}, 0.01))))"
    )
    commands = [[sys.executable, "-c", program]] * WORKERS
    found = [json.loads(text.splitlines()[-1]) for text in self._wait(commands)]
    return {name: float(np.median([x[name] for x in found])) for name in found[0]}

  def _wait(self, commands: list[list[str]]) -> list[str]:
    """What commands print, one on each host; all of them are ended when one fails."""
    processes = []
    try:
      for host, command in enumerate(commands):
        # Who looks for a process by its host's name finds its address.
        named = ["sh", "-c", f'hostname {self._hosts.addresses[host]} && exec "$@"', "sh", *command]
        processes.append(
          self._hosts.start(
            host,
            named,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=slow_hosts.environment(),
          )
        )
      printed = [process.communicate(timeout=_TIMEOUT) for process in processes]
    finally:
      for process in processes:
        process.kill()
    for process, (_, errors) in zip(processes, printed, strict=True):
      if process.returncode:
        raise RuntimeError(f"A worker ended with {process.returncode}: {errors.strip()[-2000:]}")
    return [out for out, _ in printed]


def batch_seconds(folder: pathlib.Path) -> float:
  """Seconds of a worker's batch by the lines that a run wrote on its way, without the first, which compiles."""
  (path,) = folder.glob("runs/*/steps.jsonl")
  config = json.loads((folder / "config.json").read_text())
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  return float(np.median([1 / x["steps_per_second"] for x in lines[1:]])) / (
    config["local_steps"] or 1
  )


def course(folder: pathlib.Path) -> Course:
  """The course of a run that was taken to its end; its first interval, which compiles, counts as the others' median."""
  config = json.loads((folder / "config.json").read_text())
  every = config["local_steps"] or 1
  records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  steps = np.array([x["step"] for x in records])
  pace = np.array([1 / x["steps_per_second"] for x in records])
  pace[0] = np.median(pace[1:])
  seconds = np.cumsum(np.diff(steps, prepend=0) * pace)
  losses = [round(x["valid_loss"], 4) for x in records]
  return Course((every * steps).tolist(), losses, seconds.round(3).tolist(), True)


def measure(
  found: dict[str, Any], data_dir: str, rates: list[float], minutes: float, save: Any
) -> None:
  """Runs what is not in the result yet.

  Args:
    found: the result, to which runs are added.
    data_dir: of the Penn Treebank.
    rates: of links, bits a second.
    minutes: a run that would take longer is timed for some batches.
    save: is called after every run.
  """
  with slow_hosts.hosts(WORKERS) as hosts, tempfile.TemporaryDirectory() as scratch:
    trainings, folder = Trainings(hosts, data_dir), pathlib.Path(scratch) / "run"
    if _BATCH not in found:
      # Workers who exchange hardly ever, on links without a limit.
      few = [f"--config.local_steps={2 * SAMPLE}", "--config.log_every=1"]
      trainings.run("DiLoCo", folder, 8 * SAMPLE, *few)
      found[_BATCH] = batch_seconds(folder)
      last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
      found["parameters"] = last["parameters"]
      found[_LOCAL] = trainings.local(found["parameters"])
      shutil.rmtree(folder)
      save()
    # The fastest link first: what a run computes is known by then.
    for rate in sorted(rates, reverse=True):
      hosts.limit(rate)
      runs = found.setdefault(rate_name(rate), {})
      for row in loss_task.ROWS:
        if row in runs:
          continue
        whole = predicted(found, row, rate_name(rate), data_dir) <= 60 * minutes
        every = loss_task.get_config(row).local_steps or 1
        trainings.run(row, folder, None if whole else SAMPLE * every)
        made = course(folder) if whole else _sampled(found, row, batch_seconds(folder))
        runs[row] = dataclasses.asdict(made)
        print(f"{rate_name(rate)} {row}: {made.seconds[-1]:.0f} s", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
        save()


def _sampled(found: dict[str, Any], row: str, seconds: float) -> Course:
  """The course of a run whose batches took so long: what it computes is known from another link."""
  whole = [runs[row] for runs in _rates(found).values() if row in runs and runs[row]["whole"]]
  if not whole:
    raise SystemExit(f"{row} was not taken to its end at any rate; --minutes must be higher.")
  times = [round(seconds * count, 3) for count in whole[0]["batches"]]
  return Course(whole[0]["batches"], whole[0]["losses"], times, False)


def _rates(found: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
  return {name: runs for name, runs in found.items() if name.endswith("bit/s")}


def predicted(found: dict[str, Any], row: str, bandwidth: str, data_dir: str) -> float:
  """Seconds of a row's whole run, as the planner says."""
  from train.planning import forecast

  experiment = _experiment(row, data_dir)
  local = rtopk_jax.LocalSpeed(**found[_LOCAL])
  method = experiment.config.methods[0]
  return forecast.training(experiment, method, bandwidth, found[_BATCH], local)


@functools.cache
def _experiment(row: str, data_dir: str) -> Any:
  """What a row comes to: the same on every link, and seconds to find."""
  from train.planning.experiment import make_experiment

  config = loss_task.get_config(row)
  config.data_dir = data_dir
  return make_experiment(config)


def table(found: dict[str, Any]) -> str:
  """Seconds until the dense run's last loss, in brackets those predicted, and how many times sooner than the dense run.

  Args:
    found: the result.

  Returns:
    A Markdown table, a row for each way to exchange. A star marks runs that were timed in part.
  """
  rates = _rates(found)
  heads = ["", "batches"]
  for rate in rates:
    heads += [f"{rate}: s (predicted)", "dense / this"]
  lines = []
  for row in loss_task.ROWS:
    cells = []
    for rate, runs in rates.items():
      dense, made = Course(**runs["dense"]), Course(**runs[row])
      target = dense.losses[-1]
      batches = made.until(target, [float(x) for x in made.batches])
      seconds = made.until(target, made.seconds)
      foreseen = found[_PREDICTED][rate][row] * batches / made.batches[-1]
      cells = cells or [row, "not reached" if np.isnan(batches) else f"{batches:.0f}"]
      if np.isnan(batches):
        cells += ["–"] * 2
        continue
      star = "" if made.whole else "\\*"
      cells += [f"{seconds:.0f}{star} ({foreseen:.0f})", f"{dense.seconds[-1] / seconds:.1f}"]
    lines.append(cells)
  return timing.markdown(heads, lines)


def main() -> None:
  """Prints the table and draws the picture."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data_dir", help="where the Penn Treebank was prepared")
  parser.add_argument("--rate", type=float, action="append", help="bits a second; may repeat")
  parser.add_argument("--minutes", type=float, default=30, help="longer runs are timed in part")
  parser.add_argument("--json", default="time_to_loss.json", help="what has been measured")
  parser.add_argument("--picture", help="a PNG of the loss over time, at 100 Mbit/s")
  options = parser.parse_args()
  lacks = slow_hosts.missing()
  if lacks:
    parser.error(f"hosts with slow links need {', '.join(lacks)}.")
  path = pathlib.Path(options.json)
  found = json.loads(path.read_text()) if path.exists() else {}
  save = lambda: timing.save(options.json, found)
  measure(found, options.data_dir, options.rate or list(RATES), options.minutes, save)
  found[_PREDICTED] = {
    rate: {row: round(predicted(found, row, rate, options.data_dir), 2) for row in runs}
    for rate, runs in _rates(found).items()
  }
  save()
  print(table(found))
  runs = found.get(rate_name(_PICTURED), {})
  curves = {
    row: (runs[row]["seconds"], runs[row]["losses"]) for row in loss_task.ROWS if row in runs
  }
  where = f"seconds of training, four workers on links of {rate_name(_PICTURED)}"
  picture.curves(options.picture, curves, (where, "validation loss"))


if __name__ == "__main__":
  main()
