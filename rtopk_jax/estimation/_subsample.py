"""How many of the large entries to draw from: the estimated error of Algorithm 1 for every r/k."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rtopk_jax import _checks


def subsample_errors(
  gradients: npt.ArrayLike,
  k: int,
  *,
  rescale: bool = False,
  target: npt.ArrayLike | None = None,
) -> np.ndarray:
  r"""The mean squared error of one exchange for every r from k to d, in closed form.

  Of n gradients :math:`g_i` the server forms :math:`\hat g = \frac{c}{n} \sum_i \mathrm{rTop}_{r,k}(g_i)`,
  with c = 1 or, rescaled, c = r/k (the factor of Algorithm 1; paper, Section II-E). With p = k/r

  .. math::
    E\|\hat g - \bar g\|^2 = \Big\| \frac{c p}{n} \sum_i \mathrm{top}_r(g_i) - \bar g \Big\|^2
    + \frac{1}{n^2} \sum_i c^2 p (1 - p) \|\mathrm{top}_r(g_i)\|^2

  the squared bias and the variance of the subsampling. The expectation is over the
  subsampling alone.

  Args:
    gradients: one a worker, shape (n, d); what is selected from, so memory included if there is one.
    k: entries that a worker sends, from 1 to d.
    rescale: whether what is sent is multiplied by r/k.
    target: :math:`\bar g`, shape (d,), such as the gradient of a large held-out batch; None is the mean
      of the gradients.

  Returns:
    Shape (d − k + 1,), float64; entry i is the error for r = k + i. The first is top-k, the last random-k.

  Raises:
    TypeError: when an argument has the wrong type.
    ValueError: when shapes do not fit, k is out of range or an entry is not finite.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> alike = np.tile([1.0, 1.0, 0.0, 0.0], (2, 1))  # two workers, two large entries each
    >>> estimation.subsample_errors(alike, k=1).tolist()
    [1.0, 0.75, 1.1111111111111112, 1.3125]
  """
  _checks.flag("rescale", rescale)
  gradients = np.asarray(gradients, np.float64)
  if gradients.ndim != 2 or gradients.size == 0:
    raise ValueError(f"gradients must have shape (n, d), got {gradients.shape}.")
  n, d = gradients.shape
  _checks.at_least("k", k, 1, integer=True)
  if k > d:
    raise ValueError(f"k must be at most d = {d}, got {k}.")
  goal = gradients.mean(0) if target is None else np.asarray(target, np.float64)
  if goal.shape != (d,):
    raise ValueError(f"target must have shape {(d,)}, got {goal.shape}.")
  for name, value in (("gradients", gradients), ("target", goal)):
    if not np.isfinite(value).all():
      raise ValueError(f"{name} must be finite, got {value[~np.isfinite(value)][0]}.")

  order = np.argsort(-np.abs(gradients), axis=1, kind="stable")
  in_order = np.take_along_axis(gradients, order, axis=1)
  square = np.cumsum((in_order**2).sum(0))  # Σ ‖top_r(g_i)‖², for r = 1, …, d
  inner = np.cumsum((in_order * goal[order]).sum(0)) / n  # <mean of top_r(g_i), target>
  mean_square = _mean_square(gradients, order)  # ‖mean of top_r(g_i)‖²

  p = k / np.arange(k, d + 1)
  c = 1 / p if rescale else np.ones_like(p)
  kept = slice(k - 1, None)
  bias = (c * p) ** 2 * mean_square[kept] - 2 * c * p * inner[kept] + goal @ goal
  return bias + c**2 * p * (1 - p) * square[kept] / n**2


def _mean_square(gradients: np.ndarray, order: np.ndarray) -> np.ndarray:
  """‖mean over workers of top_r(g_i)‖² for r = 1, …, d.

  As r grows a coordinate of the mean changes where r passes its rank at one of the workers.
  """
  n, d = gradients.shape
  ranks = np.empty_like(order)
  np.put_along_axis(ranks, order, np.broadcast_to(np.arange(d), (n, d)), axis=1)
  by_rank = np.argsort(ranks, axis=0)
  steps = np.take_along_axis(ranks, by_rank, axis=0)
  means = np.cumsum(np.take_along_axis(gradients, by_rank, axis=0), axis=0) / n
  changes = np.diff(means**2, axis=0, prepend=0)
  return np.cumsum(np.bincount(steps.ravel(), changes.ravel(), minlength=d))


def best_subsample(
  gradients: npt.ArrayLike,
  k: int,
  *,
  rescale: bool = False,
  target: npt.ArrayLike | None = None,
  candidates: Sequence[float] | None = None,
) -> float:
  """The r/k of least estimated error: what to give ``rtop_k`` as ``subsample``.

  Args:
    gradients: one a worker, shape (n, d), as for ``subsample_errors``.
    k: entries that a worker sends, from 1 to d.
    rescale: whether what is sent is multiplied by r/k, as ``rtop_k(…, unbiased=True)`` does.
    target: what is estimated, shape (d,); None is the mean of the gradients.
    candidates: the r/k to choose from, each at least 1; None is all of them.

  Returns:
    r/k, the smallest of equals.

  Raises:
    TypeError: when an argument has the wrong type.
    ValueError: as ``subsample_errors`` does, and for candidates below 1 or none at all.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> alike = np.tile([1.0, 1.0, 0.0, 0.0], (2, 1))
    >>> estimation.best_subsample(alike, k=1)  # alike on 2 workers: r/k = n
    2.0
    >>> apart = np.array([[1.0, 0.1, 0.0], [0.1, 0.0, 1.0]])
    >>> estimation.best_subsample(apart, k=1)  # they share no large entry: top-k
    1.0
  """
  errors = subsample_errors(gradients, k, rescale=rescale, target=target)
  if candidates is None:
    return (k + int(np.argmin(errors))) / k
  if len(candidates) == 0:
    raise ValueError("candidates is empty.")
  for candidate in candidates:
    _checks.at_least("candidates", candidate, 1)
  d = errors.size + k - 1
  return float(min(candidates, key=lambda ratio: errors[min(d, round(ratio * k)) - k]))
