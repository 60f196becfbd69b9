r"""What was not sent: error feedback with momentum correction, on one vector.

With g the local gradient, u the local momentum and e the residual, a step is

.. math::
  u &\leftarrow m u + g \\
  v &= \lambda e + u \qquad(\text{Nesterov: } v = \lambda e + g + m u) \\
  e &\leftarrow v - \mathrm{sent}(v) \\
  u_j &\leftarrow 0 \ \text{at sent entries (momentum factor masking)}

(paper, Section III, after Lin et al., "Deep Gradient Compression", Section 3). Without error feedback
v = u, or g + m u, and nothing is masked.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rtopk_jax._select import SparseSlices


@dataclasses.dataclass(frozen=True)
class Memory:
  """The rule by which a worker remembers; the vectors themselves are arguments.

  Attributes:
    error_feedback: whether a residual is kept.
    momentum: m; 0 keeps no momentum.
    nesterov: whether the look-ahead form is sent.
    masking: whether sent entries lose their momentum.
    decay: the residual's decay, 1 in the paper.
  """

  error_feedback: bool
  momentum: float
  nesterov: bool
  masking: bool
  decay: float

  def correct(self, gradient: jax.Array, momentum: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Momentum correction.

    Args:
      gradient: g, any shape, float32.
      momentum: u of the step before, or None without momentum.

    Returns:
      What takes the gradient's place, and the new u.
    """
    if momentum is None:
      return gradient, gradient
    momentum = self.momentum * momentum + gradient
    return (gradient + self.momentum * momentum if self.nesterov else momentum), momentum

  def accumulate(self, direction: jax.Array, residual: jax.Array | None) -> jax.Array:
    """v, the vector to send from: the direction plus the decayed residual, if there is one."""
    if residual is None:
      return direction
    # A product with 1 would be exact, but may be fused into the sum on some backends and not others.
    return (residual if self.decay == 1 else self.decay * residual) + direction

  def retain(self, vector: jax.Array, sent: SparseSlices) -> jax.Array:
    """The new residual: the vector less what the others decode."""
    rest = vector.at[sent.indices].get(
      mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True
    )
    return vector.at[sent.indices].set(
      rest - sent.values, unique_indices=True, indices_are_sorted=True
    )

  def mask(self, momentum: jax.Array, sent: SparseSlices) -> jax.Array:
    """The momentum, zero at sent entries where that is asked for."""
    if not (self.masking and self.error_feedback):
      return momentum
    return momentum.at[sent.indices].set(0.0, unique_indices=True, indices_are_sorted=True)


def clip_scale(gradients: list[jax.Array], max_norm: float) -> jax.Array:
  """The factor that brings the joint norm of some arrays down to ``max_norm``, at most 1.

  NaN when the norm is beyond float32: such a step is skipped, where a factor of 0 would lose it unseen.
  """
  norm = jnp.sqrt(sum((jnp.sum(jnp.square(g)) for g in gradients), jnp.float32(0)))
  scale = jnp.where(norm > max_norm, max_norm / norm, jnp.float32(1))
  return jnp.where(jnp.isinf(norm), jnp.float32(jnp.nan), scale)
