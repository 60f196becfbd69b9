"""Text that a language model makes up, word by word, or character by character.

python -m train.sample --workdir=DIR --method=rtopk --seed=0 --words=60 --prompt="the market"
"""

from collections.abc import Sequence

from train.command import program
from train.errors import UserError


def main(arguments: Sequence[str]) -> None:
  """Samples."""
  parser = program.Parser("train.sample", __doc__)
  parser.add_argument("--words", type=int, default=60, help="how many, or characters")
  parser.add_argument("--prompt", default="", help="what to begin with, as the corpus writes it")
  parser.add_argument(
    "--temperature", type=float, default=1.0, help="below 1: likelier words; 0: the likeliest"
  )
  parser.add_argument("--sample_seed", type=int, default=0, help="another one: another text")
  options = program.with_run(parser, arguments)
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
  vocabulary, of_words = run.task.text.vocabulary, run.task.unit == "words"
  numbers = {word: i for i, word in enumerate(vocabulary)}
  # Something has to come first: the end of a sentence, or of a line.
  prompt = [text.END, *options.prompt.split()] if of_words else ["\n", *options.prompt]
  unknown = [word for word in prompt if word not in numbers]
  if unknown:
    raise UserError(
      f"--prompt: {unknown[0]!r} is not one of the {len(vocabulary)} {run.task.unit} it knows."
    )
  found = run.task.sample(
    trained.on_device(run.params),
    [numbers[word] for word in prompt],
    options.words,
    jax.random.key(options.sample_seed),
    options.temperature,
  )
  words = [*prompt[1:], *(vocabulary[i] for i in found)]
  lines = " ".join("\n" if word == text.END else word for word in words)
  print(lines if of_words else "".join(words))


if __name__ == "__main__":
  program.run(main)
