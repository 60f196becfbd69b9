"""Workers of several devices, in one process and in two: the same steps, metrics and checkpoints."""

import numpy as np
import pytest

from tests.train.runs import free_port, leaves, lines, state

OPTIONS = (
  "--config=tests/train/wide.py",
  "--config.methods=rtopk,none",
  "--config.epochs=1",
  "--config.warmup_epochs=0",
  "--config.max_steps=4",
)


def _mesh(workers, chips, shards):
  shape = {"workers": workers, "chips": chips, "shards": shards}
  mesh = [f"--config.mesh.{name}={size}" for name, size in shape.items()]
  return [*mesh, "--config.global_batch_size=24"]


def _run(zygote, workdir, options, processes):
  """A run of eight devices in some processes, to its end."""
  address = free_port()
  children = []
  for rank in range(processes):
    joined = [f"--coordinator={address}", f"--processes={processes}", f"--process={rank}"]
    log = workdir.parent / f"{workdir.name}.log{rank}"
    arguments = [*OPTIONS, *options, f"--workdir={workdir}", *(joined if processes > 1 else [])]
    children.append(zygote.main(log, *arguments, devices=8 // processes))
  for child in children:
    assert child.wait() == 0, child.output()
  return children[0].output()


@pytest.mark.slow
@pytest.mark.parametrize(
  "shape",
  # The last two have a worker in both processes: by its chips, by its shards.
  [(2, 2, 2), (2, 4, 1), (4, 2, 1), (1, 4, 2), (1, 1, 8)],
)
def test_two_processes_of_four_devices_train_as_one_of_eight(zygote, tmp_path, shape):
  alone, spread = tmp_path / "one", tmp_path / "two"
  # With one worker r/k would be 1.
  options = [*_mesh(*shape), "--config.subsample=2"]
  assert "2 processes" not in _run(zygote, alone, options, 1)
  assert "2 processes; 4 steps" in _run(zygote, spread, options, 2)
  for method in ("rtopk-0", "none-0"):
    file = f"runs/{method}/steps.jsonl"
    for a, b in zip(lines(alone / file), lines(spread / file), strict=True):
      assert a["sent_bytes"] == b["sent_bytes"]
      np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-5)
    for a, b in zip(*(leaves(state(x / "runs" / method)) for x in (alone, spread)), strict=True):
      # A process adds up its own devices first.
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
def test_another_layout_goes_on_in_another_number_of_processes(zygote, tmp_path):
  """Other chips and processes, the same workers: nothing is dealt out anew. Then other workers."""
  run, longer = tmp_path / "job", "--config.max_steps=8"
  _run(zygote, run, _mesh(4, 1, 2), 2)
  output = _run(zygote, run, [*_mesh(4, 1, 2), longer], 1)
  assert "goes on at step 4 of 8" in output
  assert "dealt out anew" not in output
  output = _run(zygote, run, [*_mesh(2, 2, 2), "--config.max_steps=6"], 2)
  assert "is of 4 workers and 2 go on" in output
