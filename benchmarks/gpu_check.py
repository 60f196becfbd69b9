"""All there is to ask of a GPU, in at most 8 minutes: ``make gpu-check``, or ``python -m benchmarks.gpu_check``.

Whether every operation, selection and exchange is right on it; how long a selection, a worker's own share of a step
and a whole training step take beside their rivals; and which kernels take the time. ``report.json`` and ``report.md``
in ``--workdir`` say what was found, and which goals are reached.

Every part runs in a process of its own and has a share of the minutes. One that fails or is stopped is reported with
what it had measured, and the others go on. The exit code is 0 when all parts ran and all results were right, whatever
goals are missed; 1 when not; 2 without a GPU.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LEAST_SECONDS, _CPU = 5.0, "cpu"
_MISTAKE = 2


class Part(NamedTuple):
  """A part of the check.

  Attributes:
    title: what it is about.
    weight: its share of the time, relative to those of others. What one leaves over goes to those after it.
  """

  title: str
  weight: float


# In this order; ``benchmarks.gpu_parts`` has a function of each name.
PARTS = {
  "machine": Part("The machine", 0.5),
  "operations": Part("Operations of `rtopk_jax.kernels`, beside a CPU's", 1),
  "selections": Part("Selections, beside NumPy's", 1.5),
  "exchanges": Part("Whole exchanges, beside NumPy's", 2),
  "selection": Part("How long does selecting take?", 2.5),
  "step": Part("How long is a worker's own share of a step?", 2),
  "training": Part("How long is a training step?", 3),
  "profile": Part("Which kernels take the time of a training step?", 2),
}


class Goal(NamedTuple):
  """What ought to be reached; minima are compared.

  Attributes:
    text: what is measured.
    most: the figure that it may reach.
  """

  text: str
  most: float


GOALS = {
  "selection": Goal("the longest selection, in reads of its vector", 3),
  "beside torch": Goal("the shortest selection, in times of PyTorch's inexact threshold", 2),
  "step": Goal("a worker's own share of a step, in times of `optax.sgd`", 2),
  "training": Goal(
    "a training step of simulated workers, in times of plain data parallelism", 1.25
  ),
}


class Options(NamedTuple):
  """What parts are told.

  Attributes:
    sizes: entries of vectors, ascending.
    quick: small vectors and networks, and few rounds, to try the check itself.
  """

  sizes: tuple[int, ...]
  quick: bool

  @property
  def rounds(self) -> int:
    """How often everything is timed."""
    return 2 if self.quick else 15


def main() -> int:
  """Runs the parts, and returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--minutes", type=float, default=8, help="for everything together")
  parser.add_argument(
    "--size",
    type=lambda text: int(float(text)),
    action="append",
    help="d of vectors; default: 25.6e6 and 100e6",
  )
  parser.add_argument("--quick", action="store_true", help="small vectors, networks and few rounds")
  parser.add_argument("--allow_cpu", action="store_true", help="go on where there is no GPU")
  parser.add_argument("--only", choices=PARTS, action="append", help="parts, beside the machine")
  parser.add_argument("--workdir", default="runs/gpu_check", help="for report.json and report.md")
  # What the command calls itself with.
  parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
  parser.add_argument("--records", help=argparse.SUPPRESS)
  told = parser.parse_args()
  sizes = told.size or ([65_536, 131_072] if told.quick else [25_600_000, 100_000_000])
  if min(sizes) < 1000 or told.minutes <= 0:
    parser.error(
      f"--size must be 1,000 or more and --minutes above 0, got {sizes}, {told.minutes}."
    )
  options = Options(tuple(sorted(sizes)), told.quick)
  if told.part:
    return _run_here(told.part, options, told.records)
  folder = pathlib.Path(told.workdir)
  folder.mkdir(parents=True, exist_ok=True)
  end, found = time.monotonic() + 60 * told.minutes, {}
  names = [
    "machine",
    *(name for name in PARTS if name in (told.only or PARTS) and name != "machine"),
  ]
  for i, name in enumerate(names):
    share = PARTS[name].weight / sum(PARTS[x].weight for x in names[i:])
    limit = max(_LEAST_SECONDS, share * (end - time.monotonic()))
    print(f"{PARTS[name].title} (at most {limit:.0f} s)", flush=True)
    found[name] = _in_a_process(name, options, limit)
    print(f"  {_outcome(found[name])}", flush=True)
    if name == "machine" and _platform(found[name]) == _CPU and not told.allow_cpu:
      print("No GPU was found: JAX computes on a CPU. --allow_cpu goes on all the same.")
      return _MISTAKE
    _write(folder, options, found)
  missed = [f"{x['text']}: {x['case']}" for x in goals(found) if x["passed"] is False]
  print(*(f"MISSED {text}" for text in missed), sep="\n")
  print(folder / "report.md")
  return int(not all(is_right(part) for part in found.values()))


def _run_here(name: str, options: Options, records: str) -> int:
  """Runs a part in this process, and appends what it finds to a file, a line each."""
  from benchmarks import gpu_parts

  with open(records, "a") as file:

    def emit(**record):
      file.write(json.dumps(record) + "\n")
      file.flush()

    getattr(gpu_parts, name)(options, emit)
  return 0


def _in_a_process(name: str, options: Options, limit: float) -> dict[str, Any]:
  """Runs a part, and stops it after so many seconds.

  Returns:
    "seconds"; "error", a line or None; and "records", what it found, until then if it failed.
  """
  command = [sys.executable, "-m", "benchmarks.gpu_check", f"--part={name}"]
  command += [f"--size={size}" for size in options.sizes] + ["--quick"] * options.quick
  start, error = time.monotonic(), None
  with tempfile.TemporaryDirectory() as folder:
    records, log = pathlib.Path(folder, "records"), pathlib.Path(folder, "log")
    records.touch()
    with log.open("wb") as output:
      process = subprocess.Popen(
        [*command, f"--records={records}"],
        cwd=_ROOT,
        env=_environment(),
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
      try:
        code = process.wait(limit)
      except subprocess.TimeoutExpired:
        error = f"stopped after {limit:.0f} s"
      except BaseException:
        _kill(process)
        raise
      else:
        lines = log.read_text(errors="replace").strip().splitlines() or ["nothing was said"]
        error = f"exit code {code}: {lines[-1]}" if code else None
      _kill(process)
    # A line that was being written counts for nothing.
    lines = records.read_text().split("\n")[:-1]
  seconds = time.monotonic() - start
  return {"seconds": seconds, "error": error, "records": [json.loads(line) for line in lines]}


def _kill(process: subprocess.Popen) -> None:
  """Ends a part, and what it has started."""
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
  """That of parts: a CPU is there to compare with, and PyTorch has memory beside JAX."""
  environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  platforms = environment.get("JAX_PLATFORMS", "")
  if platforms and _CPU not in platforms.split(","):
    environment["JAX_PLATFORMS"] = f"{platforms},{_CPU}"
  return environment


def _platform(part: dict[str, Any]) -> str | None:
  return next((x["facts"]["platform"] for x in part["records"] if "facts" in x), None)


def is_right(part: dict[str, Any]) -> bool:
  """Whether a part ran to its end, and what it checked was right."""
  return part["error"] is None and not any(x.get("wrong") for x in part["records"])


def _outcome(part: dict[str, Any]) -> str:
  """A line about a part."""
  checks = [x for x in part["records"] if "check" in x]
  wrong = sum(bool(x["wrong"]) for x in checks)
  said = [f"FAILED, {part['error']}"] if part["error"] else []
  said += [f"{wrong} of {len(checks)} WRONG" if wrong else f"{len(checks)} right"] * bool(checks)
  return "; ".join(said or ["done"]) + f"; {part['seconds']:.0f} s"


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
  """All goals, each with what was measured of it, if it was.

  Args:
    found: by part, its records.

  Returns:
    "text", "case", "most", "measured" and "passed" of each; the last two None for what was not measured.
  """
  result = []
  measured = [x for part in found.values() for x in part["records"] if "goal" in x]
  for name, goal in GOALS.items():
    cases = [x for x in measured if x["goal"] == name] or [{"case": "", "measured": None}]
    for x in cases:
      value = x["measured"]
      passed = None if value is None else value <= goal.most
      row = {"text": goal.text, "case": x["case"], "most": goal.most}
      result.append({**row, "measured": value, "passed": passed})
  return result


def _write(folder: pathlib.Path, options: Options, found: dict[str, Any]) -> None:
  """Writes both reports, as far as they go."""
  result = {"options": options._asdict(), "goals": goals(found), "parts": found}
  (folder / "report.json").write_text(json.dumps(result, indent=2) + "\n")
  (folder / "report.md").write_text(markdown(found))


def markdown(found: dict[str, Any]) -> str:
  """The report.

  Args:
    found: by part, what came of it.

  Returns:
    A page of Markdown.
  """
  lines = ["# A GPU, checked", "", "| goal | of | at most | measured | |", "|---|---|---|---|---|"]
  for goal in goals(found):
    value = "" if goal["measured"] is None else f"{goal['measured']:.2f}"
    verdict = {True: "pass", False: "**fail**", None: "not measured"}[goal["passed"]]
    lines.append(f"| {goal['text']} | {goal['case']} | {goal['most']:g} | {value} | {verdict} |")
  for name, part in found.items():
    lines += ["", f"## {PARTS[name].title}", "", _outcome(part)]
    for record in part["records"]:
      lines += _section(record)
  return "\n".join(lines) + "\n"


def _section(record: dict[str, Any]) -> list[str]:
  """What the report says of a record: facts, a table, or a check that went wrong."""
  if "facts" in record:
    return ["", *(f"- {name}: {value}" for name, value in record["facts"].items())]
  if "table" in record:
    return ["", f"{record['title']}:", "", record["table"]]
  if record.get("wrong"):
    return ["", f"- **{record['check']}**: {' '.join(record['wrong'].split())}"]
  return []


if __name__ == "__main__":
  sys.exit(main())
