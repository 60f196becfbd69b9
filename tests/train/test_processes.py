"""Real processes, each of which reads for its own workers: the run is the same."""

import os
import socket
import subprocess
import sys

from tests.rtopk_jax.test_processes import parameters


def _start(address, processes, rank):
  arguments = [address, str(processes), str(rank), str(2 // processes)]
  return subprocess.Popen(
    [sys.executable, "-m", "tests.train.process", *arguments],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_two_processes_train_as_one_does_bit_for_bit():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  (alone,) = parameters([_start("", 1, 0)])
  first, second = parameters([_start(address, 2, rank) for rank in range(2)])
  assert first == second == alone
