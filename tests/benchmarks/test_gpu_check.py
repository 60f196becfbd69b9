"""The check of a GPU, where there is none: its reports, and that parts fail by themselves."""

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import gpu_check, gpu_parts, kernels, parity

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(folder, *options):
  """Its exit code and output, on a CPU."""
  line = [sys.executable, "-m", "benchmarks.gpu_check", "--quick", f"--workdir={folder}", *options]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  run = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
  return run.returncode, run.stdout + run.stderr


def test_without_a_gpu_it_says_so_and_goes_on_where_it_may(tmp_path):
  code, output = command(tmp_path, "--only=selection", "--minutes=60")
  assert (code, output.splitlines()[-1].split(":")[0]) == (2, "No GPU was found")
  code, output = command(tmp_path, "--only=selection", "--size=2000", "--allow_cpu", "--minutes=60")
  assert code == 0, output
  report = json.loads((tmp_path / "report.json").read_text())
  assert list(report["parts"]) == ["machine", "selection"]
  (goal,) = (x for x in report["goals"] if x["case"] == "d = 2,000, 0.1 %" and x["most"] == 3)
  assert goal["passed"] == (goal["measured"] <= 3)
  page = (tmp_path / "report.md").read_text()
  assert f"| {goal['measured']:.2f} | {'pass' if goal['passed'] else '**fail**'} |" in page
  assert "| not measured |" in page
  assert "| rtopk_jax |" in page


def test_a_part_fails_or_is_stopped_by_itself():
  options = gpu_check.Options((1000,), quick=True)
  failed = gpu_check._in_a_process("nothing", options, 60)
  assert failed["error"].startswith("exit code 2: ")
  stopped = gpu_check._in_a_process("machine", options, 0.01)
  assert stopped["error"] == "stopped after 0 s"
  page = gpu_check.markdown({"machine": failed, "step": stopped})
  assert page.count("FAILED, ") == 2
  assert not any(map(gpu_check.is_right, (failed, stopped)))


def fail():
  raise ValueError("2 is not 3")


def test_what_is_wrong_is_told():
  records = []
  checks = [parity.Check("good", lambda: None), parity.Check("bad", fail)]
  gpu_parts._check(checks, lambda **record: records.append(record))
  part = {"seconds": 1.0, "error": None, "records": records}
  assert [x["wrong"] for x in records] == [None, "ValueError: 2 is not 3"]
  assert not gpu_check.is_right(part)
  page = gpu_check.markdown({"operations": part})
  assert "1 of 2 WRONG; 1 s" in page
  assert "- **bad**: ValueError: 2 is not 3" in page


def test_every_operation_has_a_check_that_compares_it():
  assert parity.unchecked() == []
  checks = {check.name: check.run for check in parity.operations("gpu", 4096)}
  for name in ("once", "take", "add_part"):
    checks[name]()


def plane(name, **lines):
  event = lambda name, ns, *stats: SimpleNamespace(name=name, duration_ns=ns, stats=stats)
  made = [
    SimpleNamespace(name=line, events=[event(*x) for x in events]) for line, events in lines.items()
  ]
  return SimpleNamespace(name=name, lines=made)


def test_kernels_of_a_profile():
  operation = ("hlo_op", "add.1")
  host = plane("/host:CPU", python=[("f", 9)], worker=[("add.1", 2e9, operation), ("wait", 3)])
  assert kernels.of_planes([host]) == [("add", 1, 2.0)]
  streams = [("loop_fusion_2", 1e9), ("loop_fusion_13", 2e9), ("MemcpyD2D", 1e9)]
  device = plane("/device:GPU:0", **{"Stream #1": streams, "XLA Ops": [("loop_fusion", 5e9)]})
  found = kernels.of_planes([host, device])
  assert found == [("loop_fusion", 2, 3.0), ("MemcpyD2D", 1, 1.0)]
  lines = kernels.table(found, steps=1).splitlines()
  assert lines[-2:] == [
    "| all that only move | 1 | 1000.000 | 25.0 |",
    "| all | 3 | 4000.000 | 100.0 |",
  ]


@pytest.mark.slow
def test_all_parts_on_a_cpu(tmp_path):
  code, output = command(tmp_path, "--allow_cpu", "--minutes=20")
  assert code == 0, output
  report = json.loads((tmp_path / "report.json").read_text())
  assert list(report["parts"]) == list(gpu_check.PARTS)
  assert {x["text"] for x in report["goals"]} == {goal.text for goal in gpu_check.GOALS.values()}
  assert "all that only move" in (tmp_path / "report.md").read_text()
