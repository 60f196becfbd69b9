"""What a step costs in memory and time, beside plain data parallelism with ``optax.sgd``.

    python -m train.footprint --config=configs/quickstart.py --cpu_devices=5

One worker a device. Peak memory is what the compiled step needs on a device: its arguments, results and
temporary arrays, those that share memory counted once. The time is the median over some steps, all
devices together; simulated devices of one CPU share its cores, so there only their ratio says something.
"""

from collections.abc import Sequence

from train.command import program
from train.errors import UserError


def main(arguments: Sequence[str]) -> None:
  """Prints the table."""
  parser = program.Parser("train.footprint", __doc__)
  parser.add_argument("--steps", type=int, default=10, help="that are timed, after one that is not")
  parser.add_argument("--cpu_devices", type=int, default=0, help="to make of a CPU; 0: as JAX does")
  options, config = program.with_config(parser, arguments)
  if options.steps < 1:
    raise UserError(f"--steps must be at least 1, got {options.steps}.")
  import jax

  from train.planning import footprint

  if options.cpu_devices:
    jax.config.update("jax_num_cpu_devices", options.cpu_devices)
  print(footprint.table(footprint.footprints(config, options.steps)))


if __name__ == "__main__":
  program.run(main)
