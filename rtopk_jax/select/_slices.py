"""What is sent of a vector: some entries and where they stand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseSlices:
  """k entries of a vector of d, a pytree of two arrays.

  Args:
    values: their values, shape (k,), the vector's dtype.
    indices: where they stand, shape (k,), int32, all different; strictly ascending in a message.
    size: d, static.
    count: how many of them count, the first ones, an int32 scalar; None for all k.

  Examples:
    >>> import dataclasses, jax.numpy as jnp, rtopk_jax
    >>> slices = rtopk_jax.SparseSlices(jnp.array([0.5, -2.0]), jnp.array([1, 3]), size=5)
    >>> slices.to_dense().tolist()
    [0.0, 0.5, 0.0, -2.0, 0.0]
    >>> dataclasses.replace(slices, count=jnp.int32(1)).to_dense().tolist()
    [0.0, 0.5, 0.0, 0.0, 0.0]
  """

  values: jax.Array
  indices: jax.Array
  size: int = dataclasses.field(metadata={"static": True})
  count: jax.Array | None = None

  def to_dense(self) -> jax.Array:
    """The vector that has these entries and is zero elsewhere.

    Returns:
      Shape (d,), the dtype of the values.

    Examples:
      >>> import jax, jax.numpy as jnp, rtopk_jax
      >>> rtopk_jax.top_k(0.5)(jnp.array([3.0, 1.0]), jax.random.key(0)).to_dense().tolist()
      [3.0, 0.0]
    """
    indices = self.indices
    if self.count is not None:
      # What does not count goes beyond the vector, each to a place of its own.
      number = jnp.arange(indices.size, dtype=indices.dtype)
      counts = number < jnp.asarray(self.count, indices.dtype)
      indices = jnp.where(counts, indices, number + self.size)
    zeros = jnp.zeros(self.size, self.values.dtype)
    return zeros.at[indices].set(self.values, mode="drop", unique_indices=True)


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Which block each entry of a message is in: the same on all workers.

  Attributes:
    begins: the first index of its block, shape (k,), int32.
    size: entries of a block.
  """

  begins: np.ndarray | jax.Array
  size: int

  @property
  def width(self) -> int:
    """Bits of an index within a block."""
    return max(1, (self.size - 1).bit_length())
