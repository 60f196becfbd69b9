"""The LSTM language model of Zaremba et al. (2014), with tied embeddings (Press and Wolf, 2016)."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from configs.schema import DTYPES, MOST_LAYERS, MOST_WIDTH, Field, integer, number, text
from train.models.layers import dropout, matmul

# What of a config's ``model`` it takes.
FIELDS: dict[str, Field] = dict(
  layers=integer(2, "of LSTM, one on the other", least=1, most=MOST_LAYERS),
  units=integer(1500, "of each layer, and of the embedding", least=1, most=MOST_WIDTH),
  dropout=number(0.65, "the share that is dropped where a layer hands over", least=0, below=1),
  init_scale=number(0.04, "weights start uniformly between its negative and itself", least=0),
  dtype=text("float32", "of the factors of products; sums are float32", *DTYPES),
)


class Layer(nnx.Module):
  """One layer, whose four gates share two matrices and have one bias each."""

  def __init__(self, units: int, init_scale: float, dtype: jnp.dtype, rngs: nnx.Rngs):
    self.from_input = _uniform((units, 4 * units), init_scale, rngs)
    self.from_hidden = _uniform((units, 4 * units), init_scale, rngs)
    self.bias = _uniform((4 * units,), init_scale, rngs)
    self.dtype = dtype

  def __call__(self, x: jax.Array, carry: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(time, batch, units) and carry (2, batch, units), to the outputs and the carry after them."""
    # What does not wait for the step before is one large product.
    gates = matmul(x, self.from_input[...], self.dtype) + self.bias[...].reshape(1, 1, -1)
    weights = self.from_hidden[...]

    def step(carry, gates):
      cell, hidden = carry
      gates = gates + matmul(hidden, weights, self.dtype)
      write, forget, new, read = jnp.split(gates, 4, axis=-1)
      cell = nnx.sigmoid(forget) * cell + nnx.sigmoid(write) * jnp.tanh(new)
      hidden = nnx.sigmoid(read) * jnp.tanh(cell)
      return (cell, hidden), hidden

    after, outputs = lax.scan(step, (carry[0], carry[1]), gates)
    return outputs, jnp.stack(after)


def _uniform(shape: tuple[int, ...], scale: float, rngs: nnx.Rngs) -> nnx.Param[jax.Array]:
  return nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -scale, scale))


class LSTM(nnx.Module):
  r"""Layers of LSTM between an embedding and its transpose.

  With :math:`\sigma` the logistic function and D dropout, layer l at time t computes

  .. math::
    (i, f, g, o) = W_x D(h^{l-1}_t) + W_h h^l_{t-1} + b, \quad
    c_t = \sigma(f)\, c_{t-1} + \sigma(i) \tanh(g), \quad h^l_t = \sigma(o) \tanh(c_t)

  and the logits are :math:`E D(h^L_t) + b`, where :math:`h^0_t` is the word's row of E. Dropout is where a
  layer hands over to the next, never from one time to the next.

  The paper's model, 2 layers of 1,500 units for 10,000 words, has 51,022,000 parameters.

  Args:
    vocabulary: how many words there are.
    units: of each layer, and of the embedding.
    layers: how many.
    dropout: the share that is dropped, from 0 to below 1.
    init_scale: parameters start uniformly between its negative and itself.
    rngs: where they come from.
    dtype: of the factors of the matrix products; sums, states, parameters and logits are float32.

  Raises:
    ValueError: for a rate of dropout out of its range.
  """

  fields: ClassVar[dict[str, Field]] = FIELDS
  # As in Zaremba et al., whose learning rate and clipping go with that.
  total_over_time: ClassVar[bool] = True

  def __init__(
    self,
    vocabulary: int,
    units: int,
    layers: int,
    dropout: float,
    init_scale: float,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
  ):
    if not 0 <= dropout < 1:
      raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}.")
    self.units, self.dropout, self.dtype = units, dropout, jnp.dtype(dtype)
    self.embedding = _uniform((vocabulary, units), init_scale, rngs)
    self.layers = nnx.List([Layer(units, init_scale, self.dtype, rngs) for _ in range(layers)])
    self.bias = _uniform((vocabulary,), init_scale, rngs)

  def start(self, count: int) -> jax.Array:
    """Silence: cells and hidden states of zeros, shape (layers, 2, count, units), float32."""
    return jnp.zeros((len(self.layers), 2, count, self.units), jnp.float32)

  def __call__(
    self, words: jax.Array, carry: jax.Array, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Logits of the word after each word.

    Args:
      words: shape (batch, time), int32.
      carry: cells and hidden states of each layer, shape (layers, 2, batch, units), float32.
      key: of dropout; None: no dropout.

    Returns:
      Logits (batch, time, vocabulary), and the carry after the last word; both float32.
    """
    handovers = len(self.layers) + 1
    keys = [None] * handovers if key is None else list(jax.random.split(key, handovers))
    drop = lambda x, key: x if key is None or not self.dropout else dropout(x, self.dropout, key)
    x = jnp.take(self.embedding[...], words.T, axis=0)
    carries = []
    for i, layer in enumerate(self.layers):
      x, after = layer(drop(x, keys[i]), carry[i])
      carries.append(after)
    x = drop(x, keys[-1])
    logits = matmul(x.swapaxes(0, 1), self.embedding[...].T, self.dtype)
    return logits + self.bias[...].reshape(1, 1, -1), jnp.stack(carries)
