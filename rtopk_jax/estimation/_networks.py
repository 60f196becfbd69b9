"""Two small networks with real data, whose gradients are looked at: a ResNet and an LSTM.

The data need no download: scikit-learn's handwritten digits, and the text of Python's own help topics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Params = dict[str, Any]


class Task(NamedTuple):
  """A network with its data.

  Attributes:
    name: for titles.
    params: initial parameters.
    loss: the mean loss of a batch, a function of parameters, inputs and targets.
    inputs: training inputs, examples first.
    targets: training targets.
    held_out: inputs and targets kept out of training.
    learning_rate: of momentum SGD.
  """

  name: str
  params: Params
  loss: Callable[[Params, jax.Array, jax.Array], jax.Array]
  inputs: np.ndarray
  targets: np.ndarray
  held_out: tuple[np.ndarray, np.ndarray]
  learning_rate: float


def digits_resnet(key: jax.Array, *, channels: int = 24, blocks: int = 2) -> Task:
  """A residual network on 8×8 images of digits.

  Args:
    key: of the parameters.
    channels: of every convolution.
    blocks: residual blocks of two 3×3 convolutions.

  Returns:
    A ``Task``.

  Raises:
    ModuleNotFoundError: without scikit-learn, which has the images.
  """
  from sklearn.datasets import load_digits

  images, labels = load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(images))
  images = (images[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32)
  labels = labels[order].astype(np.int32)
  keys = iter(jax.random.split(key, 2 * blocks + 2))
  params = {
    "stem": _kernel(next(keys), (3, 3, 1, channels)),
    "blocks": [
      {name: _kernel(next(keys), (3, 3, channels, channels)) for name in ("first", "second")}
      for _ in range(blocks)
    ],
    "head": _kernel(next(keys), (channels, 10)),
    "bias": jnp.zeros(10),
  }
  held = 597
  return Task(
    "ResNet, digits",
    params,
    _resnet_loss,
    images[held:],
    labels[held:],
    (images[:held], labels[:held]),
    0.1,
  )


def _resnet_loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
  def logits(image):
    x = _conv(image, params["stem"])
    for block in params["blocks"]:
      inner = _conv(jax.nn.relu(x), block["first"])
      x = x + _conv(jax.nn.relu(inner), block["second"]) / len(params["blocks"])
    return jax.nn.relu(x).mean((0, 1)) @ params["head"] + params["bias"]

  losses = optax.softmax_cross_entropy_with_integer_labels(jax.vmap(logits)(images), labels)
  return losses.mean()


def _conv(image: jax.Array, kernel: jax.Array) -> jax.Array:
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(image[None], kernel, (1, 1), "SAME", dimension_numbers=layout)[0]


def _kernel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.nn.initializers.he_normal()(key, shape, jnp.float32)


def text_lstm(key: jax.Array, *, hidden: int = 96, embedding: int = 32, length: int = 24) -> Task:
  """An LSTM that predicts the next character of Python's help topics.

  Args:
    key: of the parameters.
    hidden: units.
    embedding: entries of a character's vector.
    length: characters of an example.

  Returns:
    A ``Task``.

  Raises:
    ModuleNotFoundError: where Python comes without its help topics.
  """
  from pydoc_data.topics import topics

  text = "\n".join(topics[name] for name in sorted(topics))[:400_000]
  alphabet = sorted(set(text))
  codes = np.searchsorted(alphabet, list(text)).astype(np.int32)
  count = (len(codes) - 1) // length
  inputs = codes[: count * length].reshape(count, length)
  targets = codes[1 : count * length + 1].reshape(count, length)
  order = np.random.default_rng(0).permutation(count)
  inputs, targets = inputs[order], targets[order]
  keys = jax.random.split(key, 4)
  glorot = jax.nn.initializers.glorot_normal()
  params = {
    "embedding": jax.random.normal(keys[0], (len(alphabet), embedding)),
    "inward": glorot(keys[1], (embedding, 4 * hidden), jnp.float32),
    "recurrent": glorot(keys[2], (hidden, 4 * hidden), jnp.float32),
    "gates": jnp.zeros(4 * hidden).at[:hidden].set(1.0),  # remember at first
    "head": glorot(keys[3], (hidden, len(alphabet)), jnp.float32),
    "bias": jnp.zeros(len(alphabet)),
  }
  held = 600
  return Task(
    "LSTM, text",
    params,
    _lstm_loss,
    inputs[held:],
    targets[held:],
    (inputs[:held], targets[:held]),
    1.0,
  )


def _lstm_loss(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
  def step(carry, code):
    cell, output = carry
    inward = params["embedding"][code] @ params["inward"] + params["gates"]
    keep, write, show, new = jnp.split(inward + output @ params["recurrent"], 4)
    cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(write) * jnp.tanh(new)
    output = jax.nn.sigmoid(show) * jnp.tanh(cell)
    return (cell, output), output @ params["head"] + params["bias"]

  zeros = jnp.zeros(params["recurrent"].shape[0])
  logits = jax.vmap(lambda codes: lax.scan(step, (zeros, zeros), codes)[1])(inputs)
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
