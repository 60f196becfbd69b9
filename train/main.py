"""Trains what a config describes, or goes on where it was.

python -m train.main --config=configs/quickstart.py --workdir=DIR

On several hosts start it once on each; on a cluster that JAX does not detect, with --coordinator, --processes
and --process. Started again it goes on from the last checkpoint. Exit codes: 0 done; 2 a mistake in what it
was told; 74 the disk refuses; 75 another process is gone, start again; 143 told to end (SIGTERM), start again.
"""

import argparse
import pathlib
import time
import traceback
from collections.abc import Sequence

from train.checkpointing import folder
from train.command import program
from train.errors import MISTAKE, ConfigError, UserError
from train.processes import cluster


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, object]:
  """Reads the command line, as ``program.with_config``."""
  parser = program.Parser("train.main", __doc__)
  parser.add_argument("--workdir", metavar="DIR", help="where metrics, checkpoints and tables go")
  parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
  parser.add_argument("--processes", type=int, metavar="N", help="how many there are")
  parser.add_argument("--process", type=int, metavar="I", help="the number of this one")
  parser.add_argument(
    "--cluster",
    action=program.Switch,
    default=True,
    help="join the other processes where there is a cluster; --nocluster: do not",
  )
  parser.add_argument(
    "--start_over", action="store_true", help="put runs that are there aside, and begin again"
  )
  parser.add_argument(
    "--explain", action="store_true", help="say what would be done, and what it would take"
  )
  parser.add_argument(
    "--bandwidth", action="append", help="explain: of a worker's link, such as 1Gbit/s; may repeat"
  )
  parser.add_argument(
    "--batch_seconds", type=float, help="explain: of a worker's batch, for the time of the run"
  )
  options, config = program.with_config(parser, arguments)
  if options.workdir is None and not options.explain:
    raise UserError("--workdir is missing, such as --workdir=runs/quickstart.")
  _check_explained(options)
  cluster.check(options.coordinator, options.processes, options.process)
  return options, config


def _check_explained(options: argparse.Namespace) -> None:
  """Refuses what only ``--explain`` reads, where it is not asked for or cannot be."""
  for name in ("bandwidth", "batch_seconds"):
    if getattr(options, name) is not None and not options.explain:
      raise UserError(f"--{name} is for --explain, which says what a run would take.")
  if options.batch_seconds is not None and not 0 <= options.batch_seconds < float("inf"):
    raise UserError(f"--batch_seconds must be at least 0 and finite, got {options.batch_seconds}.")
  for bandwidth in options.bandwidth or ():
    import rtopk_jax

    try:
      rtopk_jax.Link(bandwidth)
    except ValueError as error:
      raise UserError(f"--{error}") from error


def main(arguments: Sequence[str]) -> None:
  """Runs the experiment."""
  options, config = parse(arguments)
  if options.workdir is not None:
    folder.local(options.workdir)
  from absl import logging

  # What takes its time is imported once the command line is known to be one.
  from train.planning import experiment
  from train.processes import identity

  logging.set_verbosity(logging.WARNING)
  settled = experiment.settled(config)
  if options.explain:
    from train.planning import explain

    return explain.show(
      config, options.workdir, options.bandwidth or explain.BANDWIDTHS, options.batch_seconds
    )
  if options.cluster:
    cluster.join(
      options.coordinator, options.processes, options.process, float(settled.peer_timeout)
    )
  try:
    cluster.agree("config", identity.of_config(settled))
    from train import train_and_evaluate

    train_and_evaluate(config, options.workdir, options.start_over)
  except SystemExit as told:
    cluster.leave(int(told.code or 0))
    raise
  except (UserError, ConfigError) as error:
    program.complain(error, arguments)
    cluster.leave(error.code if isinstance(error, UserError) else MISTAKE, f"error: {error}")
    raise program.Told(error) from error
  except KeyboardInterrupt:
    cluster.leave(program.INTERRUPTED, "interrupted")
    raise
  except BaseException as error:
    _wait_for_news(error)
    if cluster.patience():
      traceback.print_exc()
    cluster.leave(1, f"{type(error).__name__}: {error}".splitlines()[0])
    raise
  cluster.leave(0)


def _wait_for_news(error: BaseException) -> None:
  """When another process dies, collectives fail at once; which one it was is known a little later."""
  frames = traceback.extract_tb(error.__traceback__)
  if {"jax", "jaxlib", "orbax"} & set(pathlib.Path(frames[-1].filename).parts):
    time.sleep(cluster.patience())


if __name__ == "__main__":
  program.run(main)
