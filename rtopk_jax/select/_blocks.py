"""Selection within blocks of a leaf: each run of so many entries has r and k of its own.

Blocks lie as rows below one another. ``_rows`` lists a few candidates of each row, with their entries, in one read of
the vector. The rest is done with the lists of all rows at once: exactly r of a row's largest are told from the others
by counting, k of those are drawn by random keys, and what is drawn is listed in order. Nothing is sorted.

Passes over d: one, from which the statistics come as well. What is counted is in the cache.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax.kernels import _bitpack
from rtopk_jax.kernels._bitset import BitSet
from rtopk_jax.kernels._offsets import made_once
from rtopk_jax.kernels._statistics import Statistics
from rtopk_jax.kernels._threshold import UniformRows, above, exact_threshold
from rtopk_jax.select._keys import (
  LARGEST_KEY,
  RANDOM_BELOW,
  SORT_BELOW,
  magnitude_keys,
  random_keys,
)
from rtopk_jax.select._rows import Candidates, Rows, Tile
from rtopk_jax.select._selection import Selection
from rtopk_jax.select._slices import Blocks
from rtopk_jax.vector._vector import ALIGN, MAX_SIZE, Vector

# Keys of a row that are compared with each other.
_SHORT = 64


@dataclasses.dataclass(frozen=True)
class _Set:
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
  def all_of(cls, vector: Vector, size: int) -> list["_Set"]:
    """All blocks of a vector, in order."""
    sets = []
    for i, place in enumerate(vector.where):
      whole = place.runs[0].size // size
      if len(place.runs) == 1 and whole:
        begins = size * np.arange(whole)
        # Words of a row are its own, and bits are counted in int32.
        together = MAX_SIZE // (size + ALIGN)
        for part in np.split(begins, range(together, whole, together)):
          sets.append(cls(i, part, np.zeros_like(part), np.full_like(part, size), size))
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
        sets.append(cls(i, begins, starts - begins, lengths, int(max(lengths))))
    return sets

  @property
  def is_regular(self) -> bool:
    """Whether all that the rows hold, one after another, is what the piece holds."""
    return bool(np.all(self.lengths == self.width)) and bool(
      np.all(np.diff(self.begins) == self.width)
    )

  def read(self, vector: Vector, key: jax.Array | None) -> Callable[[jax.Array, int], Tile]:
    """What reads so many rows of a vector of flat arrays, from one on; with random keys under a key."""

    def rows(
      first: jax.Array, count: int
    ) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
      """The first entry of each row, the entries, and which of some keys are of the block."""
      if self.is_regular:
        begin = first * np.int32(self.width) + np.int32(self.begins[0])
        entries = vector.read(self.piece, begin, count * self.width)
        begins = begin + np.int32(self.width) * lax.iota(jnp.int32, count)
        return begins, entries.reshape(count, self.width), lambda keys: keys
      begins, skipped, lengths = (
        lax.dynamic_slice(jnp.asarray(x, jnp.int32), (first,), (count,))
        for x in (self.begins, self.skipped, self.lengths)
      )
      entries = jax.vmap(lambda begin: vector.read(self.piece, begin, self.width))(begins)
      number = lax.iota(jnp.int32, self.width)[None] - skipped[:, None]
      there = (number >= 0) & (number < lengths[:, None])
      return begins, entries, lambda keys: jnp.where(there, keys, -1)

    def tile(first: jax.Array, count: int) -> Tile:
      begins, entries, where_there = rows(first, count)
      drawn = None
      if key is not None:
        drawn = random_keys(jax.random.fold_in(key, first), entries.size)
        drawn = where_there(drawn.reshape(entries.shape))
      magnitudes = made_once(lambda: where_there(magnitude_keys(rows(first, count)[1])))
      take = lambda columns: vector.take_from(self.piece, begins[:, None] + columns)
      return Tile(magnitudes, drawn, take, entries.dtype)

    return tile


class Ranked(Protocol):
  """What is asked of a selector: k of the r largest of a block."""

  @property
  def method(self) -> str:
    """How they are found."""
    ...

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
  sets = _Set.all_of(flat, size)
  parts, sent, large = [], [], []
  for number, blocks in enumerate(sets):
    k, r = _counts(selector, blocks.lengths, num_workers)
    is_random = bool(np.all(r == blocks.lengths))
    # Where magnitudes do not matter, keys are random and the k largest of them are the draw.
    wanted = k if is_random else r
    read = blocks.read(flat, key_of(number) if is_random else None)
    is_short = blocks.lengths.size * blocks.width <= SORT_BELOW
    parts.append(Rows(read, wanted, blocks.width, is_random, is_short or selector.method == "sort"))
    sent.append(k)
    large.append(wanted)
  found = Candidates.of(parts, flat.read(0, jnp.int32(0), 1))
  begins = np.concatenate([blocks.begins + flat.where[blocks.piece].first for blocks in sets])
  k, r = np.concatenate(sent), np.concatenate(large)
  positions, entries = _chosen(found, begins, key_of(len(sets)), k, r)
  statistics = Statistics(jnp.sum(found.square), jnp.max(found.largest))
  lengths = np.concatenate([blocks.lengths for blocks in sets]).tolist()
  firsts = begins + np.concatenate([blocks.skipped for blocks in sets])
  of_entries = Blocks(np.repeat(firsts, k).astype(np.int32), size)
  selection = Selection(positions, entries, entries, statistics)
  return selection, of_entries, selector.scales(lengths, num_workers)


def _counts(
  selector: Ranked, lengths: np.ndarray, num_workers: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """K and r of blocks of some lengths."""
  different, which = np.unique(lengths, return_inverse=True)
  counts = np.array([selector.counts(int(x), num_workers) for x in different])[which]
  return counts[:, 0], counts[:, 1]


def _chosen(
  found: Candidates, begins: np.ndarray, key: jax.Array, k: np.ndarray, r: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Positions and entries of a random k of the r largest candidates of each row.

  Args:
    found: the candidates.
    begins: the position of each row's first column.
    key: of the draw.
    k: how many of each row are drawn.
    r: of how many.
  """
  rows, room = found.columns.shape
  keys = magnitude_keys(found.entries) if found.keys is None else found.keys
  there = lax.iota(jnp.int32, room)[None] < found.count[:, None]
  chosen = _largest_of(jnp.where(there, keys, -1), r, LARGEST_KEY)
  if not np.array_equal(k, r):
    drawn = random_keys(key, keys.size).reshape(keys.shape)
    chosen = _largest_of(jnp.where(chosen, drawn, -1), k, RANDOM_BELOW)
  most = int(max(k))
  ranks = jnp.broadcast_to(lax.iota(jnp.int32, most)[None], (rows, most))
  slots = BitSet(_bitpack.of_members(chosen), 1).locate_in_rows(ranks)
  slots += lax.iota(jnp.int32, rows)[:, None] * np.int32(room)
  at = lambda x: x.reshape(-1).at[slots].get(mode="promise_in_bounds")
  positions = at(found.columns) + jnp.asarray(begins, jnp.int32)[:, None]
  positions, entries = positions.reshape(-1), at(found.entries).reshape(-1)
  if min(k) == most:
    return positions, entries
  drawn = np.flatnonzero(np.arange(most) < k[:, None]).astype(np.int32)
  return tuple(x.at[drawn].get(mode="promise_in_bounds") for x in (positions, entries))


def _largest_of(keys: jax.Array, counts: np.ndarray, highest: int) -> jax.Array:
  """Which keys are so many largest of their row, which is not long."""
  wanted, lists = jnp.asarray(counts, jnp.int32), UniformRows(keys.shape)
  if keys.shape[1] <= _SHORT:
    # How many are above each: of a few keys the bits of a threshold would take longer to find.
    number = lists.position()
    ranks = jnp.zeros_like(keys)
    for i in range(keys.shape[1]):
      one = keys[:, i : i + 1]
      ranks += ((one > keys) | ((one == keys) & (i < number))).astype(jnp.int32)
    return ranks < wanted[:, None]
  there = _bitpack.by_halves(lax.add, (keys >= 0).astype(jnp.int32), axis=1)
  zero = jnp.zeros_like(wanted)
  return above(keys, lists, exact_threshold(keys, lists, wanted, there, zero, zero + highest))
