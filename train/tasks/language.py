"""Language modelling: predicting the next word, or character, of a text."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

import data
from data import streams
from train import models
from train.tasks import named
from train.tasks.task import Score

_SCORES = {
  "words": Score("test_perplexity", "test perplexity"),
  "characters": Score("valid_loss", "validation loss"),
}


class Language:
  """A model of a text.

  What a model carries is each worker's own, like the streams of text it reads, and starts anew every epoch:
  truncated backpropagation through time. A model that carries nothing reads windows from anywhere in its
  worker's part of the text. The loss is the mean over the words of a window, or the sum where the model
  says so, and the mean over the streams.

  Args:
    config: the experiment.
    text: the corpus.
  """

  def __init__(self, config: Any, text: data.Text):
    self.config, self.text = config, text
    self.unit, self.score = text.unit, _SCORES[text.unit]
    self.examples = config.batch_size * config.unroll
    self._model = named.find("config.model.name", config.model.name, models.LANGUAGE_MODELS)
    self._carries = bool(jax.tree.leaves(self._start(1)))
    self.init = jax.jit(self._init)
    self._evaluate = jax.jit(self._total)

  def source(self, seed: int) -> data.Source:
    """The training text, cut into every worker's streams, or its part that windows are taken of."""
    config = self.config
    source = data.StreamSource if self._carries else data.WindowSource
    return source(self.text.train, config.num_workers, config.batch_size, config.unroll, seed)

  def _network(self, rngs: nnx.Rngs) -> Any:
    return self._model(**named.sizes(self.config), vocabulary=len(self.text.vocabulary), rngs=rngs)

  def _start(self, count: int) -> Any:
    """What is carried into the first window of so many streams."""
    return nnx.eval_shape(lambda: self._network(nnx.Rngs(0))).start(count)

  def _init(self, key: jax.Array) -> tuple[Any, Any]:
    """Initial weights, and the state before the first word."""
    (params,) = models.init(self._network, key, nnx.Param)
    return params, self._start(self.config.batch_size)

  def _apply(
    self, params: Any, carry: Any, batch: Any, key: jax.Array | None
  ) -> tuple[jax.Array, Any]:
    """Cross entropy of every word of a window, and the carry after it."""
    network = models.rebuild(self._network, Param=params)
    logits, carry = network(batch["input"], carry, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"]), carry

  def loss(
    self, params: Any, model_state: Any, batch: Any
  ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """Cross entropy, averaged over streams, and averaged or summed over time; beside it the carry."""
    carry = model_state
    if self._carries:
      start = self._start(self.config.batch_size)
      carry = jax.tree.map(lambda x, y: jnp.where(batch["start"], x, y), start, model_state)
    key = jax.random.wrap_key_data(batch["key"], impl="threefry2x32")
    losses, carry = self._apply(params, carry, batch, key)
    mean = losses.mean()
    loss = losses.sum(axis=1).mean() if self._model.total_over_time else mean
    return loss, (carry, {"train_loss": mean})

  def _total(self, params: Any, words: jax.Array) -> jax.Array:
    """Cross entropy summed over all words of a text that is cut into streams, but the first of each."""
    count, length = words.shape
    unroll = self.config.unroll
    steps = -(-(length - 1) // unroll)
    # The last window is padded: what is past the end counts nothing.
    padded = jnp.pad(words, ((0, 0), (0, steps * unroll + 1 - length)))

    def window(carry, start):
      carry, total = carry
      part = lambda offset: lax.dynamic_slice(padded, (0, start + offset), (count, unroll))
      losses, carry = self._apply(params, carry, {"input": part(0), "target": part(1)}, key=None)
      real = start + jnp.arange(unroll) < length - 1
      return (carry, total + jnp.sum(jnp.where(real[None], losses, 0))), None

    start = (self._start(count), jnp.float32(0))
    (_, total), _ = lax.scan(window, start, unroll * jnp.arange(steps))
    return total

  def statistics(self, model_state: Any) -> Any:
    """Nothing: every text begins anew."""
    del model_state
    return ()

  def evaluate(self, params: Any, statistics: Any) -> dict[str, float]:
    """Perplexity of the validation and the test text, each read in ``eval_batch_size`` streams."""
    del statistics
    found = {}
    for name, words in (("valid", self.text.valid), ("test", self.text.test)):
      cut = streams.cut(words, self.config.eval_batch_size)
      loss = float(self._evaluate(params, cut)) / (cut.shape[0] * (cut.shape[1] - 1))
      found |= {f"{name}_loss": loss, f"{name}_perplexity": float(np.exp(loss))}
    return found

  def sample(
    self, params: Any, prompt: Sequence[int], count: int, key: jax.Array, temperature: float
  ) -> list[int]:
    """Words that follow from some words.

    Args:
      params: the weights.
      prompt: numbers of words, at least one.
      count: how many to make up.
      key: of the draws.
      temperature: what the logits are divided by; 0: the likeliest word is taken each time.

    Returns:
      The numbers of the words that follow.
    """
    network = models.rebuild(self._network, Param=params)
    apply = jax.jit(lambda words, carry: network(words, carry))
    carry, found = self._start(1), []
    known, unroll = list(prompt), self.config.unroll
    words = jnp.asarray(prompt, jnp.int32).reshape(1, -1)
    for own in jax.random.split(key, count):
      if self._carries:
        logits, carry = apply(words, carry)
        last = logits[0, -1]
      else:
        # All that fits a window is read again; what pads it comes after, where nobody looks.
        window = np.zeros((1, unroll), np.int32)
        seen = known[-unroll:]
        window[0, : len(seen)] = seen
        last = apply(window, carry)[0][0, len(seen) - 1]
      drawn = jax.random.categorical(own, last / max(temperature, 1e-6))
      found.append(int(jnp.argmax(last) if temperature == 0 else drawn))
      known.append(found[-1])
      words = jnp.full((1, 1), found[-1], jnp.int32)
    return found
