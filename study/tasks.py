"""What is trained: small networks on data that lies in memory, as pure functions.

A batch is given by numbers alone, of images or of words where streams go on, so that an epoch of all
workers is one array of integers and one ``lax.scan``.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from study import data
from study.settings import Setting

Params = Any
# Of the images' perceptron: means of 4 × 4 pixels, hidden units, classes.
IMAGE_SIZES = (192, 160, 64, 10)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """Something to train.

  Attributes:
    splits: the data.
    init: a key to weights.
    begin: the number of workers to what they carry from batch to batch, a leading axis of workers.
    loss: weights, carry, training data and one worker's numbers to the loss and the new carry.
    order: setting, seed and epoch to the numbers of all batches, (rounds, workers, batch).
    score: weights and a split to what is compared: accuracy in %, or perplexity.
    higher: whether more is better.
    clip_norm: of the mean gradient, or None.
    chance: the loss of guessing.
  """

  splits: data.Splits
  init: Callable[[jax.Array], Params]
  begin: Callable[[int], Any]
  loss: Callable[[Params, Any, Any, jax.Array], tuple[jax.Array, Any]]
  order: Callable[[Setting, int, int], np.ndarray]
  score: Callable[[Params, data.Split], float]
  higher: bool
  clip_norm: float | None
  chance: float

  @property
  def size(self) -> int:
    """The number of weights, d."""
    shapes = jax.eval_shape(self.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


def mlp_init(sizes: tuple[int, ...], key: jax.Array) -> Params:
  """Weights of a multi-layer perceptron, by He et al.'s rule."""
  keys = jax.random.split(key, len(sizes) - 1)
  return [
    {"w": jax.random.normal(k, (a, b)) * np.float32(np.sqrt(2 / a)), "b": jnp.zeros(b)}
    for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
  ]


def mlp(params: Params, x: jax.Array) -> jax.Array:
  """Logits."""
  for layer in params[:-1]:
    x = jax.nn.relu(x @ layer["w"] + layer["b"])
  return x @ params[-1]["w"] + params[-1]["b"]


def image_order(
  labels: np.ndarray, batch: int, setting: Setting, seed: int, epoch: int
) -> np.ndarray:
  """Every worker goes through its share of the images in an order of its own.

  Args:
    labels: of all training images.
    batch: images of all workers in a round.
    setting: whose ``workers`` and ``share`` count.
    seed: of the run.
    epoch: from 0.

  Returns:
    Numbers of images, (rounds, workers, batch / workers).
  """
  n, each = setting.workers, batch // setting.workers
  rounds = len(labels) // batch
  order = np.random.default_rng([seed, 0]).permutation(len(labels))
  rng = np.random.default_rng([seed, 1, epoch])
  if setting.share == "same":
    one = rng.permutation(order)[: rounds * each].reshape(rounds, 1, each)
    return np.broadcast_to(one, (rounds, n, each))
  if setting.share == "classes":
    order = order[np.argsort(labels[order], kind="stable")]
  shares = np.array_split(order, n)
  return np.stack(
    [rng.permutation(share)[: rounds * each].reshape(rounds, each) for share in shares], axis=1
  )


def images(splits: data.Splits, hidden: tuple[int, ...], batch: int) -> Task:
  """A perceptron that classifies images.

  Args:
    splits: the data.
    hidden: sizes of the hidden layers.
    batch: images of all workers in a round.

  Returns:
    The task.
  """
  sizes = (splits.train.inputs.shape[1], *hidden, 10)

  def loss(params, carry, split, numbers):
    x, y = split
    logits = mlp(params, x[numbers])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y[numbers]).mean(), carry

  right = jax.jit(lambda p, x, y: (jnp.argmax(mlp(p, x), -1) == y).mean())
  return Task(
    splits=splits,
    init=functools.partial(mlp_init, sizes),
    begin=lambda n: jnp.zeros((n, 0)),
    loss=loss,
    order=functools.partial(image_order, splits.train.labels, batch),
    score=lambda p, split: 100 * float(right(p, split.inputs, split.labels)),
    higher=True,
    clip_norm=None,
    chance=float(np.log(10)),
  )


def lstm_init(vocabulary: int, units: int, key: jax.Array) -> Params:
  """Weights of one LSTM layer between tied embeddings, uniform within ±0.1."""
  keys = jax.random.split(key, 2)
  uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-0.1, maxval=0.1)
  return {
    "embedding": uniform(keys[0], (vocabulary, units)),
    "w": uniform(keys[1], (2 * units, 4 * units)),
    "b": jnp.zeros(4 * units),
    "out": jnp.zeros(vocabulary),
  }


def lstm(params: Params, carry: Any, words: jax.Array) -> tuple[jax.Array, Any]:
  """Logits of the next words, (steps, streams, vocabulary), and the carry after them."""
  units = params["w"].shape[1] // 4
  inputs = params["embedding"][words] @ params["w"][:units] + params["b"]

  def step(carry, x):
    h, c = carry
    i, f, o, g = jnp.split(x + h @ params["w"][units:], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h

  carry, outputs = lax.scan(step, carry, inputs)
  return outputs @ params["embedding"].T + params["out"], carry


def text_order(
  words: int, streams: int, unroll: int, setting: Setting, seed: int, epoch: int
) -> np.ndarray:
  """Where the streams of all workers stand in every round: the text is cut into as many pieces.

  Args:
    words: of the text.
    streams: of all workers.
    unroll: words of a stream in a round.
    setting: whose ``workers`` and ``share`` count.
    seed: which pieces are whose.
    epoch: no matter: a stream is read from its beginning.

  Returns:
    Numbers of words, (rounds, workers, streams / workers).
  """
  del epoch
  length = (words - 1) // streams
  rounds = length // unroll
  starts = np.arange(streams) * length
  if setting.share == "equal":
    starts = np.random.default_rng([seed, 0]).permutation(starts)
  starts = starts.reshape(setting.workers, -1)
  if setting.share == "same":
    starts = np.broadcast_to(starts[:1], starts.shape)
  return starts + unroll * np.arange(rounds)[:, None, None]


def language(
  splits: data.Splits, vocabulary: int, units: int, streams: int, unroll: int, clip_norm: float
) -> Task:
  """An LSTM that predicts the next word, trained through streams of text.

  Args:
    splits: the data.
    vocabulary: words that there are.
    units: of the layer.
    streams: of all workers.
    unroll: words of a stream in a round.
    clip_norm: of the mean gradient; of a sum over time, as in Zaremba et al.

  Returns:
    The task.
  """
  zeros = lambda *shape: (jnp.zeros((*shape, units)), jnp.zeros((*shape, units)))

  def loss(params, carry, split, starts):
    text, _ = split
    words = text[starts[None] + jnp.arange(unroll + 1)[:, None]]
    logits, carry = lstm(params, carry, words[:-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, words[1:])
    return losses.sum(0).mean(), lax.stop_gradient(carry)

  @jax.jit
  def perplexity(params, words):
    pieces, step = 64, 32
    rounds = (len(words) - 1) // pieces // step
    cut = lambda x: x[: pieces * rounds * step].reshape(pieces, rounds, step).transpose(1, 2, 0)

    def part(carry, batch):
      logits, carry = lstm(params, carry, batch[0])
      return carry, optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    _, losses = lax.scan(part, zeros(pieces), (cut(words[:-1]), cut(words[1:])))
    return jnp.exp(losses.mean())

  return Task(
    splits=splits,
    init=functools.partial(lstm_init, vocabulary, units),
    begin=lambda n: zeros(n, streams // n),
    loss=loss,
    order=functools.partial(text_order, len(splits.train.inputs), streams, unroll),
    score=lambda p, split: float(perplexity(p, split.inputs)),
    higher=False,
    clip_norm=clip_norm,
    chance=unroll * float(np.log(vocabulary)),
  )


def first_words(splits: data.Splits, count: int) -> data.Splits:
  """The splits with the first words of the training text alone."""
  return dataclasses.replace(
    splits, train=data.Split(splits.train.inputs[:count], splits.train.labels)
  )


TASKS: dict[str, Callable[[], Task]] = {
  # 192 inputs: 41,834 weights, so that 99 % and 99.9 % leave k = 418 and 42. Batches as in the paper.
  "cifar": lambda: images(data.cifar(), IMAGE_SIZES[1:-1], batch=640),
  # 64 inputs: 9,610 weights, for the widest sweeps.
  "digits": lambda: images(data.digits(), (128,), batch=80),
  # 1,000 words: 98,280 weights.
  "ptb": lambda: language(
    first_words(data.ptb(), 100_000), data.VOCABULARY, 64, streams=20, unroll=35, clip_norm=5.0
  ),
}
load = functools.cache(lambda name: TASKS[name]())
