"""The library's wire: values and indices packed into uint32 words, so that one buffer holds everything."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _checks
from rtopk_jax._precision import in_32_bits
from rtopk_jax.kernels import _bitpack
from rtopk_jax.select._slices import Blocks, SparseSlices
from rtopk_jax.wire import _elias_fano, _quantize
from rtopk_jax.wire._format import WireFormat

_FLOATS = ("float32", "bfloat16", "float16")
VALUES = (*_FLOATS, *_quantize.BITS)
INDICES = ("int32", "elias_fano", "block")


@dataclasses.dataclass(frozen=True)
class Wire(WireFormat):
  r"""The code of a message: k values and k indices as words.

  With float32 values what is decoded is what was sent, bit for bit. bfloat16 and float16 are rounded to
  nearest and do not overflow. int8, int4 and int2 are rounded at random so that they are right on average: with
  s the largest magnitude of 256 values, which travels with them, and :math:`L = 2^{b-1} - 1` for b bits,

  .. math::
    \hat x = \frac sL \Big\lfloor \frac{L x}s + U \Big\rfloor, \qquad U \sim \mathrm{Unif}[0, 1), \qquad
    E[\hat x] = x.

  With error feedback, what rounding loses stays in the memory. Indices are exact. Elias and Fano's code takes
  about :math:`\log_2 \beta + 1 + d/(k \beta)` bits for each, with the better of :math:`\beta = 2^j` and
  :math:`3 \cdot 2^j` next to d/k.

  Args:
    values: "float32", "bfloat16", "float16", "int8", "int4" or "int2".
    indices: "int32"; "elias_fano" for about log₂(d/k) + 2 bits an index, 12 at a density of 0.1 %; or
      "block" for log₂(size) bits with ``scope=Block(size)``.

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
    >>> short = rtopk_jax.Wire(values="int4", indices="elias_fano")
    >>> round(32 * short.words(k=10_000, d=10_000_000) / 10_000, 1)  # bits an entry
    16.0
  """

  values: str = "float32"
  indices: str = "int32"

  def __post_init__(self):
    _checks.one_of("values", self.values, VALUES)
    _checks.one_of("indices", self.indices, INDICES)

  @property
  def is_exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
    """Whether nothing is rounded."""
    return self.values == "float32"

  @property
  def needs_blocks(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
    """Whether indices count within blocks."""
    return self.indices == "block"

  def within(self, blocks: Blocks | None) -> WireFormat:
    """As ``WireFormat.within``."""
    return _InBlocks(self, _required(blocks)) if self.needs_blocks else self

  def _value_words(self, k: int) -> int:
    if self.values in _quantize.BITS:
      return _quantize.words(k, self.values)
    return k if self.is_exact else -(-k // 2)

  def _index_words(self, k: int, d: int, blocks: Blocks | None) -> int:
    if self.indices == "block":
      return _bitpack.words(k, _required(blocks).width)
    return _elias_fano.words(k, d) if self._codes_indices(k, d) else k

  def _codes_indices(self, k: int, d: int) -> bool:
    """Whether the code of the indices is shorter than they are; it is not for very few."""
    return self.indices == "elias_fano" and _elias_fano.words(k, d) < k

  def words(self, k: int, d: int, blocks: Blocks | None = None) -> int:
    """The length of a message.

    Args:
      k: entries sent.
      d: entries of the vector.
      blocks: the block of each entry, where indices are of blocks.

    Returns:
      How many 32-bit words it takes.

    Raises:
      TypeError: when k or d is not an integer.
      ValueError: when k is below 1 or above d, or indices are of blocks and there are none.

    Examples:
      >>> import rtopk_jax
      >>> rtopk_jax.Wire(values="bfloat16").words(k=100, d=10_000)
      150
    """
    _checks.at_least("k", k, 1, integer=True)
    _checks.at_least("d", d, 1, integer=True)
    _checks.at_most("k", k, d, "the entries of the vector")
    return self._value_words(k) + self._index_words(k, d, blocks)

  @in_32_bits
  def encode(
    self, slices: SparseSlices, key: jax.Array | None = None, blocks: Blocks | None = None
  ) -> jax.Array:
    """The message of some slices.

    Args:
      slices: k entries of a vector.
      key: a PRNG key, for values that are rounded at random.
      blocks: the block of each entry, where indices are of blocks.

    Returns:
      uint32 words, shape (words(k, d),).

    Raises:
      ValueError: when the code wants a key or blocks and there are none.
    """
    (k,) = slices.indices.shape
    values, positions = slices.values.astype(jnp.float32), slices.indices.astype(jnp.int32)
    if self.values in _quantize.BITS:
      if key is None:
        raise ValueError(f"values={self.values!r} are rounded at random; pass a key to encode.")
      coded = _quantize.encode(values, self.values, key)
    elif self.is_exact:
      coded = [_to_words(values)]
    else:
      largest = float(jnp.finfo(self.values).max)
      values = jnp.clip(values, -largest, largest).astype(self.values)
      coded = [_to_words(jnp.pad(values, (0, k % 2)).reshape(-1, 2))]
    if self.indices == "block":
      blocks = _required(blocks)
      indices = _bitpack.pack(positions - blocks.begins, blocks.width)
    elif self._codes_indices(k, slices.size):
      indices = _elias_fano.encode(positions, slices.size)
    else:
      indices = [_to_words(positions)]
    return _bitpack.join([*coded, *indices])

  @in_32_bits
  def decode_values(self, words: jax.Array, k: int, d: int | None = None) -> jax.Array:
    """The values of a message alone.

    Args:
      words: what ``encode`` returned.
      k: entries sent.
      d: not used; here for the protocol.

    Returns:
      Shape (k,), float32.
    """
    del d
    coded = words[: self._value_words(k)]
    if self.values in _quantize.BITS:
      return _quantize.decode(coded, k, self.values)
    values = lax.bitcast_convert_type(coded, jnp.dtype(self.values))
    return values.reshape(-1)[:k].astype(jnp.float32)

  @in_32_bits
  def decode(self, words: jax.Array, k: int, d: int, blocks: Blocks | None = None) -> SparseSlices:
    """The slices of a message.

    Args:
      words: what ``encode`` returned.
      k: entries sent.
      d: entries of the vector.
      blocks: the block of each entry, where indices are of blocks.

    Returns:
      The slices, values in float32.
    """
    coded = words[self._value_words(k) :]
    if self.indices == "block":
      blocks = _required(blocks)
      indices = _bitpack.unpack(coded, k, blocks.width).astype(jnp.int32) + blocks.begins
    elif self._codes_indices(k, d):
      indices = _elias_fano.decode(coded, k, d)
    else:
      indices = lax.bitcast_convert_type(coded, jnp.int32)
    return SparseSlices(self.decode_values(words, k), indices, d)


@dataclasses.dataclass(frozen=True)
class _InBlocks(WireFormat):
  """A wire with the blocks of the entries that it codes."""

  wire: Wire
  blocks: Blocks

  @property
  def is_exact(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
    return self.wire.is_exact

  def words(self, k, d):
    return self.wire.words(k, d, self.blocks)

  def encode(self, slices, key=None):
    return self.wire.encode(slices, key, self.blocks)

  def decode(self, words, k, d):
    return self.wire.decode(words, k, d, self.blocks)

  def decode_values(self, words, k, d):
    return self.wire.decode_values(words, k, d)


def resolve(wire: Any) -> WireFormat:
  """The wire that None, the name of its values or an object stands for."""
  if wire is None:
    return Wire()
  if isinstance(wire, str):
    _checks.one_of("wire", wire, VALUES)
    return Wire(values=wire)
  if not isinstance(wire, WireFormat):
    raise TypeError(
      f"wire must be a rtopk_jax.Wire, the name of its values or another rtopk_jax.WireFormat, got {wire!r}."
    )
  return wire


def _required(blocks: Blocks | None) -> Blocks:
  """The blocks; refused where there are none."""
  if blocks is None:
    raise ValueError(
      'indices="block" are indices within blocks; use it with scope=rtopk_jax.Block(size).'
    )
  return blocks


def _to_words(x: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(x, jnp.uint32)
