"""The score of a run at one of its checkpoints, the same to the bit as the run's own.

python -m train.evaluate --workdir=DIR [--method=rtopk --seed=0 --step=340]

Prints a line of JSON for every run that fits.
"""

from collections.abc import Sequence

from train.checkpointing import folder
from train.command import program


def main(arguments: Sequence[str]) -> None:
  """Evaluates."""
  parser = program.Parser("train.evaluate", __doc__)
  options = program.with_run(parser, arguments)
  from train.checkpointing import trained

  for method, seed in trained.runs(options.workdir, options.method, options.seed):
    run = trained.load_trained(options.workdir, method, seed, options.step, options.data_dir)
    figures = run.task.evaluate(trained.on_device(run.params), trained.on_device(run.statistics))
    print(folder.dumps({"method": method, "seed": seed, "step": run.step, **figures}), flush=True)


if __name__ == "__main__":
  program.run(main)
