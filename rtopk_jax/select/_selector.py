"""What to send: k of the d entries of a vector.

One family holds the three selectors of the paper. Of a vector x the r entries of largest magnitude are
taken, and of those a uniformly random k:

    top-k     r = k      nothing is random
    random-k  r = d      magnitudes do not matter
    rTop-k    between    the paper recommends r/k = number of workers

Magnitudes are compared as the integers their bits spell, because XLA flushes subnormal floats to zero.
Ties go to the lowest index, as in ``jax.lax.top_k``.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _checks
from rtopk_jax._precision import in_32_bits
from rtopk_jax.kernels import _gather
from rtopk_jax.kernels._statistics import Statistics
from rtopk_jax.select import _search
from rtopk_jax.select._keys import magnitude_keys, random_keys, top_k_of_keys
from rtopk_jax.select._slices import SparseSlices
from rtopk_jax.select._subset import draw
from rtopk_jax.select._warmup import Stages
from rtopk_jax.vector._vector import MAX_SIZE, Vector, places

# Up to this size a sort takes little memory (5 bytes an entry, 16 for random-k), and compiles in a tenth of the time.
SORT_BELOW = 40_000
METHODS = ("search", "top_k")


class Selection(NamedTuple):
  """Which entries of a vector are sent.

  Attributes:
    positions: theirs, ascending, shape (k,), int32.
    values: of these entries, shape (k,).
    statistics: of the vector, a by-product.
  """

  positions: jax.Array
  values: jax.Array
  statistics: Statistics

  @classmethod
  def of(cls, vector: Vector, positions: jax.Array) -> "Selection":
    """The entries at ascending positions, and a statistics in a read of its own."""
    statistics = _search.statistics_of(vector, magnitude_keys)
    return cls(positions, _gather.take(vector, positions), statistics)


class Counts(NamedTuple):
  """How many entries are sent (k) and out of how many large ones (r)."""

  k: int
  r: int


@dataclasses.dataclass(frozen=True)
class Selector:
  """Of the r entries of largest magnitude, a random k.

  Made by ``rtop_k``, ``top_k`` and ``random_k``, which have the mathematics; frozen and hashable, hence static
  under ``jit``.

  Args:
    density: k/d, or the stages of a warm-up.
    subsample: r/k; None stands for the number of workers, infinity for r = d.
    unbiased: whether values are scaled by r/k.
    method: "search" finds the entries by counting, "top_k" by ``jax.lax.top_k``, as a reference. Of finite
      vectors both find the same r entries; they may draw other k of them.

  Raises:
    TypeError: when an argument has the wrong type.
    ValueError: for a density outside (0, 1], a subsample below 1 or a method that there is not.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> selector = rtopk_jax.Selector(density=0.25, subsample=2)
    >>> selector == rtopk_jax.rtop_k(0.25, 2)
    True
    >>> slices = selector(jnp.array([1.0, -4.0, 3.0, 0.0]), jax.random.key(0))
    >>> abs(slices.values.item()) >= 3  # 1 of the 2 largest
    True
  """

  density: float | Stages
  subsample: float | None
  unbiased: bool = False
  method: str = "search"

  def __post_init__(self):
    if not isinstance(self.density, Stages):
      _checks.density("density", self.density)
    if self.subsample is not None and self.subsample != math.inf:
      _checks.real("subsample", self.subsample)
      if self.subsample < 1:
        raise ValueError(
          f"subsample is r/k, k of the r largest entries being sent, and must be at least 1, "
          f"got {self.subsample!r}."
        )
    _checks.flag("unbiased", self.unbiased)
    _checks.one_of("method", self.method, METHODS)

  @property
  def stages(self) -> Stages:
    """The densities one after another; a constant density is one stage."""
    return self.density if isinstance(self.density, Stages) else Stages((self.density,), 1)

  def at(self, stage: int) -> "Selector":
    """The selector of one stage, whose density is a number.

    Args:
      stage: which stage, counted from 0.

    Returns:
      A selector of the same kind; itself where the density is constant.

    Raises:
      IndexError: when there is no such stage.

    Examples:
      >>> import rtopk_jax
      >>> rtopk_jax.top_k(rtopk_jax.Stages((0.25, 0.01), steps_per_stage=100)).at(1).density
      0.01
    """
    if not isinstance(self.density, Stages):
      return self
    densities = self.density.densities
    if not 0 <= stage < len(densities):
      raise IndexError(f"stage must be in [0, {len(densities)}), got {stage}.")
    return dataclasses.replace(self, density=densities[stage])

  def counts(self, size: int, num_workers: int | None = None) -> Counts:
    r"""How many entries are sent of how many large ones.

    .. math::
      k = \max(1, \mathrm{round}(\rho d)), \qquad r = \min(d, \mathrm{round}(\sigma k)),

    :math:`\rho` being the density and :math:`\sigma` the subsample.

    Args:
      size: d, from 1 to 2³¹ − 1.
      num_workers: stands in for r/k when ``subsample`` is None.

    Returns:
      The pair (k, r).

    Raises:
      TypeError: when an argument is not an integer.
      ValueError: when d is out of range, the density is a warm-up, or r/k is not known.

    Examples:
      >>> import rtopk_jax
      >>> rtopk_jax.rtop_k(0.01).counts(10_000, num_workers=5)
      Counts(k=100, r=500)
    """
    if isinstance(self.density, Stages):
      raise ValueError(
        f"density is a warm-up, {self.density}; choose a stage with selector.at(stage)."
      )
    _checks.at_least("size", size, 1, integer=True)
    limit = 'the entries that int32 can index (for a larger model use scope="leaf")'
    _checks.at_most("size", size, MAX_SIZE, limit)
    subsample = self.subsample
    if subsample is None:
      if num_workers is None:
        raise ValueError(
          "subsample=None means r/k = number of workers, which is not known here; pass num_workers, "
          "or give the selector a subsample."
        )
      _checks.at_least("num_workers", num_workers, 1, integer=True)
      subsample = num_workers
    k = max(1, round(self.density * size))
    r = size if subsample == math.inf else min(size, round(subsample * k))
    return Counts(k, r)

  def scales(self, sizes: Sequence[int], num_workers: int | None = None) -> jax.Array | None:
    """r/k for every entry sent of some groups.

    Args:
      sizes: the entries of each group.
      num_workers: stands in for r/k when ``subsample`` is None.

    Returns:
      Shape (sum of k,), float32; None where values go as they are.
    """
    if not self.unbiased:
      return None
    counts = [self.counts(size, num_workers) for size in sizes]
    return jnp.asarray(np.repeat([r / k for k, r in counts], [k for k, _ in counts]), jnp.float32)

  @in_32_bits
  def __call__(
    self, vector: jax.Array, key: jax.Array, num_workers: int | None = None
  ) -> SparseSlices:
    """Selects entries of a vector.

    Args:
      vector: shape (d,), floating point of at most 32 bits.
      key: a PRNG key; not used where nothing is random.
      num_workers: stands in for r/k when ``subsample`` is None.

    Returns:
      Exactly k ``SparseSlices``.

    Raises:
      TypeError: when the vector is not floating point.
      ValueError: when it is not one-dimensional or has no entries, or as ``counts`` does.
    """
    vector = jnp.asarray(vector)
    if not jnp.issubdtype(vector.dtype, jnp.floating) or vector.dtype.itemsize > 4:
      raise TypeError(f"vector must be floating point of at most 32 bits, got {vector.dtype}.")
    if vector.ndim != 1:
      raise ValueError(f"vector must have one dimension, got shape {vector.shape}.")
    (size,) = vector.shape
    if not size:
      raise ValueError("vector must have at least one entry, got shape (0,).")
    whole = Vector(places([(size,)]), ((vector,),), lambda x: x)
    chosen = self.select(whole, lambda _: key, num_workers)
    values = chosen.values
    scales = self.scales([size], num_workers)
    if scales is not None:
      # r/k may be more than the dtype holds, and so may what it makes of a value.
      largest = float(jnp.finfo(vector.dtype).max)
      scaled = jnp.clip(values.astype(jnp.float32) * scales, -largest, largest)
      values = jnp.where(jnp.isfinite(values), scaled.astype(vector.dtype), values)
    return SparseSlices(values, chosen.positions, size)

  def select(
    self, vector: Vector, key_of: Callable[[int], jax.Array], num_workers: int | None = None
  ) -> Selection:
    """Selects entries of each group of a vector in pieces.

    Args:
      vector: d entries.
      key_of: the PRNG key of a group.
      num_workers: stands in for r/k when ``subsample`` is None.

    Returns:
      The ``Selection``.
    """
    counts = [self.counts(size, num_workers) for size in vector.counts]
    sent, large = [k for k, _ in counts], [r for _, r in counts]
    if all(k == size for k, size in zip(sent, vector.counts, strict=True)):
      everything = vector.spread(lax.iota(jnp.int32, vector.size))
      return Selection.of(vector, everything)
    if self.method == "top_k" or vector.size <= SORT_BELOW:
      return _by_sorting(vector, key_of, sent, large)
    if all(r == size for r, size in zip(large, vector.counts, strict=True)):
      numbers = draw(key_of(0), vector.counts, sent, _search.packing_of(vector, sent))
      return Selection.of(vector, vector.spread(numbers))
    packing = _search.packing_of(vector, large)
    found, statistics = _search.largest(packing, large, magnitude_keys)
    everything = sent == large
    ranks = lax.iota(jnp.int32, sum(large)) if everything else draw(key_of(0), large, sent, packing)
    return Selection(*found.take(ranks, most=sum(large)), statistics)


def largest_of(vector: jax.Array, count: int) -> jax.Array:
  """Ascending indices of the entries of largest magnitude of a flat vector."""
  whole = Vector(places([vector.shape]), ((vector,),), lambda x: x)
  if vector.size <= SORT_BELOW:
    return jnp.sort(top_k_of_keys(magnitude_keys(vector), count))
  ranks = lax.iota(jnp.int32, count)
  found, _ = _search.largest(_search.packing_of(whole, [count]), [count], magnitude_keys)
  return found.locate(ranks)


def _by_sorting(
  vector: Vector, key_of: Callable[[int], jax.Array], sent: list[int], large: list[int]
) -> Selection:
  """The selection by ``jax.lax.top_k``, group by group."""
  keys: list[list[jax.Array]] = [[] for _ in sent]
  for i, place in enumerate(vector.where):
    of_piece = magnitude_keys(_gather.read_all(vector, i))
    for run in place.runs:
      keys[run.group].append(of_piece[run.begin : run.begin + run.size])
  numbers, begin = [], 0
  for group, (k, r) in enumerate(zip(sent, large, strict=True)):
    of_group = jnp.concatenate(keys[group])
    size, key = of_group.size, key_of(group)
    if r == size:
      chosen = jnp.sort(top_k_of_keys(random_keys(key, size), k))
    else:
      chosen = jnp.sort(top_k_of_keys(of_group, r))
      if k < r:
        chosen = chosen[jnp.sort(top_k_of_keys(random_keys(key, r), k))]
    numbers.append(begin + chosen)
    begin += size
  return Selection.of(vector, vector.spread(jnp.concatenate(numbers)))
