"""How slices travel: packed into uint32 words of static size, so that one buffer holds everything."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _checks, _elias_fano
from rtopk_jax._select import SparseSlices

_VALUES = ("float32", "bfloat16", "float16")
_INDICES = ("int32", "elias_fano")


@dataclasses.dataclass(frozen=True)
class Wire:
  """The code of a message: k values and k indices as words.

  With float32 values what is decoded is what was sent, bit for bit. Shorter ones are rounded to nearest
  and do not overflow; with error feedback, what rounding loses stays in the memory. Indices are exact.

  Args:
    values: "float32", or "bfloat16" or "float16" for half the bits.
    indices: "int32", or "elias_fano" for about log₂(d/k) + 2 bits an index: 12 at a density of 0.1 %.

  Raises:
    ValueError: for a code that does not exist.

  Examples:
    >>> import jax.numpy as jnp, rtopk_jax
    >>> wire = rtopk_jax.Wire()
    >>> slices = rtopk_jax.SparseSlices(jnp.array([0.5, -2.0]), jnp.array([3, 7]), size=10)
    >>> words = wire.encode(slices)
    >>> words.shape == (wire.words(k=2, d=10),), str(words.dtype)
    (True, 'uint32')
    >>> wire.decode(words, k=2, d=10).values.tolist()
    [0.5, -2.0]
    >>> short = rtopk_jax.Wire(values="bfloat16", indices="elias_fano")
    >>> 32 * short.words(k=10_000, d=10_000_000) / 10_000  # bits an entry
    27.968
  """

  values: str = "float32"
  indices: str = "int32"

  def __post_init__(self):
    _checks.one_of("values", self.values, _VALUES)
    _checks.one_of("indices", self.indices, _INDICES)

  def _value_words(self, k: int) -> int:
    return k if self.values == "float32" else -(-k // 2)

  def _codes_indices(self, k: int, d: int) -> bool:
    """Whether the code of the indices is shorter than they are; it is not for very few."""
    return self.indices == "elias_fano" and _elias_fano.words(k, d) < k

  def words(self, k: int, d: int) -> int:
    """The length of a message.

    Args:
      k: entries sent.
      d: entries of the vector.

    Returns:
      How many 32-bit words it takes.
    """
    return self._value_words(k) + (_elias_fano.words(k, d) if self._codes_indices(k, d) else k)

  def encode(self, slices: SparseSlices) -> jax.Array:
    """The message of some slices.

    Args:
      slices: k entries of a vector.

    Returns:
      uint32 words, shape (words(k, d),).
    """
    (k,) = slices.indices.shape
    values = slices.values.astype(jnp.float32)
    if self.values != "float32":
      largest = float(jnp.finfo(self.values).max)
      values = jnp.clip(values, -largest, largest).astype(self.values)
      values = jnp.pad(values, (0, k % 2)).reshape(-1, 2)
    if self._codes_indices(k, slices.size):
      indices = _elias_fano.encode(slices.indices, slices.size)
    else:
      indices = _to_words(slices.indices)
    return jnp.concatenate([_to_words(values), indices])

  def decode(self, words: jax.Array, k: int, d: int) -> SparseSlices:
    """The slices of a message.

    Args:
      words: what ``encode`` returned.
      k: entries sent.
      d: entries of the vector.

    Returns:
      The slices, values in float32.
    """
    split = self._value_words(k)
    values = lax.bitcast_convert_type(words[:split], jnp.dtype(self.values))
    if self._codes_indices(k, d):
      indices = _elias_fano.decode(words[split:], k, d)
    else:
      indices = lax.bitcast_convert_type(words[split:], jnp.int32)
    return SparseSlices(values.reshape(-1)[:k].astype(jnp.float32), indices, d)


def _to_words(x: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(x, jnp.uint32)
