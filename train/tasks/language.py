"""Language modelling: predicting the next word of contiguous text, the hidden state carried over."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

import data
from data import streams
from train import models
from train.tasks.task import Fields, Score


class Language:
  """An LSTM that is trained by truncated backpropagation through time.

  The state of the model is the hidden state after the last batch; it is each worker's own, like the
  streams it reads, and begins with zeros every epoch. The loss is summed over the unrolled words and
  averaged over the streams, as in Zaremba et al., whose learning rate and clipping go with that.

  Args:
    config: the experiment.
    text: the corpus.
  """

  score = Score("test_perplexity", "test perplexity")
  unit = "words"
  fields: ClassVar[Fields] = {"model": models.lstm.FIELDS}

  def __init__(self, config: Any, text: data.Text):
    self.config, self.text = config, text
    self.examples = config.batch_size * config.unroll
    self.init = jax.jit(self._init)
    self._evaluate = jax.jit(self._total)

  def source(self, seed: int) -> data.Source:
    """The training text, cut into every worker's streams."""
    config = self.config
    return data.StreamSource(
      self.text.train, config.num_workers, config.batch_size, config.unroll, seed
    )

  def _network(self, rngs: nnx.Rngs) -> models.LSTM:
    config = self.config.model
    return models.LSTM(
      vocabulary=len(self.text.vocabulary),
      units=config.units,
      layers=config.layers,
      dropout=config.dropout,
      init_scale=config.init_scale,
      dtype=config.dtype,
      rngs=rngs,
    )

  def _silence(self, count: int) -> jax.Array:
    config = self.config.model
    return jnp.zeros((config.layers, 2, count, config.units), jnp.float32)

  def _init(self, key: jax.Array) -> tuple[Any, Any]:
    """Initial weights, and the state before the first word."""
    (params,) = models.init(self._network, key, nnx.Param)
    return params, self._silence(self.config.batch_size)

  def _apply(
    self, params: Any, carry: jax.Array, batch: Any, key: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of every word of a window, and the carry after it."""
    network = models.rebuild(self._network, Param=params)
    logits, carry = network(batch["input"], carry, key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"]), carry

  def loss(
    self, params: Any, model_state: Any, batch: Any
  ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """Cross entropy, summed over time and averaged over streams; beside it the carry."""
    carry = jnp.where(batch["start"], jnp.zeros_like(model_state), model_state)
    key = jax.random.wrap_key_data(batch["key"], impl="threefry2x32")
    losses, carry = self._apply(params, carry, batch, key)
    return losses.sum(axis=1).mean(), (carry, {"train_loss": losses.mean()})

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

    start = (self._silence(count), jnp.float32(0))
    (_, total), _ = lax.scan(window, start, unroll * jnp.arange(steps))
    return total

  def statistics(self, model_state: Any) -> Any:
    """Nothing: every text begins with silence."""
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
    carry, found = self._silence(1), []
    words = jnp.asarray(prompt, jnp.int32).reshape(1, -1)
    for own in jax.random.split(key, count):
      logits, carry = apply(words, carry)
      last = logits[0, -1]
      drawn = jax.random.categorical(own, last / max(temperature, 1e-6))
      found.append(int(jnp.argmax(last) if temperature == 0 else drawn))
      words = jnp.full((1, 1), found[-1], jnp.int32)
    return found
