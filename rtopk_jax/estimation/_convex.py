"""A convex problem whose constants are known: logistic regression with weight decay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rtopk_jax import _checks


@dataclasses.dataclass(frozen=True, eq=False)
class LogisticRegression:
  r"""Logistic regression with weight decay.

  .. math::
    f(x) = \frac1N \sum_i \ln(1 + \exp(-b_i \langle a_i, x \rangle)) + \frac{\mu}{2} \|x\|^2

  It is :math:`\mu`-strongly convex, and L-smooth with
  :math:`L = \mu + \lambda_{\max}(A^\top A) / 4N`.

  Attributes:
    features: A, shape (N, d), float32.
    labels: b, shape (N,), float32, ±1.
    strong_convexity: :math:`\mu`.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> features, labels = np.eye(2, dtype=np.float32), np.array([1.0, -1.0], np.float32)
    >>> problem = estimation.LogisticRegression(features, labels, strong_convexity=0.1)
    >>> round(problem.value([0.0, 0.0]), 4), round(problem.smoothness, 3)
    (0.6931, 0.225)
  """

  features: np.ndarray
  labels: np.ndarray
  strong_convexity: float

  @classmethod
  def random(
    cls, seed: int, *, examples: int, dimension: int, strong_convexity: float = 0.1
  ) -> "LogisticRegression":
    """Gaussian features of squared norm about 1, labels of a sparse hidden model with 10 % flipped.

    Args:
      seed: of the problem.
      examples: N.
      dimension: d.
      strong_convexity: the weight decay.

    Returns:
      A problem.

    Raises:
      TypeError: when an argument has the wrong type.
      ValueError: when one is out of range.

    Examples:
      >>> from rtopk_jax import estimation
      >>> problem = estimation.LogisticRegression.random(seed=0, examples=50, dimension=10)
      >>> problem.features.shape, problem.value(problem.minimiser()) < problem.value([0.0] * 10)
      ((50, 10), True)
    """
    _checks.at_least("examples", examples, 1, integer=True)
    _checks.at_least("dimension", dimension, 1, integer=True)
    _checks.real("strong_convexity", strong_convexity)
    if strong_convexity <= 0:
      raise ValueError(f"strong_convexity must be positive, got {strong_convexity!r}.")
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(examples, dimension)) / np.sqrt(dimension)
    hidden = rng.normal(size=dimension) * (np.arange(dimension) < max(1, dimension // 10))
    labels = np.where(features @ hidden > 0, 1.0, -1.0)
    labels *= np.where(rng.random(examples) < 0.1, -1.0, 1.0)
    return cls(features.astype(np.float32), labels.astype(np.float32), strong_convexity)

  @property
  def smoothness(self) -> float:
    """L."""
    return float(
      self.strong_convexity + np.linalg.norm(self.features, 2) ** 2 / (4 * len(self.features))
    )

  def value(self, point: npt.ArrayLike) -> float:
    """f(x), in float64.

    Args:
      point: x, shape (d,).

    Returns:
      The value.
    """
    point = np.asarray(point, np.float64)
    margins = self.labels * (self.features @ point)
    return float(np.logaddexp(0, -margins).mean() + self.strong_convexity / 2 * np.sum(point**2))

  def gradients(self, point: jax.Array) -> jax.Array:
    """The gradient of every example's loss, with the decay in each.

    Args:
      point: x, shape (d,), float32.

    Returns:
      Shape (N, d), float32; their mean is the gradient of f.
    """
    margins = self.labels * (self.features @ point)
    slopes = -self.labels * jax.nn.sigmoid(-margins)
    decay = jnp.float32(self.strong_convexity) * point
    return jax.vmap(lambda slope, feature: slope * feature + decay)(slopes, self.features)

  @functools.cache  # noqa: B019 - a problem lives as long as the process that studies it
  def minimiser(self) -> np.ndarray:
    """x*, by Newton's method.

    Returns:
      Shape (d,), float64.
    """
    features, labels = self.features.astype(np.float64), self.labels.astype(np.float64)
    point = np.zeros(features.shape[1])
    for _ in range(50):
      chance = 1 / (1 + np.exp(labels * (features @ point)))
      gradient = -features.T @ (labels * chance) / len(labels) + self.strong_convexity * point
      weights = chance * (1 - chance) / len(labels)
      hessian = features.T @ (weights[:, None] * features)
      step = np.linalg.solve(hessian + self.strong_convexity * np.eye(len(point)), gradient)
      point = point - step
      if np.linalg.norm(step) < 1e-13:
        break
    return point
