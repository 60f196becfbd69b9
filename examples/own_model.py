"""A model and a data set of one's own, each by its name, in a task that there is already.

    python -m train.main --config=examples/own_model.py --workdir=DIR

The text is of sums, such as "27+5=32;", and the model sees the last few characters. ``docs/training.md`` walks through
it. What is neither a model of images nor one of language is a task of one's own: ``examples/own_task.py``.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import lm
from configs.schema import Field, integer
from data import text


def sums(data_dir: str | None) -> text.Text:
  """The data set; a function of the folder of data sets, which this one does not need."""
  del data_dir

  def part(count: int, seed: int) -> str:
    numbers = np.random.default_rng(seed).integers(0, 50, (count, 2)).tolist()
    return "".join(f"{a}+{b}={a + b};" for a, b in numbers)

  return text.encode_characters(part(20_000, 0), part(500, 1), part(500, 2))


class Recent(nnx.Module):
  """Two layers on the last few characters, one beside the other.

  Args:
    vocabulary: how many characters there are.
    rngs: where weights come from.
    context: how many characters it sees.
    width: of the embedding of one.
    hidden: width of the layer between.
  """

  # What it takes of the config's ``model``, checked before it is made.
  fields: ClassVar[dict[str, Field]] = {
    "context": integer(8, "characters that it sees", least=1),
    "width": integer(8, "of the embedding of one", least=1),
    "hidden": integer(128, "width of the layer between", least=1),
  }
  # The loss is the mean over a window.
  total_over_time: ClassVar[bool] = False

  def __init__(self, vocabulary: int, rngs: nnx.Rngs, context: int, width: int, hidden: int):
    self.context = context
    self.embedding = nnx.Param(jax.random.normal(rngs.params(), (vocabulary, width)))
    self.inner = nnx.Linear(context * width, hidden, rngs=rngs)
    self.outer = nnx.Linear(hidden, vocabulary, rngs=rngs)

  def start(self, count: int) -> tuple[()]:
    """Nothing is carried from one window to the next."""
    del count
    return ()

  def __call__(self, words: jax.Array, carry: Any, key: jax.Array | None = None) -> Any:
    """Logits of the character after each, and what is carried on."""
    x = jnp.take(self.embedding[...], words, axis=0)
    before = jnp.pad(x, ((0, 0), (self.context - 1, 0), (0, 0)))
    shifted = [before[:, i : i + x.shape[1]] for i in range(self.context)]
    return self.outer(jnp.tanh(self.inner(jnp.concatenate(shifted, axis=-1)))), carry


def get_config(preset: str | None = "sparse,0.05") -> Any:
  """4 workers and a preset of ``configs/lm.py``."""
  config = lm.get_config(preset)
  config.dataset = "examples.own_model:sums"
  with config.unlocked():
    config.model = dict(name="examples.own_model:Recent", context=8, width=8, hidden=128)
  config.unroll, config.max_batches, config.learning_rate = 32, 600, 5e-3
  return config
