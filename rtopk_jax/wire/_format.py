"""How slices travel, by anybody's code: the protocol of wires."""

import abc
from typing import Any

import jax

from rtopk_jax.select._slices import Blocks, SparseSlices


class WireFormat(abc.ABC):
  """The code of a message: k values and k indices as 32-bit words of static number.

  ``Wire`` is the library's. One of your own is a frozen dataclass with three methods, ``words``, ``encode`` and
  ``decode``. With error feedback, whatever decoding does not give back stays in the memory: what is sent is what
  ``decode`` makes of it. ``decode_values`` and ``is_exact`` may be written too, to save work.

  Attributes:
    is_exact: whether what is decoded is what was encoded, bit for bit.
    needs_blocks: whether indices count from the beginning of a block, which every entry has to have.

  Examples:
    >>> import dataclasses, jax, jax.numpy as jnp, rtopk_jax
    >>> @dataclasses.dataclass(frozen=True)
    ... class Pairs(rtopk_jax.WireFormat):
    ...   def words(self, k, d):
    ...     return 2 * k
    ...   def encode(self, slices, key=None):
    ...     bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.uint32)
    ...     return jnp.concatenate([bits(slices.values), bits(slices.indices)])
    ...   def decode(self, words, k, d):
    ...     bits = lambda x, dtype: jax.lax.bitcast_convert_type(x, dtype)
    ...     return rtopk_jax.SparseSlices(bits(words[:k], jnp.float32), bits(words[k:], jnp.int32), d)
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.01), "data", wire=Pairs(), dense=False)
    >>> update = lambda g: tx.update(g, tx.init(g))[0]
    >>> jax.jit(jax.vmap(update, out_axes=None, axis_name="data"))(jnp.ones((4, 300))).sum()
    Array(3., dtype=float32)
  """

  is_exact: bool = False
  needs_blocks: bool = False

  @abc.abstractmethod
  def words(self, k: int, d: int) -> int:
    """The length of a message.

    Args:
      k: entries sent.
      d: entries of the vector, or so many that every index is below.

    Returns:
      How many 32-bit words it takes.
    """

  @abc.abstractmethod
  def encode(self, slices: SparseSlices, key: jax.Array | None = None) -> jax.Array:
    """The message of some slices; it is traced, and may be mapped by ``jax.vmap``.

    Args:
      slices: k entries of a vector, float32, with strictly ascending indices.
      key: a PRNG key, for values that are rounded at random.

    Returns:
      uint32 words, shape (words(k, d),).
    """

  @abc.abstractmethod
  def decode(self, words: jax.Array, k: int, d: int) -> SparseSlices:
    """The slices of a message; as ``encode``.

    Args:
      words: what ``encode`` returned.
      k: entries sent.
      d: as of ``words``.

    Returns:
      The slices, values in float32 and indices as they were.
    """

  def decode_values(self, words: jax.Array, k: int, d: int) -> jax.Array:
    """The values of a message alone.

    Args:
      words: what ``encode`` returned.
      k: entries sent.
      d: as of ``words``.

    Returns:
      Shape (k,), float32.
    """
    return self.decode(words, k, d).values

  def within(self, blocks: Blocks | None) -> "WireFormat":
    """This code for messages whose entries are in known blocks.

    Args:
      blocks: where they are; None: there are none.

    Returns:
      The code that is used for them: itself, but for a ``Wire`` with indices within blocks.
    """
    del blocks
    return self


def check_words(wire: Any, words: jax.Array, count: int) -> jax.Array:
  """Words of a message, refused where their number is not what the wire says."""
  if words.shape != (count,) or words.dtype != jax.numpy.uint32:
    raise TypeError(
      f"encode of {wire!r} must return {count} uint32 words, as its words(k, d) says, got {words.dtype} of shape "
      f"{words.shape}."
    )
  return words
