r"""What was not sent: error feedback with momentum correction, on one vector.

With g the local gradient, u the local momentum and e the residual, a step is

.. math::
  u &\leftarrow m u + g \\
  v &= \lambda e + u \qquad(\text{Nesterov: } v = \lambda e + g + m u) \\
  e &\leftarrow v - \mathrm{sent}(v) \\
  u_j &\leftarrow 0 \ \text{at sent entries (momentum factor masking)}

(paper, Section III-A, after Lin et al., "Deep Gradient Compression", Section 3). Without error feedback
v = u, or g + m u, and nothing is masked.
"""

import dataclasses

import jax
import jax.numpy as jnp


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

  def correct(self, gradient: jax.Array, momentum: jax.Array) -> jax.Array:
    """Momentum correction: the new u of g and the old u."""
    return self.momentum * momentum + gradient

  def direction(self, gradient: jax.Array, momentum: jax.Array | None) -> jax.Array:
    """What takes the place of g, given the new u."""
    if momentum is None:
      return gradient
    return gradient + self.momentum * momentum if self.nesterov else momentum

  def accumulate(self, direction: jax.Array, residual: jax.Array | None) -> jax.Array:
    """v, the vector to send from: the direction plus the decayed residual, if there is one."""
    if residual is None:
      return direction
    # A product with 1 would be exact, but may be fused into the sum on some backends and not others.
    return (residual if self.decay == 1 else self.decay * residual) + direction

  def vector(
    self, gradient: jax.Array, momentum: jax.Array | None, residual: jax.Array | None
  ) -> jax.Array:
    """V out of g and of u and e as they were; entry by entry, whatever their dtype."""
    new = None if momentum is None else self.correct(gradient, momentum.astype(jnp.float32))
    old = None if residual is None else residual.astype(jnp.float32)
    return self.accumulate(self.direction(gradient, new), old)

  @property
  def masks(self) -> bool:
    """Whether sent entries lose their momentum."""
    return self.masking and self.error_feedback and bool(self.momentum)


def clip_scale(square: jax.Array, max_norm: float) -> jax.Array:
  """The factor that brings a norm, given squared, down to ``max_norm``, at most 1.

  NaN when the norm is beyond float32: such a step is skipped, where a factor of 0 would lose it unseen.
  """
  norm = jnp.sqrt(square)
  scale = jnp.where(norm > max_norm, max_norm / norm, jnp.float32(1))
  return jnp.where(jnp.isinf(norm), jnp.float32(jnp.nan), scale)
