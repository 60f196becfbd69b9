"""What one read of a whole vector adds up: squares, the largest key, how many entries are above thresholds."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis

# Entries of a row of what is added up.
_ROW = 512

# From entries to their keys.
ToKeys = Callable[[jax.Array], jax.Array]


class Statistics(NamedTuple):
  """What a read of a whole vector tells besides.

  Attributes:
    square: the sum of its entries' squares.
    largest: its largest key.
  """

  square: jax.Array
  largest: jax.Array

  @classmethod
  def of(cls, entries: jax.Array, to_keys: ToKeys) -> "Statistics":
    """Of some entries."""
    return cls(jnp.sum(square(entries)), jnp.max(to_keys(entries)))

  @classmethod
  def by_rows(cls, entries: jax.Array, to_keys: ToKeys) -> "Statistics":
    """Of flat entries: compilers for CPUs vectorise what makes several numbers of a row."""
    whole = entries.size // _ROW * _ROW
    found = []
    for part in (entries[:whole].reshape(-1, _ROW), entries[whole:].reshape(1, -1)):
      zeros = (_axis.varying_like(zero, entries) for zero in (jnp.float32(0), jnp.int32(0)))
      squares, keys = lax.reduce((square(part), to_keys(part)), tuple(zeros), sum_and_max, (1,))
      found.append(cls(jnp.sum(squares), jnp.max(keys, initial=0)))
    return found[0].with_(found[1])

  @classmethod
  def of_keys(cls, keys: jax.Array, dtype: jax.typing.DTypeLike) -> "Statistics":
    """Of each row of keys by magnitude, shape (rows,) both, -1 being the key of what is not there."""
    there = jnp.maximum(keys, 0)
    bits = there.astype(jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}"))
    squares = square(lax.bitcast_convert_type(bits, dtype))
    zeros = (_axis.varying_like(zero, keys) for zero in (jnp.float32(0), jnp.int32(0)))
    return cls(*lax.reduce((squares, there), tuple(zeros), sum_and_max, (1,)))

  @classmethod
  def of_rows(cls, rows: Sequence[Sequence[jax.Array]]) -> "Statistics":
    """Of what is known of rows, their sums of squares and their largest keys: several times shape (rows,) each."""
    squares, keys = (jnp.concatenate(x) for x in zip(*rows, strict=True))
    zeros = tuple(_axis.varying_like(jnp.zeros((), x.dtype), x) for x in (squares, keys))
    return cls(*lax.reduce((squares, keys), zeros, sum_and_max, (0,)))

  def with_(self, other: "Statistics") -> "Statistics":
    """Of the entries of both."""
    return Statistics(self.square + other.square, jnp.maximum(self.largest, other.largest))


def sum_and_max(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  """The sums of two tuples, number by number, but of the last numbers, which are keys, the larger one."""
  return (*(x + y for x, y in zip(a[:-1], b[:-1], strict=True)), jnp.maximum(a[-1], b[-1]))


def square(entries: jax.Array) -> jax.Array:
  """The squares of some entries, in float32."""
  return jnp.square(entries.astype(jnp.float32))


class Tally(NamedTuple):
  """What some entries add up to.

  Attributes:
    statistics: of all.
    in_low: how many of each group are above its lower threshold.
    in_high: and above its higher one.
  """

  statistics: Statistics
  in_low: jax.Array
  in_high: jax.Array

  @classmethod
  def nothing(cls, groups: int) -> "Tally":
    zero = jnp.zeros(groups, jnp.int32)
    return cls(Statistics(jnp.float32(0), jnp.int32(0)), zero, zero)

  def with_(self, other: "Tally") -> "Tally":
    """Of the entries of both, which are of the same groups."""
    statistics = self.statistics.with_(other.statistics)
    return Tally(statistics, self.in_low + other.in_low, self.in_high + other.in_high)

  @classmethod
  def of_groups(cls, parts: Sequence["Tally"], groups: int) -> "Tally":
    """Of all pieces, whose runs are of one group or each of one of its own."""
    statistics = functools.reduce(Statistics.with_, [part.statistics for part in parts])
    counts = (jnp.concatenate(x) for x in zip(*(part[1:] for part in parts), strict=True))
    return cls(statistics, *(x.reshape(groups, -1).sum(axis=1) for x in counts))
