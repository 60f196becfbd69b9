"""The k-bit scheme of Theorem 1, bit by bit (paper, Section IV)."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from rtopk_jax import _checks
from rtopk_jax.estimation import _codebook


@functools.cache
def max_ones(dimension: int, bits: int, *, signed: bool = False) -> int:
  r"""k′, the most ones that a message of k bits has room for (paper, Section IV, step (ii)).

  The largest k′ <= d with

  .. math::
    \lceil \log_2 (d + 1) \rceil + \Big\lceil \log_2 \sum_{i \le k'} \binom{d}{i} \Big\rceil
    + k' [\text{signed}] \le k

  Args:
    dimension: d, at least 1.
    bits: k.
    signed: whether ones carry a sign.

  Returns:
    k′, at least 1.

  Raises:
    TypeError: when d or k is not an integer.
    ValueError: when k has no room for a single one; the error names the smallest k that does.

  Examples:
    >>> from rtopk_jax import estimation
    >>> estimation.max_ones(dimension=1000, bits=100), estimation.max_ones(dimension=1000, bits=20)
    (11, 1)
  """
  _checks.at_least("dimension", dimension, 1, integer=True)
  _checks.at_least("bits", bits, 1, integer=True)
  _checks.flag("signed", signed)
  header = _header_bits(dimension)
  count = 0
  for i, total in enumerate(_codebook.sizes(dimension)):
    if header + _width(total) + i * signed > bits:
      break
    count = i
  if count == 0:
    raise ValueError(
      f"bits = {bits} has no room for a single one among dimension = {dimension}: the smallest k "
      f"that has is {header + _width(1 + dimension) + signed}."
    )
  return count


def _header_bits(dimension: int) -> int:
  return _width(dimension + 1)


def _width(count: int) -> int:
  """Bits that tell ``count`` things apart."""
  return (count - 1).bit_length()


class Decoded(NamedTuple):
  r"""What the server reads in a message.

  Attributes:
    sample: :math:`\tilde X`, the ones that were kept with their signs, shape (d,), float64.
    total: :math:`\|X\|_1`, the ones there were.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> code = estimation.BernoulliCode(dimension=8, bits=12)
    >>> message = code.encode(np.array([0, 1, 0, 0, 0, 0, 0, 0]), np.random.default_rng(0))
    >>> found = code.decode(message)
    >>> found.total, found.sample.tolist()
    (1, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
  """

  sample: np.ndarray
  total: int


@dataclasses.dataclass(frozen=True)
class BernoulliCode:
  r"""The encoder and decoder of Theorem 1 for messages of at most k bits.

  A message is :math:`\|X\|_1` in :math:`\lceil \log_2 (d+1) \rceil` bits, then the number of
  :math:`\tilde X` in a list of all vectors with at most k′ ones, then for a signed sample a bit for each
  of its entries. :math:`\tilde X` is X where it has at most k′ ones, and else a uniformly random k′ of
  them (paper, Section IV, steps (i) to (iii)).

  Attributes:
    dimension: d.
    bits: k.
    signed: whether samples have entries in {−1, 0, 1} rather than {0, 1}.

  Raises:
    TypeError: when d or k is not an integer.
    ValueError: when k has no room for a single one.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> code = estimation.BernoulliCode(dimension=6, bits=8)
    >>> message = code.encode(np.array([0, 1, 0, 0, 1, 1]), np.random.default_rng(0))
    >>> message.size, code.max_ones
    (8, 2)
    >>> code.decode(message)
    Decoded(sample=array([0., 0., 0., 0., 1., 1.]), total=3)
  """

  dimension: int
  bits: int
  signed: bool = False

  def __post_init__(self):
    max_ones(self.dimension, self.bits, signed=self.signed)

  @property
  def max_ones(self) -> int:
    """k′, the most ones a message carries."""
    return max_ones(self.dimension, self.bits, signed=self.signed)

  @functools.cached_property
  def _codewords(self) -> int:
    return _codebook.size(self.dimension, self.max_ones)

  def encode(self, sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The message of one node.

    Args:
      sample: X after quantising, shape (d,), entries in {0, 1}, or {−1, 0, 1} when signed.
      rng: draws which ones are kept.

    Returns:
      At most k bits, uint8 zeros and ones.

    Raises:
      ValueError: when the sample has another shape or other entries.
    """
    sample = np.asarray(sample)
    if sample.shape != (self.dimension,):
      raise ValueError(f"sample must have shape {(self.dimension,)}, got {sample.shape}.")
    allowed = (-1, 0, 1) if self.signed else (0, 1)
    if not np.isin(sample, allowed).all():
      raise ValueError(f"sample must have entries in {allowed}, got {np.unique(sample)[:8]}.")
    ones = np.flatnonzero(sample)
    kept = ones
    if ones.size > self.max_ones:
      kept = np.sort(rng.choice(ones, self.max_ones, replace=False, shuffle=False))
    number = _codebook.rank(kept.tolist(), self.dimension)
    message = np.concatenate(
      [
        _to_bits(ones.size, _header_bits(self.dimension)),
        _to_bits(number, _width(self._codewords)),
        (sample[kept] < 0).astype(np.uint8) if self.signed else np.zeros(0, np.uint8),
      ]
    )
    if message.size > self.bits:
      raise RuntimeError(f"a message of {message.size} bits was made, where bits = {self.bits}.")
    return message

  def decode(self, message: np.ndarray) -> Decoded:
    """What a message says.

    Args:
      message: bits as ``encode`` makes them.

    Returns:
      ``Decoded``.

    Raises:
      ValueError: when ``encode`` makes no such message.
    """
    message = np.asarray(message)
    header, width = _header_bits(self.dimension), _width(self._codewords)
    total = _from_bits(message[:header])
    number = _from_bits(message[header : header + width])
    if total > self.dimension or number >= self._codewords:
      raise ValueError(f"message has total {total} and codeword {number}, which no sample has.")
    positions = _codebook.unrank(number, self.dimension)
    signs = message[header + width :]
    expected = min(total, self.max_ones)
    if len(positions) != expected or signs.size != expected * self.signed:
      raise ValueError(
        f"message has {len(positions)} ones and {signs.size} sign bits, where a sample with {total} "
        f"ones makes {expected} and {expected * self.signed}."
      )
    sample = np.zeros(self.dimension)
    sample[positions] = 1 - 2 * signs.astype(np.float64) if self.signed else 1
    return Decoded(sample, total)

  def estimate(self, messages: Iterable[np.ndarray]) -> np.ndarray:
    r"""The server's estimate, :math:`\hat\theta = \frac1n \sum_i \tilde X_i / S_i` (paper, Section IV).

    With :math:`S_i = \min(1, k' / \|X_i\|_1)`.

    Args:
      messages: one a node, at least one.

    Returns:
      Shape (d,), float64.

    Raises:
      ValueError: when there is no message, or one that ``encode`` does not make.
    """
    estimate, count = np.zeros(self.dimension), 0
    for message in messages:
      sample, total = self.decode(message)
      estimate += sample * max(1.0, total / self.max_ones)
      count += 1
    if count == 0:
      raise ValueError("messages is empty; the estimate is a mean over nodes.")
    return estimate / count


def _to_bits(number: int, width: int) -> np.ndarray:
  """A number as bits, the highest first."""
  return np.array([int(bit) for bit in f"{number:0{width}b}"], np.uint8)


def _from_bits(bits: np.ndarray) -> int:
  return int("".join(map(str, bits.tolist())) or "0", 2)
