"""The selectors of the paper, which are one family: k of the d entries of a vector.

Of a vector x the r entries of largest magnitude are taken, and of those a uniformly random k:

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
from rtopk_jax.select import _blocks, _search
from rtopk_jax.select._keys import SORT_BELOW, magnitude_keys, random_keys, top_k_of_keys
from rtopk_jax.select._selection import Selection
from rtopk_jax.select._selector import Selector
from rtopk_jax.select._slices import SparseSlices
from rtopk_jax.select._subset import draw
from rtopk_jax.select._warmup import Stages
from rtopk_jax.vector._vector import MAX_SIZE, Vector, places

METHODS = ("search", "sort")


class Counts(NamedTuple):
  """How many entries are sent (k) and out of how many large ones (r)."""

  k: int
  r: int


@dataclasses.dataclass(frozen=True)
class RTopK(Selector):
  """Of the r entries of largest magnitude, a random k.

  Made by ``rtop_k``, ``top_k`` and ``random_k``, which have the mathematics; frozen and hashable, hence static
  under ``jit``.

  Args:
    density: k/d, or the stages of a warm-up.
    subsample: r/k; None stands for the number of workers, infinity for r = d.
    unbiased: whether values are scaled by r/k.
    method: "search" finds the entries by counting, "sort" by ``jax.lax.top_k``, as a reference. Of finite
      vectors both find the same r entries; they may draw other k of them. Blocks are always counted.

  Raises:
    TypeError: when an argument has the wrong type.
    ValueError: for a density outside (0, 1], a subsample below 1 or a method that there is not.
  """

  density: float | Stages
  subsample: float | None
  unbiased: bool = False
  method: str = "search"
  # Whether it is a stage of a warm-up that others follow, in which r may reach d.
  is_warmup: bool = dataclasses.field(default=False, repr=False)

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

  def at(self, stage: int) -> "RTopK":
    """As ``Selector.at``."""
    chosen = super().at(stage)
    last = len(self.stages.densities) - 1
    if self.subsample is None and stage < last:
      chosen = dataclasses.replace(chosen, is_warmup=True)  # pyright: ignore[reportArgumentType]
    return chosen  # pyright: ignore[reportReturnType]

  def entries(self, size: int, num_workers: int | None = None) -> int:
    """As ``Selector.entries``."""
    return self.counts(size, num_workers).k

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
      ValueError: when d is out of range, the density is a warm-up, or r/k is not known; and when so many
        workers stand in for it that r reaches d, which would be random-k.

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
    # Of a short leaf k = 1 may be all that there is room for, whatever the density.
    if self.subsample is None and not self.is_warmup:
      self._check_random(subsample, k < size == r)
    return Counts(k, r)

  def _check_random(self, num_workers: float, is_random: bool) -> None:
    """Refuses what would silently be random-k."""
    density = self.stages.densities[-1]
    if is_random and num_workers * density >= 1:
      raise ValueError(
        f"rtop_k({density}) with {num_workers} workers takes r/k = {num_workers} from their number, so that r = d: "
        f"magnitudes would not matter. Pass a density below 1/{num_workers} = {1 / num_workers:.2g}, an explicit "
        f"subsample (rtop_k({density}, subsample=…)), or random_k({density}) if that is what you want."
      )

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
    chosen = self._select(whole, lambda _: key, num_workers)
    values = chosen.values
    scales = self.scales([size], num_workers)
    if scales is not None:
      # r/k may be more than the dtype holds, and so may what it makes of a value.
      largest = float(jnp.finfo(vector.dtype).max)
      scaled = jnp.clip(values.astype(jnp.float32) * scales, -largest, largest)
      values = jnp.where(jnp.isfinite(values), scaled.astype(vector.dtype), values)
    return SparseSlices(values, chosen.positions, size)

  def select(
    self,
    vector: Vector,
    key_of: Callable[[int], jax.Array],
    num_workers: int | None = None,
    block: int | None = None,
  ) -> Selection:
    """As ``Selector.select``, of the pieces where they lie."""
    if block is None:
      chosen = self._select(vector, key_of, num_workers)
      return chosen.scaled(self.scales(vector.counts, num_workers))
    chosen, blocks, scales = _blocks.select(self, vector, block, key_of, num_workers)
    return chosen._replace(blocks=blocks).scaled(scales)

  def _select(
    self, vector: Vector, key_of: Callable[[int], jax.Array], num_workers: int | None
  ) -> Selection:
    """The entries of each group, as they are."""
    counts = [self.counts(size, num_workers) for size in vector.counts]
    sent, large = [k for k, _ in counts], [r for _, r in counts]
    if all(k == size for k, size in zip(sent, vector.counts, strict=True)):
      everything = vector.spread(lax.iota(jnp.int32, vector.size))
      return Selection.of(vector, everything)
    if self.method == "sort" or vector.size <= SORT_BELOW:
      return _by_sorting(vector, key_of, sent, large)
    if all(r == size for r, size in zip(large, vector.counts, strict=True)):
      numbers = draw(key_of(0), vector.counts, sent, _search.packing_of(vector, sent))
      return Selection.of(vector, vector.spread(numbers))
    packing = _search.packing_of(vector, large)
    found, statistics = _search.largest(packing, large, magnitude_keys)
    is_top_k = sent == large
    ranks = lax.iota(jnp.int32, sum(large)) if is_top_k else draw(key_of(0), large, sent, packing)
    positions, entries = found.take(ranks, most=sum(large))
    return Selection(positions, entries, entries, statistics)


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
