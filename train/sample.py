"""Text that a language model makes up, word by word.

python -m train.sample --workdir=DIR --method=rtopk --seed=0 --words=60 --prompt="the market"
"""

from collections.abc import Sequence

from train.command import program
from train.errors import UserError


def main(arguments: Sequence[str]) -> None:
  """Samples."""
  parser = program.Parser("train.sample", __doc__)
  program.add_run(parser)
  parser.add_argument("--words", type=int, default=60, help="how many")
  parser.add_argument("--prompt", default="", help="words to begin with, as the corpus writes them")
  parser.add_argument(
    "--temperature", type=float, default=1.0, help="below 1: likelier words; 0: the likeliest"
  )
  parser.add_argument("--sample_seed", type=int, default=0, help="another one: another text")
  options = program.checked(parser, arguments)
  if options.words < 1:
    raise UserError(f"--words must be at least 1, got {options.words}.")
  if not 0 <= options.temperature < float("inf"):
    raise UserError(f"--temperature must be at least 0, got {options.temperature}.")
  import jax

  from data import text
  from train.checkpointing import trained
  from train.tasks.language import Language

  run = trained.load_trained(
    options.workdir, options.method, options.seed, options.step, options.data_dir
  )
  if not isinstance(run.task, Language):
    raise UserError(f"{options.workdir} is not of a language model; only those make up text.")
  vocabulary = run.task.text.vocabulary
  numbers = {word: i for i, word in enumerate(vocabulary)}
  prompt = [text.END, *options.prompt.split()]
  unknown = [word for word in prompt if word not in numbers]
  if unknown:
    raise UserError(f"--prompt: {unknown[0]!r} is not one of the {len(vocabulary)} words it knows.")
  found = run.task.sample(
    trained.on_device(run.params),
    [numbers[word] for word in prompt],
    options.words,
    jax.random.key(options.sample_seed),
    options.temperature,
  )
  words = [*prompt[1:], *(vocabulary[i] for i in found)]
  print(" ".join("\n" if word == text.END else word for word in words))


if __name__ == "__main__":
  program.run(main)
