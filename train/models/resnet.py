"""Residual networks of basic blocks (He et al., 2015), for small and for large images."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from configs.schema import DTYPES, MOST_LAYERS, MOST_WIDTH, Field, integer, several, text

STEMS = ("small", "imagenet")

# What of a config's ``model`` it takes.
FIELDS: dict[str, Field] = dict(
  stages=several(
    (2, 2, 2, 2),
    "blocks of each stage",
    integer(2, "", least=1, most=MOST_LAYERS),
    filled=True,
    longest=8,
  ),
  width=integer(64, "channels of the first stage", least=1, most=MOST_WIDTH),
  stem=text("small", "small: a 3×3 convolution; imagenet: a 7×7 one and pooling", *STEMS),
  dtype=text("float32", "of computation; parameters and logits are float32", *DTYPES),
)

_he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def _conv(
  inputs: int, outputs: int, size: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
  return nnx.Conv(
    inputs,
    outputs,
    (size, size),
    strides=stride,
    padding=size // 2,
    use_bias=False,
    kernel_init=_he_normal,
    dtype=dtype,
    rngs=rngs,
  )


def _norm(features: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
  # Statistics are float32 whatever the dtype.
  return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
  """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where shapes differ."""

  def __init__(self, inputs: int, outputs: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.conv1 = _conv(inputs, outputs, 3, stride, dtype, rngs)
    self.norm1 = _norm(outputs, dtype, rngs)
    self.conv2 = _conv(outputs, outputs, 3, 1, dtype, rngs)
    self.norm2 = _norm(outputs, dtype, rngs)
    self.project = stride != 1 or inputs != outputs
    if self.project:
      self.conv_shortcut = _conv(inputs, outputs, 1, stride, dtype, rngs)
      self.norm_shortcut = _norm(outputs, dtype, rngs)

  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = nnx.relu(self.norm1(self.conv1(x), use_running_average=not train))
    y = self.norm2(self.conv2(y), use_running_average=not train)
    if self.project:
      x = self.norm_shortcut(self.conv_shortcut(x), use_running_average=not train)
    return nnx.relu(x + y)


class ResNet(nnx.Module):
  """A residual network of basic blocks.

  ``stages=(2, 2, 2, 2)`` with the small stem is ResNet-18 as it is used on CIFAR-10 (11,173,962
  parameters for 10 classes), ``(3, 4, 6, 3)`` with the ImageNet stem is ResNet-34 (21,797,672 for 1,000).

  Args:
    stages: blocks of each stage; each stage but the first halves the resolution and doubles the width.
    width: channels of the first stage.
    num_classes: outputs.
    channels: of the images.
    stem: "small": a 3×3 convolution; "imagenet": a 7×7 one of stride 2, and 3×3 max-pooling.
    rngs: where the initial weights come from.
    dtype: of what is computed between the layers; parameters, statistics and logits are float32.

  Raises:
    ValueError: for an unknown stem.
  """

  fields: ClassVar[dict[str, Field]] = FIELDS

  def __init__(
    self,
    stages: Sequence[int],
    width: int,
    num_classes: int,
    channels: int,
    stem: str,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
  ):
    if stem not in STEMS:
      raise ValueError(f"stem must be one of {STEMS}, got {stem!r}.")
    self.pool = stem == "imagenet"
    dtype = jnp.dtype(dtype)
    self.stem = _conv(channels, width, 7 if self.pool else 3, 2 if self.pool else 1, dtype, rngs)
    self.norm = _norm(width, dtype, rngs)
    blocks, inputs = [], width
    for stage, count in enumerate(stages):
      outputs = width * 2**stage
      for i in range(count):
        blocks.append(Block(inputs, outputs, 2 if stage and not i else 1, dtype, rngs))
        inputs = outputs
    self.blocks = nnx.List(blocks)
    self.head = nnx.Linear(inputs, num_classes, rngs=rngs)

  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Logits.

    Args:
      images: shape (batch, height, width, channels), float32.
      train: whether statistics are those of the batch, or the running ones.

    Returns:
      Shape (batch, num_classes), float32.
    """
    x = nnx.relu(self.norm(self.stem(images), use_running_average=not train))
    if self.pool:
      x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
    for block in self.blocks:
      x = block(x, train)
    return self.head(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))
