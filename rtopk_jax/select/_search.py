"""The r largest of d numbers without sorting them: exact, in a little over one read of the vector.

Keys are int32 from 0 to ``LARGEST_KEY`` (the bits of a float's magnitude spell one). Ties go to the lowest
position, so that a threshold is a pair (value, index), and what lies above it is

    key > value,  or  key == value and position < index.

1. A sample of the keys puts the wanted threshold between two others, close together.
2. One read of all keys sorts entries into three kinds, two bits each, 16 to a word: above both thresholds,
   between them, below both. Where the sample misled, the two are moved and the keys read again;
   each time the gap shrinks, down to single words among equal keys, so this ends.
3. The few entries between the thresholds are listed, the exact one is found among them by counting, and those
   that lost are struck from the words.

Of a short vector the list would be long beside the words, and reading it again costs little. So it has no third
step: its thresholds are moved until they are the wanted one, down to single entries, in some eight reads.

A vector may consist of groups that each have an r of their own: every step above is one step for all groups,
whose thresholds are arrays with an entry a group. The result is a bit set, whose n-th member is found by the
running count of its group of words. A random subset takes no more than the ranks of its members.

Passes over d: one, if the vector is long, in which the sum of squares and the largest key come out as well. Temporary
memory for a vector in one array: at most d/4 + 64 r bytes and 4 KiB. Vectors of up to 40,000 entries are sorted
instead. What a platform's packing materialises comes in addition.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels import here
from rtopk_jax.kernels._bitset import BitSet
from rtopk_jax.kernels._flat_packing import FlatPacking
from rtopk_jax.kernels._statistics import Statistics, ToKeys
from rtopk_jax.kernels._threshold import (
  RaggedRows,
  Threshold,
  above,
  between,
  choose,
  exact_threshold,
  log_fraction,
)
from rtopk_jax.kernels._tiled_packing import TiledPacking
from rtopk_jax.kernels._tiles import TiledBitSet
from rtopk_jax.select._keys import LARGEST_KEY
from rtopk_jax.vector._vector import ALIGN, Vector

# A vector and how its words are made: of entries side by side, or below one another.
Packing = FlatPacking | TiledPacking

# Groups below this size are not sampled: all of their entries are between the thresholds.
_SMALL = 1 << 14
_SAMPLE = 1 << 16
# Entries of a sample that lie side by side: to fetch one of them from memory takes as long as to fetch all.
_BESIDE = 2
# Vectors of up to so many entries are read again and again.
_SHORT = 3 << 17
# Where no more than one entry in so many is looked for, words have one bit an entry.
_FEW = 320
# Thresholds are put this many standard deviations of the sample's error to both sides.
_SIGMAS = 3.5


def packing_of(vector: Vector, counts: Sequence[int]) -> Packing:
  """The vector in the form of words that suits the platform, and so many entries to be found."""
  exact = vector.size <= _SHORT
  width = 1 if exact or _FEW * sum(counts) <= vector.size else 2
  return here().packing(vector, width, exact)


def statistics_of(vector: Vector, to_keys: ToKeys) -> Statistics:
  """The statistics alone, in a read of their own."""
  parts = [here().statistics(vector, i, to_keys) for i in range(len(vector.where))]
  return functools.reduce(Statistics.with_, parts)


class InWords(NamedTuple):
  """Entries that are found, as a bit set.

  Attributes:
    packing: the vector.
    members: which.
  """

  packing: Packing
  members: BitSet | TiledBitSet

  def locate(self, ranks: jax.Array, most: int | None = None) -> jax.Array:
    """As ``BitSet.locate``."""
    return self.members.locate(ranks, most)

  def take(self, ranks: jax.Array, most: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Positions and values of some, by rank."""
    positions = self.locate(ranks, most)
    return positions, self.packing.take(positions)


class Listed(NamedTuple):
  """Entries that are found, some of a list.

  Attributes:
    positions: of the list, ascending.
    values: of the list.
    slots: where in the list those are that are found, ascending.
  """

  positions: jax.Array
  values: jax.Array
  slots: jax.Array

  def locate(self, ranks: jax.Array, most: int | None = None) -> jax.Array:
    """As ``InWords.locate``."""
    return self.take(ranks, most)[0]

  def take(self, ranks: jax.Array, most: int | None = None) -> tuple[jax.Array, jax.Array]:
    """As ``InWords.take``."""
    del most
    at = lambda array, index: array.at[index].get(mode="promise_in_bounds")
    slots = at(self.slots, ranks)
    return at(self.positions, slots), at(self.values, slots)


def largest(
  packing: Packing, counts: Sequence[int], to_keys: ToKeys
) -> tuple[InWords | Listed, Statistics]:
  """The largest keys of each group, the lowest positions of equal ones.

  Args:
    packing: d entries, and how they make words.
    counts: r of each group, from 1 to its entries.
    to_keys: from entries to their keys. It is applied wherever keys are read, so that they are never stored.

  Returns:
    Exactly sum(counts) entries, and the vector's statistics.
  """
  plan = _Plan(packing, counts)
  words, low, high, found = _three_kinds(packing, plan, to_keys)
  if packing.exact:
    return InWords(packing, packing.members(words)), found

  # Those between the thresholds, of which the largest are still to be taken.
  doubtful = packing.between(words)
  rows = RaggedRows(plan.capacities)
  listed = low.count - high.count
  begins = jnp.cumsum(listed) - listed
  number = rows.number()
  there = number < rows.spread(listed)
  ranks = jnp.minimum(number, rows.spread(listed) - 1) + rows.spread(begins)
  ranks = jnp.maximum(ranks, 0).reshape(-1)
  positions = doubtful.locate(ranks, most=ranks.size)
  # A key of -1 is below all others, so that what is not there is never above the threshold.
  values = packing.take(positions, plan.shares(packing.vector))
  keys = jnp.where(there, to_keys(values).reshape(there.shape), -1)
  exact = exact_threshold(keys, rows, plan.counts - high.count, listed, low.value, high.value)
  taken = there & above(keys, rows, exact)
  if plan.one_sided:
    # Nothing is above the higher threshold: all that are found are of the list.
    return Listed(positions, values, packing.numbers(taken, sum(counts))), found
  lost = (there & ~taken).reshape(-1)
  return InWords(packing, packing.members(packing.strike(words, positions, lost))), found


class _Plan:
  """What is known of a search before it: how each group is sampled, and how many may be in doubt.

  Attributes:
    one_sided: whether nothing is above the higher threshold, since words have one bit an entry.
    sizes: entries of each group, int32.
    counts: r of each group, int32.
    samples: how many entries of each group are sampled; 0 for none.
    targets: for each group how many keys of the sample the two guesses are to have above them, the lower one first.
    errors: by how much chance may change these, in keys of the sample.
    capacities: how many entries of each group may lie between its thresholds.
  """

  def __init__(self, packing: Packing, counts: Sequence[int]):
    sizes, total = packing.vector.counts, packing.vector.size
    self.one_sided = packing.width == 1
    self.sizes = jnp.array(sizes, jnp.int32)
    self.counts = jnp.array(counts, jnp.int32)
    self.samples, self.targets, self.errors, capacities = [], [], [], []
    # The smaller the part that each group has of a sample, the more is in doubt. Sampling and looking at what is in
    # doubt take least if the sample grows with the cube root of the number of groups, or, of groups of different sizes,
    # of as many of one size as would leave as much in doubt.
    alike = total**2 / sum(size**2 for size in sizes)
    # At most what the words and the lists take after it.
    budget = min(round(_SAMPLE * alike ** (1 / 3)), total // 64 + 4 * sum(counts))
    least, small = (RaggedRows.WIDTH, 0) if packing.exact else (4 * RaggedRows.WIDTH, _SMALL)
    for size, count in zip(sizes, counts, strict=True):
      sample = budget * size // total // RaggedRows.WIDTH * RaggedRows.WIDTH
      sample = min(max(sample, least), _SAMPLE)
      if size <= max(small, 2 * sample):
        self.samples.append(0)
        self.targets.append((0, 0))
        self.errors.append(0.0)
        capacities.append(size)
        continue
      share = count / size
      error = _SIGMAS * math.sqrt(sample * share * (1 - share)) + 2
      self.samples.append(sample)
      self.errors.append(error)
      most, fewest = math.ceil(sample * share + error), math.floor(sample * share - error)
      self.targets.append((most, fewest))
      between = most if self.one_sided else 2 * error
      between += _SIGMAS * math.sqrt(between) + 2
      capacities.append(min(size, math.ceil(between * size / sample)))
    if packing.exact:
      self.capacities = tuple(counts) if self.one_sided else (0,) * len(counts)
    else:
      self.capacities = RaggedRows(capacities).capacities

  def shares(self, vector: Vector) -> list[int] | None:
    """How many may be in doubt of each piece; None where a group has several."""
    groups = [[run.group for run in place.runs] for place in vector.where]
    if any(one[-1] == other[0] for one, other in itertools.pairwise(groups)):
      return None
    return [sum(self.capacities[group] for group in of_piece) for of_piece in groups]


def _guesses(packing: Packing, plan: _Plan, to_keys: ToKeys) -> tuple[Threshold, Threshold]:
  """A threshold on either side of the wanted one, as far as a sample can tell."""
  sampled = [group for group, count in enumerate(plan.samples) if count]
  low, high = _everything(plan, packing.vector), _nothing(plan, packing.vector)
  if not sampled:
    return low, high
  rows = RaggedRows([plan.samples[group] for group in sampled])
  keys = to_keys(
    jnp.concatenate([_sample(packing, group, plan.samples[group]) for group in sampled])
  )
  keys = keys.reshape(-1, RaggedRows.WIDTH)
  sizes = jnp.array(rows.capacities, jnp.int32)
  zero, most = jnp.zeros_like(sizes), jnp.full_like(sizes, LARGEST_KEY)
  wanted = np.array([plan.targets[group] for group in sampled], np.int32).T
  # To a tenth of what chance may do to the sample.
  slack = np.array([plan.errors[group] / 10 for group in sampled], np.int32)
  inside = jnp.asarray(np.clip(wanted, 0, np.array(rows.capacities)))
  slack = jnp.broadcast_to(slack, inside.shape)
  lower, higher = exact_threshold(keys, rows, inside, sizes, zero, most, slack).value
  groups = np.array(sampled)
  lower = jnp.where(wanted[0] < sizes, lower, 0)
  higher = jnp.where(wanted[1] > 0, higher, LARGEST_KEY) + 1
  if len(sampled) < len(plan.samples):
    lower, higher = low.value.at[groups].set(lower), high.value.at[groups].set(higher)
  return low.with_value(lower), high.with_value(higher)


def _sample(packing: Packing, group: int, count: int) -> jax.Array:
  """``count`` entries, some side by side out of each of equal chunks, at a place that a hash of its number names."""
  runs = [(i, run) for i, place in enumerate(packing.vector.where) for run in place.runs]
  runs = [(i, run) for i, run in runs if run.group == group]
  sizes = [run.size for _, run in runs]
  shares = [count * size // sum(sizes) for size in sizes]
  shares[sizes.index(max(sizes))] += count - sum(shares)
  taken = []
  for (i, run), share in zip(runs, shares, strict=True):
    if share:
      chunk = run.size // -(-share // _BESIDE)
      number, beside = jnp.divmod(lax.iota(jnp.uint32, share), np.uint32(_BESIDE))
      mixed = number * np.uint32(0x9E37_79B1)
      mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x85EB_CA77)
      offset = (mixed ^ (mixed >> np.uint32(13))) % np.uint32(chunk - _BESIDE + 1)
      index = np.uint32(run.begin) + number * np.uint32(chunk) + offset + beside
      taken.append(packing.take_from(i, index.astype(jnp.int32)))
  return jnp.concatenate(taken)


def _everything(plan: _Plan, vector: Vector) -> Threshold:
  zero = jnp.zeros_like(plan.sizes)
  return Threshold.of(zero, jnp.full_like(zero, vector.span), plan.sizes)


def _nothing(plan: _Plan, vector: Vector) -> Threshold:
  zero = jnp.zeros_like(plan.sizes)
  return Threshold.of(jnp.full_like(zero, LARGEST_KEY + 1), jnp.full_like(zero, vector.span), zero)


def _three_kinds(
  packing: Packing, plan: _Plan, to_keys: ToKeys
) -> tuple[jax.Array, Threshold, Threshold, Statistics]:
  """The words of two thresholds around the wanted one with few enough keys between them."""
  count, vector = plan.counts, packing.vector
  capacities = jnp.array(plan.capacities, jnp.int32)
  unit = 1 if packing.exact else ALIGN
  low_half = jnp.float32(1 / 2 if plan.one_sided else 1 / 3)
  low_guess, high_guess = _guesses(packing, plan, to_keys)

  def read(state):
    turn, known, words, _, _ = state
    low, high = Threshold(known[0]), Threshold(known[1])
    halving = turn % 3 == 2
    slack = (capacities - count) // 2 if plan.one_sided else capacities // 3
    low_part = jnp.where(halving, low_half, log_fraction(low, high, count + slack))
    high_part = jnp.where(halving, jnp.float32(2 / 3), log_fraction(low, high, count - slack))
    lower = between(low, high, low_part, vector.span, unit)
    higher = between(low, high, high_part, vector.span, unit)
    # Zero is the one value that very many entries share.
    one = Threshold.of(
      jnp.ones_like(count), jnp.full_like(count, vector.span), jnp.zeros_like(count)
    )
    lower = choose((low.value == 0) & (high.value > 1), one, lower)
    settled = low.count - (0 if plan.one_sided else high.count) <= capacities
    lower, higher = choose(settled, low, lower), choose(settled, high, higher)
    is_first = jnp.broadcast_to(turn == 0, count.shape)
    lower, higher = choose(is_first, low_guess, lower), choose(is_first, high_guess, higher)
    if plan.one_sided:
      other = (turn == 1) & ~settled & (high_guess.value < high.value)
      lower = choose(other, high_guess, lower)
      higher = nothing

    words, found = packing.pack(turn, words, lower, higher, to_keys)
    lower, higher = lower.with_count(found.in_low), higher.with_count(found.in_high)
    for new in (lower, higher):
      low = choose((new.count >= count) & (new.count <= low.count), new, low)
    for new in (higher, lower):
      high = choose((new.count <= count) & (new.count >= high.count), new, high)
    if packing.exact:
      # Nothing is above the largest key. A long vector hardly needs to know, and may have no other use for it.
      top = jnp.where(high.count == 0, found.statistics.largest + 1, high.value)
      high = high.with_value(jnp.minimum(high.value, top))
    # Settled are the thresholds that the words are of, or the next turn makes them so.
    known = jnp.stack([low.packed, high.packed, lower.packed, higher.packed])
    wanted = (lower.count >= count) & (higher.count <= count)
    done = jnp.all(wanted & (lower.count - higher.count <= capacities))
    return turn + 1, known, words, found.statistics, done

  like = vector.arrays[0][0]
  low, nothing = _everything(plan, vector), _nothing(plan, vector)
  nothing = jax.tree.map(lambda x: _axis.varying_like(x, like), nothing)
  known = jnp.stack([low.packed, nothing.packed, low.packed, nothing.packed])
  found = Statistics(jnp.float32(0), jnp.int32(0))
  # No value is below zero; that words depend on one keeps them from being laid out beside the sample.
  words = packing.start() | jnp.minimum(low_guess.value[0], 0).astype(jnp.uint32)
  start = (jnp.int32(0), known, words, found, jnp.bool_(False))
  start = jax.tree.map(lambda x: _axis.varying_like(x, like), start)
  _, known, words, found, _ = here().once_or_more(lambda state: state[-1], read, start)
  return words, Threshold(known[2]), Threshold(known[3]), found
