"""What the nodes see: the sparse Bernoulli model with its refinements, and the Gaussian location model.

Parameters and samples are float32 vectors of d entries. Every sampler takes a key and returns one
vector, so that ``jax.vmap`` over keys makes a batch.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from rtopk_jax import _checks

Perturbation = Callable[[jax.Array, tuple[int, ...]], jax.Array]


def uniform_perturbation(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Noise Z uniform on [−½, ½), the widest that the quantiser removes (paper, Section II-C, (iii)).

  Args:
    key: a PRNG key.
    shape: of the noise.

  Returns:
    Independent entries of that shape, float32.

  Examples:
    >>> import jax
    >>> from rtopk_jax import estimation
    >>> noisy = estimation.SparseBernoulli(100, 5, perturbation=estimation.uniform_perturbation)
    >>> sample = noisy.sample(jax.random.key(0), noisy.uniform(jax.random.key(1)))
    >>> sorted(set(noisy.quantise(sample).tolist()))
    [0.0, 1.0]
  """
  return jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)


@dataclasses.dataclass(frozen=True)
class SparseBernoulli:
  r"""The sparse Bernoulli model, (2), and its refinements (i) to (iii) (paper, Section II-C).

  With :math:`\theta \in \Theta = \{\theta \in [0, 1]^d : \sum_j \theta_j \le s\}` a node sees

  .. math::
    X \sim \prod_j \mathrm{Bern}(\theta_j)

  Signed, :math:`\theta \in [-1, 1]^d` with :math:`\sum_j |\theta_j| \le s` and
  :math:`B_j = \mathrm{Sign}(\theta_j)\, \mathrm{Bern}(|\theta_j|)`; scaled and perturbed, a node sees
  :math:`X = M (B + Z)`, which ``quantise`` turns back into B. What is estimated is :math:`M \theta`.

  Attributes:
    dimension: d.
    sparsity: s, in (0, d].
    signed: whether :math:`\theta_j` may be negative.
    scale: M > 0.
    perturbation: a function of key and shape that draws Z, independent entries in [−½, ½]; None: Z = 0.

  Raises:
    TypeError: when an argument has the wrong type.
    ValueError: when it is out of range.

  Examples:
    >>> import jax
    >>> from rtopk_jax import estimation
    >>> model = estimation.SparseBernoulli(dimension=1000, sparsity=10)
    >>> theta = model.uniform(jax.random.key(0))
    >>> samples = jax.vmap(model.sample, (0, None))(jax.random.split(jax.random.key(1), 5), theta)
    >>> samples.shape, float(theta[0])
    ((5, 1000), 0.009999999776482582)
  """

  dimension: int
  sparsity: float
  signed: bool = False
  scale: float = 1.0
  perturbation: Perturbation | None = None

  def __post_init__(self):
    _checks.at_least("dimension", self.dimension, 1, integer=True)
    _checks.real("sparsity", self.sparsity)
    if not 0 < self.sparsity <= self.dimension:
      raise ValueError(
        f"sparsity must be in (0, dimension={self.dimension}], got {self.sparsity!r}."
      )
    _checks.flag("signed", self.signed)
    _checks.real("scale", self.scale)
    if self.scale <= 0:
      raise ValueError(f"scale must be positive, got {self.scale!r}.")
    if self.perturbation is not None and not callable(self.perturbation):
      raise TypeError(
        f"perturbation must be a function of key and shape, got {self.perturbation!r}."
      )

  def uniform(self, key: jax.Array) -> jax.Array:
    r""":math:`|\theta_j| = s/d` everywhere.

    Args:
      key: of the signs of a signed model.

    Returns:
      :math:`\theta`, shape (d,), float32.
    """
    return self._sign(key, jnp.full(self.dimension, self.sparsity / self.dimension, jnp.float32))

  def power_law(self, key: jax.Array, exponent: float = 1.0) -> jax.Array:
    r""":math:`|\theta_{\pi(j)}| = \min(1, c\, j^{-a})` with a random order and c such that they sum to s.

    Args:
      key: of the order and the signs.
      exponent: a, at least 0.

    Returns:
      Shape (d,), float32.

    Raises:
      ValueError: when the exponent is negative.
    """
    _checks.at_least("exponent", exponent, 0)
    shape = np.arange(1, self.dimension + 1, dtype=np.float64) ** -exponent
    low, high = 0.0, 1.0 / shape[-1]
    for _ in range(100):
      middle = (low + high) / 2
      if np.minimum(1, middle * shape).sum() < self.sparsity:
        low = middle
      else:
        high = middle
    magnitudes = jnp.asarray(np.minimum(1, low * shape), jnp.float32)
    order_key, sign_key = jax.random.split(key)
    return self._sign(sign_key, jax.random.permutation(order_key, magnitudes))

  def block(self, key: jax.Array) -> jax.Array:
    r""":math:`|\theta_j| = 1` on :math:`\lfloor s \rfloor` random coordinates, 0 elsewhere.

    Args:
      key: of the coordinates and the signs.

    Returns:
      :math:`\theta`, shape (d,), float32.
    """
    order_key, sign_key = jax.random.split(key)
    ones = jnp.arange(self.dimension) < int(self.sparsity)
    return self._sign(sign_key, jax.random.permutation(order_key, ones).astype(jnp.float32))

  def cube(self, key: jax.Array) -> jax.Array:
    r"""Uniform on the cube :math:`[s/2d, s/d]^d` on which Theorem 2 is proved (paper, Section V).

    Args:
      key: of the point and the signs.

    Returns:
      :math:`\theta`, shape (d,), float32.
    """
    order_key, sign_key = jax.random.split(key)
    high = self.sparsity / self.dimension
    theta = jax.random.uniform(order_key, (self.dimension,), minval=high / 2, maxval=high)
    return self._sign(sign_key, theta)

  def _sign(self, key: jax.Array, magnitudes: jax.Array) -> jax.Array:
    if not self.signed:
      return magnitudes
    return magnitudes * jax.random.rademacher(key, magnitudes.shape, jnp.float32)

  def sample(self, key: jax.Array, theta: jax.Array) -> jax.Array:
    r"""What one node sees.

    Args:
      key: a PRNG key; nodes have keys of their own.
      theta: :math:`\theta`, shape (d,), float32. Probabilities are kept to 2⁻³².

    Returns:
      X, shape (d,), float32.
    """
    magnitude = jnp.abs(theta)
    # An integer comparison: a float32 uniform has 2²³ values, too coarse for probabilities near 1e-6.
    threshold = jnp.where(magnitude < 1, magnitude * jnp.float32(2**32), 0).astype(jnp.uint32)
    hit = (jax.random.bits(key, theta.shape) < threshold) | (magnitude >= 1)
    values = jnp.where(hit, jnp.sign(theta), 0)
    if self.perturbation is not None:
      noise = self.perturbation(jax.random.fold_in(key, 1), theta.shape)
      values = values + noise.astype(jnp.float32)
    return values * jnp.float32(self.scale)

  def quantise(self, sample: jax.Array) -> jax.Array:
    r"""The pre-processing step: the nearest of {0, 1} (signed: {−1, 0, 1}) to X/M.

    As the paper's (Section II-D: 0 where :math:`|Y| \le 1/2`, else 1) but for :math:`|Y| = 1/2` itself, which has
    probability 0.

    Args:
      sample: X, shape (d,), float32.

    Returns:
      B, shape (d,), float32.
    """
    nearest = jnp.floor(sample / jnp.float32(self.scale) + jnp.float32(0.5))
    return jnp.clip(nearest, -1 if self.signed else 0, 1)

  def check(self, theta: npt.ArrayLike) -> np.ndarray:
    r"""The parameter as float64 numbers.

    Args:
      theta: shape (d,), not traced.

    Returns:
      The same on the host, shape (d,), float64.

    Raises:
      ValueError: when it is not in :math:`\Theta`.
    """
    theta = np.asarray(theta, np.float64)
    if theta.shape != (self.dimension,):
      raise ValueError(f"theta must have shape {(self.dimension,)}, got {theta.shape}.")
    least = -1 if self.signed else 0
    if not (theta.min() >= least and theta.max() <= 1):
      raise ValueError(
        f"theta must have entries in [{least}, 1], got {theta.min()} to {theta.max()}."
      )
    total = np.abs(theta).sum()
    if total > self.sparsity * (1 + 1e-5):  # float32 entries of a theta on the border
      raise ValueError(f"theta must sum to at most s = {self.sparsity} in magnitude, got {total}.")
    return theta


@dataclasses.dataclass(frozen=True)
class GaussianLocation:
  r"""The Gaussian location model, for contrast (paper, Section II-C).

  A node sees :math:`X \sim N(\theta, \sigma^2 I_d)` with :math:`|\theta_j| \le B`, and in the sparse model
  at most s entries of :math:`\theta` are not zero.

  Attributes:
    dimension: d.
    sparsity: s, at most d; None is the plain model.
    sigma: :math:`\sigma > 0`.
    bound: B > 0.

  Raises:
    TypeError: when an argument has the wrong type.
    ValueError: when it is out of range.

  Examples:
    >>> import jax
    >>> from rtopk_jax import estimation
    >>> model = estimation.GaussianLocation(dimension=100, sparsity=3)
    >>> int((model.parameter(jax.random.key(0)) != 0).sum())
    3
  """

  dimension: int
  sparsity: int | None = None
  sigma: float = 1.0
  bound: float = 1.0

  def __post_init__(self):
    _checks.at_least("dimension", self.dimension, 1, integer=True)
    if self.sparsity is not None:
      _checks.at_least("sparsity", self.sparsity, 1, integer=True)
      if self.sparsity > self.dimension:
        raise ValueError(
          f"sparsity must be at most dimension={self.dimension}, got {self.sparsity!r}."
        )
    for name in ("sigma", "bound"):
      _checks.real(name, getattr(self, name))
      if getattr(self, name) <= 0:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}.")

  def parameter(self, key: jax.Array) -> jax.Array:
    r"""A random :math:`\theta`: uniform on the cube, or ±B on s random coordinates.

    Args:
      key: a PRNG key.

    Returns:
      Shape (d,), float32.
    """
    order_key, sign_key = jax.random.split(key)
    if self.sparsity is None:
      bound = self.bound
      return jax.random.uniform(order_key, (self.dimension,), minval=-bound, maxval=bound)
    support = jax.random.permutation(order_key, jnp.arange(self.dimension) < self.sparsity)
    signs = jax.random.rademacher(sign_key, (self.dimension,), jnp.float32)
    return jnp.where(support, signs * jnp.float32(self.bound), 0)

  def sample(self, key: jax.Array, theta: jax.Array) -> jax.Array:
    r"""What one node sees.

    Args:
      key: a PRNG key; nodes have keys of their own.
      theta: :math:`\theta`, shape (d,), float32.

    Returns:
      X, shape (d,), float32.
    """
    return theta + jnp.float32(self.sigma) * jax.random.normal(key, theta.shape)
