r"""What the server reads of a node's sample: the scheme of Theorem 1, and what it is compared with.

A scheme maps a quantised sample to the vector that the server averages over nodes,

.. math::
  \hat\theta = \frac1n \sum_{i=1}^n C_i(X_i)

and knows its exact risk. Selections are the library's own: the ones that Theorem 1 keeps are a top-k′ of
the sample under random weights, hence rTop-k with :math:`r = \|X\|_1`.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

import rtopk_jax
from rtopk_jax import _checks
from rtopk_jax.estimation import _ones


class Scheme(Protocol):
  """What ``simulate`` and ``squared_errors`` run: a protocol of two methods.

  Examples:
    >>> from rtopk_jax import estimation
    >>> schemes: list[estimation.Scheme] = [estimation.RandomOnes(4), estimation.TopOnes(4)]
    >>> [round(scheme.risk([0.5] * 16, num_nodes=10), 2) for scheme in schemes]
    [1.3, 1.87]
  """

  def __call__(self, key: jax.Array, sample: jax.Array) -> jax.Array:
    """What the server reads of one node.

    Args:
      key: a PRNG key of this node's.
      sample: quantised, shape (d,), float32, entries in {0, 1}, or {−1, 0, 1} of a signed model.

    Returns:
      Shape (d,), float32; the server averages it over the nodes.
    """
    ...

  def risk(self, theta: npt.ArrayLike, num_nodes: int) -> float:
    r""":math:`E\|\hat\theta - \theta\|^2`, exactly.

    Args:
      theta: :math:`\theta`, shape (d,).
      num_nodes: n.

    Returns:
      The risk.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Centralized:
  r"""No limit: the server sees the samples.

  The risk is :math:`\frac1n \sum_j |\theta_j| (1 - |\theta_j|)`.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> estimation.Centralized().risk(np.full(8, 0.5), num_nodes=10)
    0.2
  """

  def __call__(self, key: jax.Array, sample: jax.Array) -> jax.Array:
    """As ``Scheme.__call__``: the sample itself. Nothing is random."""
    del key
    return sample

  def risk(self, theta: npt.ArrayLike, num_nodes: int) -> float:
    """As ``Scheme.risk``."""
    magnitude = _magnitude(theta)
    return float((magnitude * (1 - magnitude)).sum()) / num_nodes


@dataclasses.dataclass(frozen=True)
class RandomOnes:
  r"""Theorem 1's scheme without the bit strings: a uniformly random k′ of the ones, rescaled.

  .. math::
    C(X) = \tilde X / S, \qquad S = \min(1, k' / \|X\|_1)

  It is unbiased, and with :math:`N = \|X\|_1`

  .. math::
    E\|\hat\theta - \theta\|^2 = \frac1n \Big( E[N \max(1, N/k')] - \|\theta\|^2 \Big)

  (paper, Section IV).

  Attributes:
    max_ones: k′ >= 1, for k bits ``max_ones(d, k)``.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> estimation.RandomOnes(2).risk(np.array([1.0, 1.0, 1.0, 1.0, 0.0]), num_nodes=4)
    1.0
  """

  max_ones: int

  def __post_init__(self):
    _checks.at_least("max_ones", self.max_ones, 1, integer=True)

  def __call__(self, key: jax.Array, sample: jax.Array) -> jax.Array:
    """As ``Scheme.__call__``: the ones that are kept, times what makes up for the others."""
    total = jnp.count_nonzero(sample).astype(jnp.float32)
    weights = jax.random.uniform(key, sample.shape, minval=1.0, maxval=2.0)
    chosen = _top(sample * weights, self.max_ones).indices
    kept = jnp.zeros_like(sample).at[chosen].set(sample[chosen], unique_indices=True)
    return kept * jnp.maximum(total / self.max_ones, 1)

  def risk(self, theta: npt.ArrayLike, num_nodes: int) -> float:
    """As ``Scheme.risk``."""
    magnitude = _magnitude(theta)
    # N max(1, N/k') is N²/k', and N - N²/k' more where N < k'.
    _, second = _ones.moments(magnitude)
    few = np.arange(self.max_ones)
    more = _ones.pmf(magnitude, self.max_ones) @ (few - few**2 / self.max_ones)
    return float(second / self.max_ones + more - (magnitude**2).sum()) / num_nodes


@dataclasses.dataclass(frozen=True)
class TopOnes:
  r"""Top-k′ without subsampling: the first k′ ones, since all ones are equally large.

  It is biased: with :math:`q_j = \theta_j P(\text{fewer than k′ ones before } j)`

  .. math::
    E\|\hat\theta - \theta\|^2 = \sum_j \Big( (q_j - \theta_j)^2 + \frac{q_j (1 - q_j)}{n} \Big)

  Attributes:
    max_ones: k′ >= 1.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> estimation.TopOnes(2).risk(np.array([1.0, 1.0, 1.0, 1.0, 0.0]), num_nodes=4)
    2.0
  """

  max_ones: int

  def __post_init__(self):
    _checks.at_least("max_ones", self.max_ones, 1, integer=True)

  def __call__(self, key: jax.Array, sample: jax.Array) -> jax.Array:
    """As ``Scheme.__call__``: the first ones. Nothing is random."""
    del key
    return _top(sample, self.max_ones).to_dense()

  def risk(self, theta: npt.ArrayLike, num_nodes: int) -> float:
    """As ``Scheme.risk``."""
    magnitude = _magnitude(theta)
    sent = magnitude * _ones.prefix_tail(magnitude, self.max_ones)
    return float(((sent - magnitude) ** 2 + sent * (1 - sent) / num_nodes).sum())


@dataclasses.dataclass(frozen=True)
class RandomCoordinates:
  r"""Random-k′: a uniformly random c of all d coordinates, times d/c.

  The risk is :math:`\frac1n \sum_j (\frac{d}{c} |\theta_j| - \theta_j^2)`.

  Attributes:
    count: c >= 1.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> estimation.RandomCoordinates(2).risk(np.full(8, 0.5), num_nodes=10)
    1.4
  """

  count: int

  def __post_init__(self):
    _checks.at_least("count", self.count, 1, integer=True)

  def __call__(self, key: jax.Array, sample: jax.Array) -> jax.Array:
    """As ``Scheme.__call__``: the chosen coordinates, rescaled."""
    selector = rtopk_jax.random_k(min(1.0, self.count / sample.shape[0]), unbiased=True)
    return selector(sample, key).to_dense()

  def risk(self, theta: npt.ArrayLike, num_nodes: int) -> float:
    """As ``Scheme.risk``."""
    magnitude = _magnitude(theta)
    factor = max(1.0, magnitude.size / self.count)
    return float((factor * magnitude - magnitude**2).sum()) / num_nodes


@dataclasses.dataclass(frozen=True)
class OneBit:
  r"""One bit for each of k random coordinates, which shared randomness chooses: no index is sent.

  A coordinate x in [−1, 1] is sent as a random sign of mean x, one in {0, 1} as it is. The risk is
  :math:`\frac1n \sum_j (\frac{d}{k} - \theta_j^2)` with signs, and that of ``RandomCoordinates`` for k
  coordinates without.

  Attributes:
    count: k >= 1, coordinates and bits.
    signed: whether samples have entries in [−1, 1] rather than {0, 1}.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> estimation.OneBit(4).risk(np.full(8, 0.5), num_nodes=10)
    0.6
  """

  count: int
  signed: bool = False

  def __post_init__(self):
    _checks.at_least("count", self.count, 1, integer=True)
    _checks.flag("signed", self.signed)

  def __call__(self, key: jax.Array, sample: jax.Array) -> jax.Array:
    """As ``Scheme.__call__``: the bits' values where a coordinate was chosen, rescaled."""
    choice_key, bit_key = jax.random.split(key)
    if self.signed:
      up = jax.random.uniform(bit_key, sample.shape) < (1 + sample) / 2
      sample = jnp.where(up, 1.0, -1.0)
    return RandomCoordinates(self.count)(choice_key, sample)

  def risk(self, theta: npt.ArrayLike, num_nodes: int) -> float:
    """As ``Scheme.risk``."""
    if not self.signed:
      return RandomCoordinates(self.count).risk(theta, num_nodes)
    magnitude = _magnitude(theta)
    factor = max(1.0, magnitude.size / self.count)
    return float((factor - magnitude**2).sum()) / num_nodes


def _magnitude(theta: npt.ArrayLike) -> np.ndarray:
  return np.abs(np.asarray(theta, np.float64))


def _top(vector: jax.Array, count: int) -> rtopk_jax.SparseSlices:
  selector = rtopk_jax.top_k(min(1.0, count / vector.shape[0]))
  return selector(vector, jax.random.key(0))  # top-k draws nothing
