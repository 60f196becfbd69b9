"""A decoder-only transformer, with positions by rotation (Vaswani et al., 2017; Su et al., 2021)."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from configs.schema import (
  DTYPES,
  MOST_LAYERS,
  MOST_WIDTH,
  Field,
  flag,
  integer,
  number,
  text,
)
from train.models.layers import dropout, matmul

# What of a config's ``model`` it takes.
FIELDS: dict[str, Field] = dict(
  layers=integer(4, "of attention and a network, one on the other", least=1, most=MOST_LAYERS),
  heads=integer(
    4,
    "of attention in a layer; each has width/heads entries, an even number",
    least=1,
    most=MOST_WIDTH,
  ),
  width=integer(
    128, "of what goes from layer to layer, and of the embedding", least=2, most=MOST_WIDTH
  ),
  expansion=integer(
    4, "how many times wider a layer's network is inside", least=1, most=MOST_LAYERS
  ),
  tied=flag(True, "whether the embedding is the output's matrix, too"),
  dropout=number(0.0, "the share of what a layer adds that is dropped", least=0, below=1),
  init_scale=number(0.02, "the standard deviation that weights start with", least=0),
  rotation_base=number(
    10_000.0, "the slowest of a head's turns is about one over it a position", above=1
  ),
  dtype=text("float32", "of the factors of products; sums are float32", *DTYPES),
  remat=flag(False, "whether a layer's inside is computed again for its gradient, to save memory"),
)


def _normal(shape: tuple[int, ...], scale: float, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
  return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32))


class RMSNorm(nnx.Module):
  """Divides by the root mean square of the last axis, and multiplies by weights."""

  def __init__(self, width: int):
    self.scale = nnx.Param(jnp.ones(width, jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
    return x * jax.lax.rsqrt(mean_square + 1e-6) * scale


def rotated(x: jax.Array, base: float) -> jax.Array:
  """Turns pairs of entries by angles that grow with the position, so that products know distances alone.

  Args:
    x: shape (batch, time, heads, size), size even. Entry i is paired with entry i + size/2.
    base: pair i turns by base^(-2i/size) a position.

  Returns:
    The same shape.
  """
  time, half = x.shape[1], x.shape[3] // 2
  speeds = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = jnp.arange(time, dtype=jnp.float32)[:, None] * speeds[None]
  cos, sin = (f(angles)[None, :, None, :] for f in (jnp.cos, jnp.sin))
  one, other = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], axis=-1)


class Attention(nnx.Module):
  """Every word looks at itself and those before it."""

  def __init__(
    self,
    width: int,
    heads: int,
    base: float,
    scales: tuple[float, float],
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.heads, self.base, self.dtype = heads, base, dtype
    square, (scale, out_scale) = (width, width), scales
    self.query = _normal(square, scale, rngs)
    self.key = _normal(square, scale, rngs)
    self.value = _normal(square, scale, rngs)
    self.out = _normal(square, out_scale, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*x.shape[:2], self.heads, -1)
    project = lambda weights: matmul(x, weights[...], self.dtype).reshape(shape)
    query, key = (rotated(project(w), self.base) for w in (self.query, self.key))
    factors = (y.astype(self.dtype) for y in (query, key, project(self.value)))
    found = jax.nn.dot_product_attention(*factors, is_causal=True)
    return matmul(found.reshape(x.shape), self.out[...], self.dtype)


class Network(nnx.Module):
  """Two matrices with a GELU between them, for each word by itself."""

  def __init__(
    self, width: int, inside: int, scales: tuple[float, float], dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    self.dtype, (scale, out_scale) = dtype, scales
    self.up = _normal((width, inside), scale, rngs)
    self.down = _normal((inside, width), out_scale, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return matmul(jax.nn.gelu(matmul(x, self.up[...], self.dtype)), self.down[...], self.dtype)


class Layer(nnx.Module):
  """Attention, then a network; each reads what is normalised, and adds to what is not."""

  def __init__(self, attention: Attention, network: Network, width: int, drop: float):
    self.before_attention, self.attention = RMSNorm(width), attention
    self.before_network, self.network = RMSNorm(width), network
    self.drop = drop

  def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
    keys = (None, None) if key is None else jax.random.split(key)
    x = x + _dropped(self.attention(self.before_attention(x)), self.drop, keys[0])
    return x + _dropped(self.network(self.before_network(x)), self.drop, keys[1])


def _dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  return x if key is None else dropout(x, rate, key)


class Transformer(nnx.Module):
  r"""Layers of attention and networks, normalised before each (Xiong et al., 2020).

  With N the division by the root mean square, layer l computes

  .. math::
    y = x^{l-1} + \mathrm{attention}(N(x^{l-1})), \qquad x^l = y + W_2\, \mathrm{gelu}(W_1 N(y))

  and the logits are :math:`E N(x^L)`, or :math:`H N(x^L)` with a matrix of their own. Nothing has a bias.
  Queries and keys are turned by their positions (RoPE), so that a window may have any length.

  4 layers of width 128 for 65 characters have 795,904 parameters.

  Args:
    vocabulary: how many words there are.
    layers: of attention and a network.
    heads: of attention in a layer.
    width: of what goes from layer to layer.
    expansion: how many times wider a layer's network is inside.
    tied: whether the embedding is the output's matrix, too.
    dropout: the share of the embedding, and of what a layer adds, that is dropped.
    init_scale: the standard deviation that weights start with; it is less for what adds to the sum of all layers.
    rotation_base: the slowest pair of a head turns by about 1/rotation_base a position.
    rngs: where parameters come from.
    dtype: of the factors of products, attention's among them; sums, parameters and logits are float32.
    remat: whether a layer keeps its input alone for the gradient, and computes the rest once more.

  Raises:
    ValueError: when the width cannot be dealt to the heads in pairs.
  """

  fields: ClassVar[dict[str, Field]] = FIELDS
  total_over_time: ClassVar[bool] = False

  def __init__(
    self,
    vocabulary: int,
    layers: int,
    heads: int,
    width: int,
    rngs: nnx.Rngs,
    expansion: int = 4,
    tied: bool = True,
    dropout: float = 0.0,
    init_scale: float = 0.02,
    rotation_base: float = 10_000.0,
    dtype: Any = jnp.float32,
    remat: bool = False,
  ):
    if width % (2 * heads):
      raise ValueError(
        f"model.width must be a multiple of {2 * heads}, twice the heads, got {width}."
      )
    self.drop, self.remat, self.dtype = dropout, remat, jnp.dtype(dtype)
    self.embedding = _normal((vocabulary, width), init_scale, rngs)
    # What 2 parts of each layer add up to should not grow with the number of layers.
    scales = init_scale, init_scale / (2 * layers) ** 0.5
    layer = lambda: Layer(
      Attention(width, heads, rotation_base, scales, self.dtype, rngs),
      Network(width, expansion * width, scales, self.dtype, rngs),
      width,
      dropout,
    )
    self.layers = nnx.List([layer() for _ in range(layers)])
    self.norm = RMSNorm(width)
    if not tied:
      self.head = _normal((width, vocabulary), init_scale, rngs)

  def start(self, count: int) -> tuple[()]:
    """Nothing is carried from one window to the next."""
    del count
    return ()

  def __call__(
    self, words: jax.Array, carry: tuple[()], key: jax.Array | None = None
  ) -> tuple[jax.Array, tuple[()]]:
    """Logits of the word after each word.

    Args:
      words: shape (batch, time), int32.
      carry: ``()``.
      key: of dropout; None: no dropout.

    Returns:
      Logits (batch, time, vocabulary), float32, and ``()``.
    """
    keys: list[Any] = [None] * (len(self.layers) + 1)
    if key is not None and self.drop:
      keys = list(jax.random.split(key, len(keys)))
    apply = lambda layer, x, key: layer(x, key)
    if self.remat:
      apply = nnx.remat(apply)
    x = _dropped(jnp.take(self.embedding[...], words, axis=0), self.drop, keys[-1])
    for layer, own in zip(self.layers, keys[:-1], strict=True):
      x = apply(layer, x, own)
    head = self.head[...] if hasattr(self, "head") else self.embedding[...].T
    return matmul(self.norm(x), head, self.dtype), carry
