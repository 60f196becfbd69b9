"""How slices travel: packed into uint32 words of static size, so that one buffer holds everything."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _checks
from rtopk_jax._select import SparseSlices

_VALUES = ("float32",)
_INDICES = ("int32",)


@dataclasses.dataclass(frozen=True)
class Wire:
  """The code of a message: k values and k indices as words.

  Values in float32 and indices in int32 are exact: what is decoded is what was sent, bit for bit.

  Args:
    values: how values are coded; ``"float32"``.
    indices: how indices are coded; ``"int32"``.

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
  """

  values: str = "float32"
  indices: str = "int32"

  def __post_init__(self):
    _checks.one_of("values", self.values, _VALUES)
    _checks.one_of("indices", self.indices, _INDICES)

  def words(self, k: int, d: int) -> int:
    """The length of a message.

    Args:
      k: entries sent.
      d: entries of the vector.

    Returns:
      How many 32-bit words it takes.
    """
    del d  # a plain index has the same size whatever it points into
    return 2 * k

  def encode(self, slices: SparseSlices) -> jax.Array:
    """The message of some slices.

    Args:
      slices: k entries of a vector.

    Returns:
      uint32 words, shape (words(k, d),).
    """
    values = slices.values.astype(jnp.float32)
    return jnp.concatenate([_to_words(values), _to_words(slices.indices)])

  def decode(self, words: jax.Array, k: int, d: int) -> SparseSlices:
    """The slices of a message.

    Args:
      words: what ``encode`` returned.
      k: entries sent.
      d: entries of the vector.

    Returns:
      The slices, values in float32.
    """
    values, indices = words[:k], words[k : 2 * k]
    return SparseSlices(
      lax.bitcast_convert_type(values, jnp.float32),
      lax.bitcast_convert_type(indices, jnp.int32),
      d,
    )


def _to_words(x: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(x, jnp.uint32)
