"""The three selectors of the paper by name: of one family, which ``RTopK`` is."""

import math

from rtopk_jax.select._rtop_k import RTopK
from rtopk_jax.select._warmup import Stages


def rtop_k(
  density: float | Stages,
  subsample: float | None = None,
  *,
  unbiased: bool = False,
  method: str = "search",
) -> RTopK:
  r"""rTop-k: a uniformly random k of the r entries of largest magnitude.

  With :math:`k = \max(1, \mathrm{round}(\rho d))` and :math:`r = \min(d, \mathrm{round}(\sigma k))`,

  .. math::
    \mathrm{rTop}_{r,k}(x)_j = x_j \ \text{for}\ j \in S,\quad 0\ \text{elsewhere},\qquad
    S \sim \mathrm{Unif}\{S \subseteq \mathrm{top}_r(x) : |S| = k\},

  rTopEncode of Algorithm 1 (paper, Section II-E). Its contraction is
  :math:`E\|x - C(x)\|^2 = \|x\|^2 - \tfrac{k}{r}\|\mathrm{top}_r(x)\|^2`.

  Args:
    density: :math:`\rho` = k/d in (0, 1], or ``warmup_density(…)``.
    subsample: :math:`\sigma` = r/k, at least 1. None is the number of workers, so that an entry that is
      large on all of them is sent by one of them in expectation. With 1/ρ workers and more that would be
      random-k, and is refused; but not in a warm-up before its last stage, whose densities are high: its first
      epochs are random-k, unless a subsample is given.
    unbiased: scale values by r/k, so that the message's mean is :math:`\mathrm{top}_r(x)`. Not together
      with error feedback.
    method: "search" finds entries by counting; "sort" by ``jax.lax.top_k`` and a sort of random numbers, which
      takes longer and is there to compare with. Blocks are always counted.

  Returns:
    A ``Selector``.

  Raises:
    TypeError: when an argument has the wrong type.
    ValueError: for a density outside (0, 1], a subsample below 1 or a method that there is not.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> selector = rtopk_jax.rtop_k(density=0.2, subsample=2)
    >>> slices = selector(jnp.arange(10.0), jax.random.key(0))
    >>> slices.values.shape, bool((slices.values >= 6).all())  # 2 of the 4 largest
    ((2,), True)
    >>> slices.to_dense().shape
    (10,)
  """
  return RTopK(density, subsample, unbiased, method)


def top_k(density: float | Stages, *, method: str = "search") -> RTopK:
  r"""Top-k: the k entries of largest magnitude, :math:`k = \max(1, \mathrm{round}(\rho d))`.

  rTop-k with r = k (paper, Section III-A).

  Args:
    density: :math:`\rho` = k/d in (0, 1], or ``warmup_density(…)``.
    method: "search" finds entries by counting; "sort" by ``jax.lax.top_k`` and a sort of random numbers, which
      takes longer and is there to compare with. Blocks are always counted.

  Returns:
    A ``Selector``.

  Raises:
    TypeError: when the density is not a number.
    ValueError: for a density outside (0, 1] or a method that there is not.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> slices = rtopk_jax.top_k(0.5)(jnp.array([1.0, -4.0, 3.0, 0.0]), jax.random.key(0))
    >>> slices.values.tolist(), slices.indices.tolist()
    ([-4.0, 3.0], [1, 2])
    >>> reference = rtopk_jax.top_k(0.5, method="sort")(slices.to_dense(), jax.random.key(0))
    >>> reference.indices.tolist()
    [1, 2]
  """
  return RTopK(density, 1, method=method)


def random_k(density: float | Stages, *, unbiased: bool = False, method: str = "search") -> RTopK:
  r"""Random-k: a uniformly random k of all d entries, :math:`k = \max(1, \mathrm{round}(\rho d))`.

  rTop-k with r = d (paper, Section III-A).

  Args:
    density: :math:`\rho` = k/d in (0, 1], or ``warmup_density(…)``.
    unbiased: scale values by d/k, so that the message's mean is the vector. Not together with error
      feedback.
    method: "search" finds entries by counting; "sort" by ``jax.lax.top_k`` and a sort of random numbers, which
      takes longer and is there to compare with. Blocks are always counted.

  Returns:
    A ``Selector``.

  Raises:
    TypeError: when an argument has the wrong type.
    ValueError: for a density outside (0, 1] or a method that there is not.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> slices = rtopk_jax.random_k(0.5, unbiased=True)(jnp.ones(4), jax.random.key(0))
    >>> slices.values.tolist()
    [2.0, 2.0]
  """
  return RTopK(density, math.inf, unbiased, method)
