"""Real processes that start quickly: one imports everything, each run is a fork of it.

``python -m tests.train.zygote`` reads requests as lines of JSON and answers each with one. A run is what
``python -m train.main ARGUMENTS`` is, in a process of its own that can be killed.
"""

import json
import os
import sys


def _child(request: dict) -> None:
  log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(log, 1)
  os.dup2(log, 2)
  import jax
  from absl import app

  from train import main

  jax.config.update("jax_num_cpu_devices", request["devices"])
  jax.config.update("jax_compilation_cache_dir", request["cache"])
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  sys.argv = ["train.main", *request["arguments"]]
  app.run(main.main)


def serve() -> None:
  """Forks and waits as it is asked to."""
  import train.main  # noqa: F401

  for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
      _, status = os.waitpid(request["wait"], 0)
      answer = os.waitstatus_to_exitcode(status)
    else:
      answer = os.fork()
      if answer == 0:
        _child(request)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
  serve()
