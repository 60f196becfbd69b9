"""Real processes: how workers are spread over them makes no difference."""

import os
import socket
import subprocess
import sys


def start(address, processes, rank, devices):
  arguments = [address, str(processes), str(rank), str(devices)]
  return subprocess.Popen(
    [sys.executable, "-m", "tests.rtopk_jax.mesh.worker", *arguments],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def parameters(running):
  try:
    for process in running:
      output, errors = process.communicate(timeout=300)
      assert process.returncode == 0, errors
      yield output.strip().splitlines()[-1]
  finally:
    for process in running:
      process.kill()


def test_two_processes_of_two_devices_equal_one_of_four_bit_for_bit():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  (alone,) = parameters([start("", 1, 0, 4)])
  assert len(alone) == 2 * 4 * (16 * 8 + 8)
  first, second = parameters([start(address, 2, rank, 2) for rank in range(2)])
  assert first == alone
  assert second == alone
