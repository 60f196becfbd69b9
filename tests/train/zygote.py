"""Real processes that start quickly: one imports everything, each run is a fork of it.

``python -m tests.train.zygote`` reads requests as lines of JSON and answers each with one. A run is what
``python -m train.main ARGUMENTS`` is, in a process of its own that can be killed.
"""

import gc
import importlib
import json
import os
import sys


def _child(request: dict) -> None:
  log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(log, 1)
  os.dup2(log, 2)
  os.environ.update(request["environment"])
  import jax

  from train import main
  from train.command import program

  jax.config.update("jax_num_cpu_devices", request["devices"])
  jax.config.update("jax_compilation_cache_dir", request["cache"])
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  try:
    program.run(main.main, request["arguments"])
  except SystemExit as end:
    if end.code != 2:
      raise
    # After a mistake there is nothing to tidy up, which takes longer than to find it.
    sys.stdout.flush()
    os._exit(2)


def serve() -> None:
  """Forks and waits as it is asked to."""
  import numpy as np

  import data

  # What these import they import once; grain is what data.load will ask for.
  importlib.import_module("grain")
  data.IMAGES["digits"](None).train.read(np.arange(1))
  gc.freeze()

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
