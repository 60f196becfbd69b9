"""The operations that platforms do differently, and for each a way that suits most of them.

``_cpu``, ``_gpu`` and ``_tpu`` say what they do otherwise. Every way is right on every platform.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels import (
  _accumulate,
  _flat_packing,
  _gather,
  _offsets,
  _prefix_sum,
  _scatter,
  _threshold,
)
from rtopk_jax.kernels._flat_packing import FlatPacking
from rtopk_jax.kernels._scatter import OfLeaves
from rtopk_jax.kernels._statistics import Statistics, Tally, ToKeys
from rtopk_jax.kernels._threshold import RaggedRows, Threshold
from rtopk_jax.vector._vector import Place, Vector


class Portable:
  """One method or number an operation.

  Attributes:
    prefers_tables: whether one table for very many ranks is quicker than a search for each.
    unrolls_search: whether all turns of a search for many ranks are one kernel.
    makes_zeros_late: whether sums are begun after the memory is made, in the memory of the gradient.
    counts_are_short: whether what counts messages has as few bytes as their number needs.
    keys_at_once: keys of blocks that are made and counted at a time, so that they stay in a cache.
    has_bits: whether a bit for each of very many things is made and read without a copy of more than that.
    bits_at_once: bits of a bound that are found by one read of what is counted.
  """

  prefers_tables = True
  unrolls_search = False
  makes_zeros_late = False
  counts_are_short = False
  keys_at_once = 1 << 20
  has_bits = True
  bits_at_once = 4

  # Loops

  def once_or_more(
    self, is_done: Callable[[Any], Any], turn: Callable[[Any], Any], start: Any
  ) -> Any:
    """``turn`` of ``turn`` of … ``start``, until what was made is done; most often one turn will do.

    Args:
      is_done: of what a turn made, and not of the start.
      turn: from the state before a turn to the state after it.
      start: the state before the first.

    Returns:
      The state after the last.
    """
    return lax.while_loop(lambda state: ~is_done(state), turn, start)

  def once(self, turn: Callable[[Any], Any], start: tuple[jax.Array, ...]) -> Any:
    """``turn`` of a state that begins with True, which it makes False.

    A loop of one turn, of which a compiler does not know that it is one: what was worked out before it is
    worked out once, and not anew for each entry that is looked up.
    """
    return lax.while_loop(lambda state: state[0], turn, start)

  def up_to(
    self, turns: int, is_done: Callable[[Any], Any], turn: Callable[[Any], Any], start: Any
  ) -> Any:
    """``turn`` of ``turn`` of … ``start``, until the state is done, which it is after so many turns.

    Args:
      turns: how many there are at most.
      is_done: of a state; turns after it change nothing that counts.
      turn: from the state before a turn to the state after it.
      start: the state before the first.

    Returns:
      The state after the last.
    """
    del turns
    return lax.while_loop(lambda state: ~is_done(state), turn, start)

  def reduce_rows(
    self, combine: Callable[[Any, Any], tuple[jax.Array, ...]], operands: tuple[jax.Array, ...]
  ) -> tuple[jax.Array, ...]:
    """Short rows of several arrays added up, each to one number."""
    zeros = tuple(_axis.varying_like(jnp.zeros((), x.dtype), x) for x in operands)
    return tuple(lax.reduce(operands, zeros, combine, (1,)))

  def offsets(self, numbers: Sequence[int], count: jax.Array) -> Sequence[_offsets.Offset]:
    """As ``_offsets.offsets``."""
    del count
    return list(numbers)

  def settled(self, x: jax.Array, count: jax.Array) -> jax.Array:
    """As ``_offsets.settled``."""
    return _offsets.settle(x, count)

  def made_once(self, make: Callable[[], jax.Array], count: jax.Array) -> jax.Array:
    """As ``_offsets.made_once``."""
    del count
    return make()

  # Counting

  def running_total(self, counts: jax.Array, most: int) -> jax.Array:
    """As ``_prefix_sum.running_total``, of many counts."""
    return _prefix_sum.in_two_steps(counts, most)

  def count_below(self, positions: jax.Array, firsts: jax.Array) -> jax.Array:
    """As ``_prefix_sum.count_below``."""
    return _prefix_sum.count_below_by_halving(positions, firsts)

  def exact_threshold(
    self,
    keys: jax.Array,
    rows: RaggedRows,
    count: jax.Array,
    everything: Threshold,
    nothing: Threshold,
    slack: jax.Array | int,
  ) -> Threshold:
    """As ``_threshold.exact_threshold``, between two thresholds that are known."""
    return _threshold.by_guesses(keys, rows, count, everything, nothing, slack)

  # Reading a vector

  def packing(self, vector: Vector, width: int, exact: bool) -> Any:
    """The vector as its thresholds are made bits of words, ``width`` of an entry."""
    firsts = _offsets.offsets([place.first for place in vector.where])
    return FlatPacking(vector.flat(), width, exact, firsts)

  def flat(self, vector: Vector) -> Vector:
    """The vector of flat arrays, as it is read to select from it."""
    return vector.flat()

  def pack_pieces(
    self, pieces: Sequence[_flat_packing.PieceReader], packed: jax.Array, groups: int
  ) -> tuple[jax.Array, Tally]:
    """The words of the pieces of a ``FlatPacking``, written over ``packed``, and what was found."""
    return _flat_packing.pack_by_rows(pieces, packed, groups)

  def statistics(self, vector: Vector, piece: int, to_keys: ToKeys) -> Statistics:
    """The statistics of a piece, in a read of its own."""
    return Statistics.of(vector.rule(*vector.arrays[piece]), to_keys)

  def read_all(self, vector: Vector, piece: int) -> jax.Array:
    """As ``_gather.read_all``."""
    return vector.read_all(piece)

  def take(self, vector: Vector, positions: jax.Array, shares: Sequence[int] | None) -> jax.Array:
    """As ``_gather.take``."""
    del shares
    return _gather.take_from_all(vector, positions)

  def join(self, parts: Sequence[jax.Array]) -> jax.Array:
    """One flat array after another."""
    return jnp.concatenate(parts)

  # Writing leaves

  def put(
    self,
    leaves: Sequence[jax.Array],
    where: Sequence[Place],
    positions: jax.Array,
    values: jax.Array,
    keep: jax.Array | bool,
    are_zero: bool,
  ) -> list[jax.Array]:
    """As ``_scatter.put``."""
    del are_zero
    return _scatter.put_in_place(leaves, where, positions, values, keep)

  def in_folds(
    self, where: Sequence[Place], lists: Sequence[Sequence[jax.Array]], function: OfLeaves
  ) -> list[list[jax.Array]]:
    """As ``_scatter.in_folds``."""
    return [list(leaves) for leaves in function(where, [list(leaves) for leaves in lists])]

  def sums(self, where: Sequence[Place], entries: int) -> Any:
    """What adds up messages of so many entries in all to leaves."""
    del entries
    return _accumulate.InPlace(where)

  def add_part(self, leaf: jax.Array, part: _accumulate.Part) -> tuple[jax.Array, jax.Array]:
    """Part of a message added to a leaf, and by how many its entries that are not zero have become more."""
    return _accumulate.add_in_turns(leaf, part)
