"""``python -m rtopk_jax.plan --params=25.6e6 --workers=64 --bandwidth=1Gbit/s``: when compression pays."""

import argparse
from typing import NoReturn

from rtopk_jax import _checks
from rtopk_jax.exchange import _cost
from rtopk_jax.planning._advice import DENSITIES, advise
from rtopk_jax.vector._vector import MAX_SIZE
from rtopk_jax.wire import _wire


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line, without the usage before it."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, f"error: {message}\n")


def main(arguments: list[str] | None = None) -> None:
  """Prints the advice, or ends with code 2 and a line that names the flag that is wrong.

  Args:
    arguments: of the command; None are those it was called with.
  """
  parser = _Parser(prog="python -m rtopk_jax.plan", description="When compression pays.")
  parser.add_argument("--params", type=float, required=True, help="d, the number of parameters")
  parser.add_argument("--workers", type=int, required=True, help="n, how many exchange gradients")
  parser.add_argument("--bandwidth", required=True, help="of a worker's link, such as 1Gbit/s")
  parser.add_argument("--latency", type=float, default=1e-4, help="of a message, in seconds")
  parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES, help="k/d")
  parser.add_argument("--values", choices=_wire.VALUES, default="float32", help="of the wire")
  # Indices of blocks are for blocks, of which the cost model has none.
  indices = [x for x in _wire.INDICES if x != "block"]
  parser.add_argument("--indices", choices=indices, default="int32", help="of the wire")
  parser.add_argument("--compute", type=float, help="seconds of a step beside its exchange")
  parser.add_argument(
    "--batches", type=int, help="of a worker: says how long a training takes; needs --compute"
  )
  parser.add_argument(
    "--local_steps", type=int, nargs="+", help="batches between two exchanges; 1 and 30"
  )
  speed = parser.add_mutually_exclusive_group()
  speed.add_argument("--memory_bandwidth", type=float, help="of the device, in bytes a second")
  speed.add_argument("--measure", action="store_true", help="time this machine's device")
  options = parser.parse_args(arguments)
  try:
    _check(options)
    advice = advise(
      options.params,
      options.workers,
      options.bandwidth,
      latency=options.latency,
      densities=options.densities,
      wire=_wire.Wire(options.values, options.indices),
      local=_local(options),
      compute=options.compute,
    )
  except (TypeError, ValueError) as error:
    parser.error(str(error))
  print(advice)
  if options.batches is not None:
    print(
      f"\nA training of {options.batches:,} batches of a worker, {options.compute:g} s each, by the batches between two exchanges:\n"
    )
    print(advice.trainings(options.compute, options.batches, options.local_steps or (1, 30)))


def _check(options: argparse.Namespace) -> None:
  """Refuses by the names of the flags what would be refused by those of arguments."""
  _checks.whole("--params", options.params)
  _checks.at_least("--workers", options.workers, 1)
  _cost.parse_bandwidth(options.bandwidth, "--bandwidth")
  _checks.at_least("--latency", options.latency, 0)
  for density in options.densities:
    _checks.density("--densities", density)
  if options.compute is not None:
    _checks.at_least("--compute", options.compute, 0)
  if options.batches is not None:
    _checks.at_least("--batches", options.batches, 1)
    if options.compute is None:
      raise ValueError("--batches needs --compute, the seconds of a batch beside its exchange.")
  for every in options.local_steps or ():
    _checks.at_least("--local_steps", every, 1)
  if options.local_steps and options.batches is None:
    raise ValueError("--local_steps is for a training: it needs --batches, how many a worker has.")
  if options.memory_bandwidth is not None:
    _checks.above_zero("--memory_bandwidth", options.memory_bandwidth, "bytes a second")
  if options.measure:
    _checks.at_most("--params", options.params, MAX_SIZE, "what one device can measure at once")


def _local(options: argparse.Namespace) -> _cost.LocalSpeed | None:
  """How fast a worker computes: as its memory's bandwidth or a measurement says, where either is asked for."""
  if options.memory_bandwidth is not None:
    return _cost.LocalSpeed.of_memory(options.memory_bandwidth)
  if options.measure:
    from rtopk_jax.planning._speed import measure_local

    return measure_local(options.params, min(options.densities))
  return None


if __name__ == "__main__":
  main()
