"""``python -m rtopk_jax.plan --params=25.6e6 --workers=64 --bandwidth=1Gbit/s``: when compression pays."""

import argparse
import sys

from rtopk_jax._advice import DENSITIES, advise
from rtopk_jax._plan import LocalSpeed
from rtopk_jax._wire import Wire


def main(arguments: list[str] | None = None) -> None:
  """Prints the advice.

  Args:
    arguments: of the command; None are those it was called with.
  """
  parser = argparse.ArgumentParser(
    prog="python -m rtopk_jax.plan", description="When compression pays."
  )
  parser.add_argument("--params", type=float, required=True, help="d, the number of parameters")
  parser.add_argument("--workers", type=int, required=True, help="n, how many exchange gradients")
  parser.add_argument("--bandwidth", required=True, help="of a worker's link, such as 1Gbit/s")
  parser.add_argument("--latency", type=float, default=1e-4, help="of a message, in seconds")
  parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES, help="k/d")
  parser.add_argument("--values", default="float32", help="of the wire")
  parser.add_argument("--indices", default="int32", help="of the wire")
  parser.add_argument("--compute", type=float, help="seconds of a step beside its exchange")
  speed = parser.add_mutually_exclusive_group()
  speed.add_argument("--memory_bandwidth", type=float, help="of the device, in bytes a second")
  speed.add_argument("--measure", action="store_true", help="time this machine's device")
  options = parser.parse_args(arguments)
  local = LocalSpeed.of_memory(options.memory_bandwidth) if options.memory_bandwidth else None
  try:
    if options.measure:
      from rtopk_jax._speed import measure_local

      local = measure_local(int(options.params), min(options.densities))
    advice = advise(
      options.params,
      options.workers,
      options.bandwidth,
      latency=options.latency,
      densities=options.densities,
      wire=Wire(options.values, options.indices),
      local=local,
      compute=options.compute,
    )
  except (TypeError, ValueError) as error:
    sys.exit(str(error))
  print(advice)


if __name__ == "__main__":
  main()
