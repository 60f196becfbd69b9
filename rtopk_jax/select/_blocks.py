"""Selection within blocks of a leaf: each run of so many entries has r and k of its own.

Blocks lie as rows below one another. ``_rows`` makes a bit set of the r largest of each row, in one read of the vector.
Which k of the r are sent does not depend on what they are: their ranks are drawn beforehand, by ``_ranks``. Positions
and entries of these ranks are looked up while the row is still in the cache. Nothing is sorted.

Passes over d: one, from which the statistics come as well. What is counted is in the cache.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax.kernels import here
from rtopk_jax.kernels._statistics import Statistics
from rtopk_jax.select import _ranks, _rows
from rtopk_jax.select._keys import magnitude_keys
from rtopk_jax.select._rows import Chunk, Rows
from rtopk_jax.select._selection import Selection
from rtopk_jax.select._slices import Blocks
from rtopk_jax.vector._vector import ALIGN, MAX_SIZE, Vector


@dataclasses.dataclass(frozen=True)
class _BlockRows:
  """Blocks of a piece that are selected from together, a row each.

  Attributes:
    piece: its number.
    begins: the number in the piece of the entry in each row's first column.
    skipped: entries of the row before the block, which belong to another.
    lengths: entries of each block.
    width: entries of a row.
  """

  piece: int
  begins: np.ndarray
  skipped: np.ndarray
  lengths: np.ndarray
  width: int

  @classmethod
  def all_of(cls, vector: Vector, size: int) -> list["_BlockRows"]:
    """All blocks of a vector, in order."""
    parts = []
    for i, place in enumerate(vector.where):
      whole = place.runs[0].size // size
      if len(place.runs) == 1 and whole:
        begins = size * np.arange(whole)
        # Words of a row are its own, and bits are counted in int32.
        together = MAX_SIZE // (size + ALIGN)
        for part in np.split(begins, range(together, whole, together)):
          parts.append(cls(i, part, np.zeros_like(part), np.full_like(part, size), size))
        rest = place.size - whole * size
        starts, lengths = ([whole * size], [rest]) if rest else ([], [])
      else:
        pieces = [np.arange(run.begin, run.begin + run.size, size) for run in place.runs]
        ends = [run.begin + run.size for run in place.runs]
        starts = np.concatenate(pieces)
        lengths = np.concatenate(
          [np.minimum(x + size, end) - x for x, end in zip(pieces, ends, strict=True)]
        )
      if len(starts):
        starts, lengths = np.array(starts), np.array(lengths)
        # A row must not reach beyond the end of the piece.
        begins = np.minimum(starts, place.size - max(lengths))
        parts.append(cls(i, begins, starts - begins, lengths, int(max(lengths))))
    return parts

  @property
  def is_regular(self) -> bool:
    """Whether all that the rows hold, one after another, is what the piece holds."""
    return bool(np.all(self.lengths == self.width)) and bool(
      np.all(np.diff(self.begins) == self.width)
    )

  def read(self, vector: Vector) -> Callable[[jax.Array, int], Chunk]:
    """A function that reads ``count`` rows of a vector of flat arrays, from row ``first`` on."""

    def begins(first: jax.Array, count: int) -> jax.Array:
      if self.is_regular:
        begin = first * np.int32(self.width) + np.int32(self.begins[0])
        return begin + np.int32(self.width) * lax.iota(jnp.int32, count)
      return lax.dynamic_slice(jnp.asarray(self.begins, jnp.int32), (first,), (count,))

    def keys(first: jax.Array, count: int) -> jax.Array:
      begin = begins(first, count)
      if self.is_regular:
        entries = vector.read(self.piece, begin[0], count * self.width)
        return magnitude_keys(entries.reshape(count, self.width))
      entries = jax.vmap(lambda begin: vector.read(self.piece, begin, self.width))(begin)
      skipped, lengths = (
        lax.dynamic_slice(jnp.asarray(x, jnp.int32), (first,), (count,))[:, None]
        for x in (self.skipped, self.lengths)
      )
      number = lax.iota(jnp.int32, self.width)[None] - skipped
      return jnp.where((number >= 0) & (number < lengths), magnitude_keys(entries), -1)

    def chunk(first: jax.Array, count: int) -> Chunk:
      def look_up(columns):
        entries = vector.take_from(self.piece, begins(first, count)[:, None] + columns)
        return entries, *Statistics.of_keys(keys(first, count), entries.dtype)

      return Chunk(lambda: keys(first, count), look_up)

    return chunk


class Ranked(Protocol):
  """What is asked of a selector: k of the r largest of a block."""

  def counts(self, size: int, num_workers: int | None = None) -> tuple[int, int]:
    """K and r of a block of some size."""
    ...

  def scales(self, sizes: Sequence[int], num_workers: int | None = None) -> jax.Array | None:
    """The factor of every value sent of blocks of some sizes."""
    ...


def select(
  selector: Ranked,
  vector: Vector,
  size: int,
  key_of: Callable[[int], jax.Array],
  num_workers: int | None,
) -> tuple[Selection, Blocks, jax.Array | None]:
  """Selects in every block of a vector in pieces; the last block of a run may be shorter.

  Args:
    selector: of one density.
    vector: d entries.
    size: entries of a block.
    key_of: PRNG keys by number.
    num_workers: stands in for r/k.

  Returns:
    The selection, each entry's block, and the factor of each value, if any.
  """
  flat = vector.flat()
  parts = _BlockRows.all_of(flat, size)
  k, r = _counts(selector, np.concatenate([blocks.lengths for blocks in parts]), num_workers)
  ranks = _ranks.draw(key_of(0), k, r, flat.read(0, jnp.int32(0), 1))
  positions, entries, statistics, firsts, row = [], [], [], [], 0
  for blocks in parts:
    rows = slice(row, row + blocks.lengths.size)
    row = rows.stop
    most, first = int(max(k[rows])), flat.where[blocks.piece].first
    asked = Rows(blocks.read(flat), r[rows], blocks.width)
    columns, found, *of_rows = _rows.largest(asked, ranks[rows, :most])
    begins = jnp.asarray(blocks.begins + first, jnp.int32)
    positions.append(_those_there(columns + begins[:, None], k[rows]))
    entries.append(_those_there(found, k[rows]))
    statistics.append(of_rows)
    firsts.append(np.repeat(blocks.begins + blocks.skipped + first, k[rows]))
  positions, entries = (here().join(x) for x in (positions, entries))
  lengths = np.concatenate([blocks.lengths for blocks in parts]).tolist()
  selection = Selection(positions, entries, entries, Statistics.of_rows(statistics))
  of_entries = Blocks(np.concatenate(firsts).astype(np.int32), size)
  return selection, of_entries, selector.scales(lengths, num_workers)


def _counts(
  selector: Ranked, lengths: np.ndarray, num_workers: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """K and r of blocks of some lengths."""
  different, which = np.unique(lengths, return_inverse=True)
  counts = np.array([selector.counts(int(x), num_workers) for x in different])[which]
  return counts[:, 0], counts[:, 1]


def _those_there(of_rows: jax.Array, counts: np.ndarray) -> jax.Array:
  """The first so many numbers of each row, one row after another."""
  most = of_rows.shape[1]
  if min(counts) == most:
    return of_rows.reshape(-1)
  there = np.flatnonzero(np.arange(most) < counts[:, None]).astype(np.int32)
  return of_rows.reshape(-1).at[there].get(mode="promise_in_bounds")
