"""Another number of workers: what the old ones remember is dealt out to the new ones."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rtopk_jax import _checks, _state
from rtopk_jax._metrics import find_metrics


def resize_workers(state: Any, new_count: int) -> Any:
  r"""The state of another number of workers, in which nothing of what was not sent yet is lost.

  Worker i of n is the stretch :math:`[i/n, (i+1)/n)` of a line, and what it remembers is spread over it.
  The new workers cut the same line into n' stretches:

  .. math::
    \mathrm{new}_j = n' \sum_i \Big|\big[\tfrac in, \tfrac{i+1}n\big) \cap
      \big[\tfrac j{n'}, \tfrac{j+1}{n'}\big)\Big|\, \mathrm{old}_i

  so the mean over workers, which is what an exchange would make of it, stays what it was, and with twice
  the workers each old row is there twice. It is computed in float64; the rounding of a row is made up for
  by the next, which keeps the mean to one rounding of a single row.

  Args:
    state: the state of an exchange, of a chain that has one or several, or of ``federated``, in its
      global layout ``(num_workers, *shape)``; NumPy or JAX arrays that this process can read whole.
    new_count: n', at least 1.

  Returns:
    The state with ``new_count`` rows where it had n, on no device in particular where it has JAX arrays:
    place it with ``rtopk_jax.state_specs``. All that is not a worker's own is what it was. Of rows that
    cannot be averaged (integers, keys) a worker gets those of the old worker it shares most with.

  Raises:
    TypeError: when ``new_count`` is not an integer.
    ValueError: when it is below 1, when the state has no exchange in it, or its rows are of no worker
      or of different numbers of them.

  Examples:
    >>> import jax.numpy as jnp, rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.5), "data")
    >>> state = tx.init(jnp.zeros(1))._replace(residual=jnp.array([[1.0], [2.0], [6.0]]))
    >>> rtopk_jax.resize_workers(state, 2).residual.tolist()  # 3 workers with a mean of 3
    [[1.3333333730697632], [4.666666507720947]]
  """
  _checks.at_least("new_count", new_count, 1, integer=True)
  if not find_metrics(state):
    raise ValueError(
      "state has no exchange in it; pass the state of sparse_exchange, dense_exchange, federated or of "
      "a chain that contains one."
    )
  rows: list[Any] = []
  _state.map_rows(rows.append, state)
  _count("state", rows)
  return _state.map_rows(lambda x: _resize(x, new_count), state)


def resize_rows(rows: Any, new_count: int) -> Any:
  """``resize_workers`` for a tree of rows: what each worker keeps beside the optimizer's state.

  Args:
    rows: a tree of arrays ``(num_workers, *shape)``, batch statistics of every worker for example.
    new_count: as for ``resize_workers``.

  Returns:
    The tree with ``new_count`` rows.

  Raises:
    TypeError: as ``resize_workers`` does.
    ValueError: likewise.

  Examples:
    >>> import numpy as np, rtopk_jax
    >>> rtopk_jax.resize_rows({"mean": np.array([[1.0], [3.0]])}, 1)["mean"].tolist()
    [[2.0]]
  """
  _checks.at_least("new_count", new_count, 1, integer=True)
  _count("rows", jax.tree.leaves(rows))
  return jax.tree.map(lambda x: _resize(x, new_count), rows)


def _count(name: str, rows: list[Any]) -> None:
  """Refuses rows that are not those of one number of workers."""
  shapes = [tuple(np.shape(x)) for x in rows]
  counts = sorted({shape[0] if shape else 0 for shape in shapes})
  if counts == [0]:
    raise ValueError(
      f"{name} has no worker's row: it was made outside the mapped axis. Give the global state, with "
      "arrays (num_workers, *shape), that rtopk_jax.init makes or a training step returns."
    )
  if len(counts) > 1:
    raise ValueError(
      f"{name} has rows of different numbers of workers, {counts}: it is not in the global layout, "
      "arrays (num_workers, *shape)."
    )


def _overlaps(old: int, new: int, j: int) -> Iterator[tuple[int, int]]:
  """The old workers that new worker j shares with, and n·n' times how much; they sum to n."""
  for i in range(j * old // new, -(-(j + 1) * old // new)):
    yield i, min((i + 1) * new, (j + 1) * old) - max(i * new, j * old)


def _resize(rows: Any, new_count: int) -> Any:
  old = rows.shape[0]
  if not jnp.issubdtype(rows.dtype, jnp.floating):
    # The first of those who share most.
    owners = [
      max(_overlaps(old, new_count, j), key=lambda pair: pair[1])[0] for j in range(new_count)
    ]
    return rows[np.array(owners)]
  host = np.asarray(rows)
  result = np.empty((new_count, *host.shape[1:]), host.dtype)
  missing = np.zeros(host.shape[1:], np.float64)
  for j in range(new_count):
    exact = missing
    for i, weight in _overlaps(old, new_count, j):
      exact = exact + host[i].astype(np.float64) * (weight / old)
    result[j] = exact.astype(host.dtype)
    missing = exact - result[j].astype(np.float64)
  return result if isinstance(rows, np.ndarray) else jnp.asarray(result)
