r"""Theorems 1 and 2, and the ingredient of Theorem 3: functions for what they say.

All logarithms are to base 2, except where ln says so.
"""

import math

import numpy as np
import numpy.typing as npt

from rtopk_jax import _checks
from rtopk_jax.estimation import _ones

#: C of Theorem 1, as its proof gives it: 3 of s²/k′, 1.5 of s/k′ and 1 of E N (paper, Section IV).
THEOREM_1_CONSTANT = 5.5


def inequality_4(theta: npt.ArrayLike, max_ones: int, num_nodes: int) -> float:
  r"""The bound on the risk at one parameter that Theorem 1 follows from (paper, Section IV, inequality (4)).

  With :math:`N = \|X\|_1` and :math:`S = \min(1, k'/N)`

  .. math::
    E\|\hat\theta - \theta\|^2 \le \frac1n E\frac{N}{S} \le \frac1n \Big( E N + \frac{E N^2}{k'} \Big),
    \qquad E N = \sum_j \theta_j, \quad E N^2 = \Big(\sum_j \theta_j\Big)^2 + \sum_j \theta_j (1 - \theta_j)

  and it is the last expression that is evaluated. ``RandomOnes(k').risk`` is the left side. The paper prints
  k′ where this has E N: both bound the ones of a node that drops none, which has at most k′ of them.

  Args:
    theta: :math:`\theta`, shape (d,); of a signed one the magnitudes count.
    max_ones: k′ >= 1.
    num_nodes: n >= 1.

  Returns:
    The right side, for M = 1.

  Raises:
    TypeError: when a count is not an integer.
    ValueError: when one is below 1.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> theta = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    >>> estimation.inequality_4(theta, max_ones=2, num_nodes=4)
    3.0
    >>> estimation.RandomOnes(2).risk(theta, num_nodes=4)
    1.0
  """
  _checks.at_least("max_ones", max_ones, 1, integer=True)
  _checks.at_least("num_nodes", num_nodes, 1, integer=True)
  mean, second = _ones.moments(np.abs(np.asarray(theta, np.float64)))
  return (mean + second / max_ones) / num_nodes


def upper_bound(dimension: int, sparsity: float, num_nodes: int, bits: int) -> float:
  r"""Theorem 1 (paper, Section II-D), with a constant.

  The k-bit scheme's risk anywhere in :math:`\Theta` is at most

  .. math::
    C\, \frac{s^2 \log_2 d}{n k}, \qquad C = 5.5, \qquad 2 \log_2 d \le k \le s \log_2 d

  C is what the proof gives: :math:`k' = \lfloor k / \log_2 d \rfloor - 1 \ge k / (3 \log_2 d)`, so that of
  inequality (4) :math:`s^2/k'` is at most 3 times the rate, :math:`s/k'` at most 1.5 times since
  :math:`s \ge 2`, and s at most once since :math:`k \le s \log_2 d`.

  Args:
    dimension: d.
    sparsity: s.
    num_nodes: n.
    bits: k.

  Returns:
    The bound. ``THEOREM_1_CONSTANT`` is C.

  Raises:
    TypeError: when an argument is not a number.
    ValueError: when a condition of the theorem fails; the error names it.

  Examples:
    >>> from rtopk_jax import estimation
    >>> estimation.upper_bound(dimension=1024, sparsity=20, num_nodes=100, bits=50)
    4.4
  """
  _check_sizes(dimension, sparsity, num_nodes, bits)
  log_d = math.log2(dimension)
  _condition("Theorem 1", "2·log2(d) <= k", 2 * log_d, bits)
  _condition("Theorem 1", "k <= s·log2(d)", bits, sparsity * log_d)
  return THEOREM_1_CONSTANT * sparsity**2 * log_d / (num_nodes * bits)


def lower_bound(dimension: int, sparsity: float, num_nodes: int, bits: int) -> float:
  r"""Theorem 2 (paper, Section II-D, inequality (3)), up to its constant.

  No k-bit scheme has a worst-case risk below c times

  .. math::
    \max\Big\{ \frac{s^2 \log_2(d/s)}{n k}, \frac{s}{n} \Big\}, \qquad
    n k \ge d \log_2(d/s), \quad s \le d/2

  Args:
    dimension: d.
    sparsity: s.
    num_nodes: n.
    bits: k.

  Returns:
    The maximum, without c.

  Raises:
    TypeError: when an argument is not a number.
    ValueError: when a condition of the theorem fails; the error names it.

  Examples:
    >>> from rtopk_jax import estimation
    >>> estimation.lower_bound(dimension=1024, sparsity=16, num_nodes=256, bits=48)
    0.125
  """
  _check_sizes(dimension, sparsity, num_nodes, bits)
  _condition("Theorem 2", "s <= d/2", sparsity, dimension / 2)
  log_ratio = math.log2(dimension / sparsity)
  _condition("Theorem 2", "d·log2(d/s) <= n·k", dimension * log_ratio, num_nodes * bits)
  return max(sparsity**2 * log_ratio / (num_nodes * bits), sparsity / num_nodes)


def _check_sizes(dimension: int, sparsity: float, num_nodes: int, bits: int) -> None:
  _checks.at_least("dimension", dimension, 2, integer=True)
  _checks.real("sparsity", sparsity)
  if not 0 < sparsity <= dimension:
    raise ValueError(f"sparsity must be in (0, dimension={dimension}], got {sparsity!r}.")
  _checks.at_least("num_nodes", num_nodes, 1, integer=True)
  _checks.at_least("bits", bits, 1, integer=True)


def _condition(theorem: str, text: str, left: float, right: float) -> None:
  """Refuses what a theorem does not speak of."""
  if left > right:
    raise ValueError(f"{theorem} needs {text}, got {left:.6g} <= {right:.6g}, which is false.")


def score_orlicz_norm(theta: npt.ArrayLike) -> np.ndarray:
  r"""The :math:`\Psi_2` norm of one coordinate's score (paper, Section V, before Theorem 3).

  The score of Bern(θ) is :math:`S = (X - \theta) / (\theta (1 - \theta))`, and

  .. math::
    \|S\|_{\Psi_2} = \inf\{c > 0 : E \exp(S^2 / c^2) \le 2\}

  Args:
    theta: any shape, entries in (0, 1).

  Returns:
    The norms, to a relative 1e-12, same shape, float64.

  Raises:
    ValueError: when an entry is not in (0, 1).

  Examples:
    >>> from rtopk_jax import estimation
    >>> round(float(estimation.score_orlicz_norm(0.5)), 4)  # S = ±2: 2/sqrt(ln 2)
    2.4022
  """
  theta = _open_unit("theta", theta)
  high = 1 / (
    np.minimum(theta, 1 - theta) * np.sqrt(np.log(2))
  )  # where even the largest |S| suffices
  low = high * 1e-3
  with np.errstate(over="ignore"):
    for _ in range(60):
      middle = np.sqrt(low * high)
      mean = theta * np.exp((theta * middle) ** -2) + (1 - theta) * np.exp(
        ((1 - theta) * middle) ** -2
      )
      low, high = np.where(mean > 2, middle, low), np.where(mean > 2, high, middle)
  return high


def score_subgaussian_norm(theta: npt.ArrayLike) -> np.ndarray:
  r"""A bound on the :math:`\Psi_2` norm of the score in every direction.

  Bern(θ) is sub-Gaussian with variance proxy :math:`(1 - 2\theta) / (2 \ln((1-\theta)/\theta))` (Kearns
  and Saul), hence the score with that over :math:`\theta^2 (1-\theta)^2 =: \sigma^2`. Proxies of
  independent coordinates add, so the largest :math:`\sigma^2` serves every unit vector u, and a variable
  with proxy :math:`\sigma^2` has :math:`\|\langle u, S \rangle\|_{\Psi_2}^2 \le \frac83 \sigma^2`.

  Args:
    theta: any shape, entries in (0, 1).

  Returns:
    :math:`\sqrt{8/3}\, \sigma`, same shape, float64.

  Raises:
    ValueError: when an entry is not in (0, 1).

  Examples:
    >>> from rtopk_jax import estimation
    >>> bound, norm = estimation.score_subgaussian_norm(0.01), estimation.score_orlicz_norm(0.01)
    >>> bool(norm <= bound)
    True
  """
  theta = _open_unit("theta", theta)
  gap = 1 - 2 * theta
  half = np.abs(gap) < 1e-6  # there the proxy is 1/4 up to gap²/12
  logit = np.log1p(-theta) - np.log(theta)
  proxy = np.where(half, 0.25, gap / (2 * np.where(half, 1, logit)))
  return np.sqrt(8 / 3 * proxy) / (theta * (1 - theta))


def score_norm_bound(dimension: int, sparsity: float) -> float:
  r"""N, the bound on the score's :math:`\Psi_2` norm over the cube :math:`[s/2d, s/d]^d`.

  .. math::
    N^2 = \frac{16}{3 \ln 2}\, \frac{(d/s)^2}{\log_2(d/s)}

  With it Theorem 3 yields Theorem 2 (paper, Section V). It is ``score_subgaussian_norm`` at :math:`\theta = s/2d`, where that
  is largest, simplified by :math:`1 - 2\theta \le (1-\theta)^2` and :math:`2d/s - 1 \ge d/s`.

  Args:
    dimension: d.
    sparsity: s, at most d/2.

  Returns:
    N.

  Raises:
    TypeError: when an argument is not a number.
    ValueError: when s is not in (0, d/2].

  Examples:
    >>> from rtopk_jax import estimation
    >>> round(estimation.score_norm_bound(dimension=1000, sparsity=10), 2)
    107.62
  """
  _check_sizes(dimension, sparsity, 1, 1)
  _condition("Theorem 2", "s <= d/2", sparsity, dimension / 2)
  ratio = dimension / sparsity
  return math.sqrt(16 / 3 / math.log(2) / math.log2(ratio)) * ratio


def _open_unit(name: str, value: npt.ArrayLike) -> np.ndarray:
  value = np.asarray(value, np.float64)
  if not np.all((value > 0) & (value < 1)):
    raise ValueError(f"{name} must have entries in (0, 1), got {value}.")
  return value
