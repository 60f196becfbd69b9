"""What to send, by anybody's rule: the protocol of selectors."""

import abc
import dataclasses
from collections.abc import Callable

import jax

from rtopk_jax.select import _foreign
from rtopk_jax.select._selection import Selection
from rtopk_jax.select._slices import SparseSlices
from rtopk_jax.select._warmup import Stages
from rtopk_jax.vector._vector import Vector


class Selector(abc.ABC):
  """What is sent of a vector: ``rtop_k``, ``top_k`` and ``random_k`` make those of the paper.

  One of your own is a frozen dataclass with two methods, ``entries`` and ``__call__``. The rest is done for it:
  leaves are joined or taken one by one, blocks are selected from together by ``jax.vmap``. A field named
  ``density`` may be a warm-up, ``Stages``. What is selected from is put together as one array first, which the
  selectors of the paper do without.

  Attributes:
    unbiased: whether values are scaled so that their mean is right, which error feedback would take back.

  Examples:
    >>> import dataclasses, jax, jax.numpy as jnp, rtopk_jax
    >>> @dataclasses.dataclass(frozen=True)
    ... class First(rtopk_jax.Selector):
    ...   density: float
    ...   def entries(self, size, num_workers=None):
    ...     return max(1, round(self.density * size))
    ...   def __call__(self, vector, key, num_workers=None):
    ...     indices = jnp.arange(self.entries(vector.size))
    ...     return rtopk_jax.SparseSlices(vector[indices], indices, vector.size)
    >>> tx = rtopk_jax.sparse_exchange(First(0.01), "data", dense=False)
    >>> update = lambda g: tx.update(g, tx.init(g))[0]
    >>> jax.jit(jax.vmap(update, out_axes=None, axis_name="data"))(jnp.ones((4, 300))).sum()
    Array(3., dtype=float32)
  """

  unbiased: bool = False

  @abc.abstractmethod
  def entries(self, size: int, num_workers: int | None = None) -> int:
    """How many entries a message has room for.

    Args:
      size: d, the entries of the vector.
      num_workers: n.

    Returns:
      k, from 1 to d: a number known when a step is traced.
    """

  @abc.abstractmethod
  def __call__(
    self, vector: jax.Array, key: jax.Array, num_workers: int | None = None
  ) -> SparseSlices:
    """Selects entries of a vector; it is traced, and may be mapped by ``jax.vmap``.

    Args:
      vector: shape (d,), float32.
      key: a PRNG key of this worker's and this step's.
      num_workers: n.

    Returns:
      ``SparseSlices`` with k different indices in any order, of which the first ``count`` are sent, or all.
      Values may differ from the vector's; with error feedback the difference stays in the memory.
    """

  @property
  def stages(self) -> Stages:
    """The densities one after another; a constant density, or none, is one stage."""
    density = getattr(self, "density", None)
    if isinstance(density, Stages):
      return density
    return Stages((1.0 if density is None else density,), 1)

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
    density = getattr(self, "density", None)
    if not isinstance(density, Stages):
      return self
    if not 0 <= stage < len(density.densities):
      raise IndexError(f"stage must be in [0, {len(density.densities)}), got {stage}.")
    return dataclasses.replace(self, density=density.densities[stage])  # pyright: ignore[reportArgumentType, reportCallIssue, reportType]

  def select(
    self,
    vector: Vector,
    key_of: Callable[[int], jax.Array],
    num_workers: int | None = None,
    block: int | None = None,
  ) -> Selection:
    """Selects of each group of a vector in pieces; what the library calls.

    Args:
      vector: d entries.
      key_of: the PRNG key of a group.
      num_workers: n.
      block: entries of a block, where each block of a group is selected from by itself.

    Returns:
      The ``Selection``.
    """
    return _foreign.select(self, vector, key_of, num_workers, block)
