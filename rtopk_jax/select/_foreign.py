"""Selection by a function of one flat array, which knows nothing of pieces, groups or blocks.

Every group, or every block of one, becomes a row. Rows of equal length are selected from together, by ``jax.vmap``.
What comes out is one message: positions of the whole vector, ascending.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax.kernels import _gather
from rtopk_jax.select import _search
from rtopk_jax.select._keys import magnitude_keys
from rtopk_jax.select._selection import Selection, with_distinct_ends
from rtopk_jax.select._slices import Blocks, SparseSlices
from rtopk_jax.vector._vector import MAX_SIZE, Run, Vector

# No entry has this position: what is not there goes to the end.
_NOWHERE = np.int32(MAX_SIZE)


class FlatSelector(Protocol):
  """The two methods of a selector that its author writes."""

  def entries(self, size: int, num_workers: int | None = None) -> int:
    """How many entries a message of a vector of some size has room for."""
    ...

  def __call__(
    self, vector: jax.Array, key: jax.Array, num_workers: int | None = None
  ) -> SparseSlices:
    """Entries of a flat vector."""
    ...


class _Rows(NamedTuple):
  """Rows of equal length.

  Attributes:
    begins: the number of each one's first entry: a position, or of a single group counted without gaps.
    entries: shape (rows, length), in parts.
  """

  begins: list[int]
  entries: list[jax.Array]


def select(
  selector: FlatSelector,
  vector: Vector,
  key_of: Callable[[int], jax.Array],
  num_workers: int | None,
  block: int | None,
) -> Selection:
  """The entries that a selector names of each group of a vector, or of each block of one.

  Args:
    selector: of one density.
    vector: d entries.
    key_of: PRNG keys by number.
    num_workers: n.
    block: entries of a block; None for whole groups.

  Returns:
    The ``Selection``.

  Raises:
    TypeError: when what the selector returns is no ``SparseSlices``, or of wrong shapes.
    ValueError: when it names more entries than there are, or int32 cannot index what is not there.
  """
  groups, is_single = _groups(vector)
  found, counted, sent = [], [], {}
  for number, (length, rows) in enumerate(_rows(groups, block).items()):
    k = _entries(selector, length, num_workers)
    slices = _of_rows(selector, rows, key_of(number), num_workers, (k, length))
    begins = jnp.asarray(np.array(rows.begins, np.int32))[:, None]
    numbers = begins + slices.indices
    positions = vector.spread(numbers) if is_single else numbers
    counted.append(slices.count is not None)
    if slices.count is not None:
      there = lax.iota(jnp.int32, k)[None] < slices.count[:, None]
      positions = jnp.where(there, positions, _NOWHERE)
    found.append((positions.reshape(-1), slices.values.reshape(-1)))
    sent |= dict.fromkeys(rows.begins, k)
  positions, values = (jnp.concatenate(x) for x in zip(*found, strict=True))
  positions, values = lax.sort((positions, values), num_keys=1)
  is_short = any(counted)
  if is_short and vector.span + positions.size > MAX_SIZE:
    raise ValueError(
      f"{selector!r} sends up to {positions.size} of {vector.span} entries, and what is not there needs indices "
      f'beyond those, which int32 does not have. For a larger model use scope="leaf".'
    )
  positions = with_distinct_ends(vector, positions)
  entries = _gather.take(vector, positions)
  if is_short:
    there = positions < vector.span
    entries, values = (jnp.where(there, x, jnp.zeros_like(x)) for x in (entries, values))
  blocks = None
  if block is not None and not is_short:
    begins = sorted(sent)
    begins = np.repeat(begins, [sent[begin] for begin in begins]).astype(np.int32)
    blocks = Blocks(begins, block)
  statistics = _search.statistics_of(vector, magnitude_keys)
  return Selection(positions, entries, values, statistics, blocks, is_short)


def _groups(vector: Vector) -> tuple[list[tuple[int, jax.Array]], bool]:
  """Each group as a flat array, with the number of its first entry; and whether there is one of several runs.

  Entries of that one are counted through its runs without gaps. Others have one run each: numbers are positions.
  """
  runs: dict[int, list[tuple[int, Run]]] = {}
  for i, place in enumerate(vector.where):
    for run in place.runs:
      runs.setdefault(run.group, []).append((i, run))
  flat = [_gather.read_all(vector, i).astype(jnp.float32) for i in range(len(vector.where))]
  cut = lambda i, run: flat[i][run.begin : run.begin + run.size]
  joined = [jnp.concatenate([cut(*each) for each in of_group]) for of_group in runs.values()]
  if len(joined) == 1:
    return [(0, joined[0])], True
  firsts = [vector.where[i].first + run.begin for ((i, run),) in runs.values()]
  return list(zip(firsts, joined, strict=True)), False


def _rows(groups: Sequence[tuple[int, jax.Array]], block: int | None) -> dict[int, _Rows]:
  """What is selected from, by its length."""
  found: dict[int, _Rows] = {}

  def add(first: int, entries: jax.Array) -> None:
    count, length = entries.shape
    rows = found.setdefault(length, _Rows([], []))
    rows.begins.extend(range(first, first + count * length, length))
    rows.entries.append(entries)

  for first, group in groups:
    length = group.size if block is None else block
    whole = group.size // length * length
    if whole:
      add(first, group[:whole].reshape(-1, length))
    if whole < group.size:
      add(first + whole, group[whole:].reshape(1, -1))
  return found


def _entries(selector: FlatSelector, size: int, num_workers: int | None) -> int:
  k = selector.entries(size, num_workers)
  if isinstance(k, bool) or not isinstance(k, int | np.integer):
    raise TypeError(f"entries of {selector!r} must return an integer, got {k!r}.")
  if not 1 <= k <= size:
    raise ValueError(f"entries of {selector!r} must be in [1, {size}] of {size} entries, got {k}.")
  return int(k)


def _of_rows(
  selector: FlatSelector,
  rows: _Rows,
  key: jax.Array,
  num_workers: int | None,
  shape: tuple[int, int],
) -> SparseSlices:
  """The slices of all rows, with an axis of the rows in front."""
  (k, length), entries = shape, jnp.concatenate(rows.entries)

  def one(vector, key):
    slices = selector(vector, key, num_workers)
    if not isinstance(slices, SparseSlices):
      raise TypeError(f"{selector!r} must return rtopk_jax.SparseSlices, got {slices!r}.")
    shapes = slices.values.shape, slices.indices.shape, slices.size
    if shapes != ((k,), (k,), length):
      raise TypeError(
        f"{selector!r} must return {k} values and indices of {length} entries, as its entries(…) says, got "
        f"values of shape {shapes[0]}, indices of shape {shapes[1]} and size {shapes[2]}."
      )
    values, indices = slices.values.astype(jnp.float32), slices.indices.astype(jnp.int32)
    count = None if slices.count is None else jnp.asarray(slices.count, jnp.int32)
    return SparseSlices(values, indices, length, count)

  if len(rows.begins) == 1:
    return jax.tree.map(lambda x: x[None], one(entries[0], key))
  return jax.vmap(one)(entries, jax.random.split(key, len(rows.begins)))
