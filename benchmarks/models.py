"""Networks as shapes: parameters, a batch and a loss, without any data or weights."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from train import models

_KEY = "threefry2x32"


@dataclasses.dataclass(frozen=True)
class Model:
  """A network to be trained.

  Attributes:
    params: a tree of ``ShapeDtypeStruct``.
    batch: one worker's share of a batch, likewise.
    loss_fn: ``loss_fn(params, batch)`` to the loss and what the network hands to its next step.
  """

  params: Any
  batch: Any
  loss_fn: Callable[[Any, Any], tuple[jax.Array, Any]]

  @property
  def size(self) -> int:
    """The number of parameters, d."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))


def model(name: str) -> Model:
  """A network in its real size.

  Args:
    name: of the paper's two, "resnet18" for images of CIFAR-10 (d = 11.2 M) and "lstm" for Penn Treebank (d = 51.0
      M); or "transformer", one of 2 layers (d = 10.6 M).

  Returns:
    The ``Model``.
  """
  return {"resnet18": resnet, "lstm": _lstm, "transformer": _transformer}[name]()


def resnet(
  batch_size: int = 128,
  stages: Sequence[int] = (2, 2, 2, 2),
  width: int = 64,
  dtype: str = "float32",
) -> Model:
  """A residual network for CIFAR-10; ResNet-18 without arguments.

  Args:
    batch_size: images of a worker.
    stages: blocks of each stage.
    width: channels of the first stage.
    dtype: of computation; parameters are float32.

  Returns:
    The ``Model``. Its batch has "image", "label" and, as a row, "stats": a worker's batch statistics.
  """
  make = lambda rngs: models.ResNet(
    stages=stages, width=width, num_classes=10, channels=3, stem="small", dtype=dtype, rngs=rngs
  )
  params, stats = jax.eval_shape(
    lambda: models.init(make, jax.random.key(0), nnx.Param, nnx.BatchStat)
  )

  def loss_fn(params, batch):
    # A worker's statistics are a row, as everything is that differs between workers.
    stats = jax.tree.map(lambda x: x[0], batch["stats"])
    network = models.rebuild(make, Param=params, BatchStat=stats)
    logits = network(batch["image"], True)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    return loss, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

  batch = {
    "image": jax.ShapeDtypeStruct((batch_size, 32, 32, 3), jnp.float32),
    "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    "stats": jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), stats),
  }
  return Model(params, batch, loss_fn)


def _lstm(streams: int = 20, unroll: int = 35, units: int = 1500, layers: int = 2) -> Model:
  make = lambda rngs: models.LSTM(
    vocabulary=10_000, units=units, layers=layers, dropout=0.65, init_scale=0.04, rngs=rngs
  )
  (params,) = jax.eval_shape(lambda: models.init(make, jax.random.key(0), nnx.Param))

  def loss_fn(params, batch):
    network = models.rebuild(make, Param=params)
    key = jax.random.wrap_key_data(batch["key"][0], impl=_KEY)
    logits, carry = network(batch["input"], batch["carry"][0], key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
    return losses.sum(axis=1).mean(), carry

  words = jax.ShapeDtypeStruct((streams, unroll), jnp.int32)
  batch = {
    "input": words,
    "target": words,
    "carry": jax.ShapeDtypeStruct((1, layers, 2, streams, units), jnp.float32),
    "key": jax.ShapeDtypeStruct((1, 2), jnp.uint32),
  }
  return Model(params, batch, loss_fn)


def _transformer(
  sequences: int = 64,
  length: int = 256,
  width: int = 512,
  heads: int = 8,
  layers: int = 2,
  words: int = 8192,
) -> Model:
  shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32)
  layer = {
    "qkv": shape(width, 3 * width),
    "out": shape(width, width),
    "up": shape(width, 4 * width),
    "down": shape(4 * width, width),
    "scales": shape(2, width),
  }
  params = {
    "embed": shape(words, width),
    "place": shape(length, width),
    "layers": [dict(layer) for _ in range(layers)],
  }
  tokens = jax.ShapeDtypeStruct((sequences, length), jnp.int32)

  def norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale

  def loss_fn(params, batch):
    x = params["embed"][batch["input"]] + params["place"]
    for own in params["layers"]:
      qkv = norm(x, own["scales"][0]) @ own["qkv"]
      q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * heads, -1), 3, axis=2)
      mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
      x = x + mixed.reshape(x.shape) @ own["out"]
      x = x + jax.nn.relu(norm(x, own["scales"][1]) @ own["up"]) @ own["down"]
    logits = x @ params["embed"].T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["target"])
    return losses.mean(), ()

  return Model(params, {"input": tokens, "target": tokens}, loss_fn)
