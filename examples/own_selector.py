"""A selector of one's own: everything above a threshold, at most k.

    tx = rtopk_jax.sparse_exchange(AboveThreshold(0.1, density=0.01), "data")

A message has room for k entries, and a number in it says how many of them count. ``docs/extending.md`` walks
through it.
"""

import dataclasses

import jax
import jax.numpy as jnp

import rtopk_jax


@dataclasses.dataclass(frozen=True)
class AboveThreshold(rtopk_jax.Selector):
  """The entries of at least some magnitude; where more than k are, the k largest of them.

  Args:
    threshold: the least magnitude.
    density: k/d in (0, 1]; or ``rtopk_jax.warmup_density(…)``, of which the library takes one stage.
  """

  threshold: float
  density: float

  def entries(self, size: int, num_workers: int | None = None) -> int:
    """K."""
    return max(1, round(self.density * size))

  def __call__(
    self, vector: jax.Array, key: jax.Array, num_workers: int | None = None
  ) -> rtopk_jax.SparseSlices:
    """The k largest, of which those count that reach the threshold: they stand first."""
    magnitudes, indices = jax.lax.top_k(jnp.abs(vector), self.entries(vector.size))
    count = jnp.count_nonzero(magnitudes >= self.threshold)
    return rtopk_jax.SparseSlices(vector[indices], indices, vector.size, count)
