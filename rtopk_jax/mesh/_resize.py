"""Another number of workers: what the old ones remember is dealt out to the new ones."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from rtopk_jax import _checks
from rtopk_jax.transform import _state
from rtopk_jax.transform._delay import InFlight
from rtopk_jax.transform._metrics import find_metrics
from rtopk_jax.transform._ownership import ownership


def resize_workers(
  state: Any,
  new_count: int,
  *,
  tx: optax.GradientTransformation | None = None,
  params: Any = None,
) -> Any:
  r"""The state of another number of workers, in which nothing of what was not sent yet is lost.

  Worker i of n is the interval :math:`[i/n, (i+1)/n)` of a line, and what it remembers is spread evenly over it.
  The new workers divide the same line into n' intervals:

  .. math::
    \mathrm{new}_j = n' \sum_i \Big|\big[\tfrac in, \tfrac{i+1}n\big) \cap
      \big[\tfrac j{n'}, \tfrac{j+1}{n'}\big)\Big|\, \mathrm{old}_i

  so the mean over workers, which is what an exchange would make of it, stays what it was, and with twice
  the workers each old row is there twice. It is computed in float64; the rounding of a row is made up for
  by the next, which keeps the mean to one rounding of a single row. Messages in flight (``delay=1``) stay as they
  are, and the next exchange delivers all of them; their shapes are those of the old workers until then.

  Args:
    state: the state of an exchange, of a chain that has one or several, or of ``federated``, in its
      global layout ``(num_workers, *shape)``; NumPy or JAX arrays that this process can read whole.
    new_count: n', at least 1.
    tx: the transformation whose state it is, by which it is known whose every leaf is. It is needed, with
      ``params``, where transformations before or around the exchange have state that neither its sharding
      nor its shape gives away.
    params: the parameters, arrays or ``ShapeDtypeStruct``.

  Returns:
    The state with ``new_count`` rows where it had n, on no device in particular where it has JAX arrays:
    place it with ``rtopk_jax.state_specs``. All that is not a worker's own is what it was. Of rows that
    cannot be averaged (integers, keys) a worker gets those of the old worker it shares most with.

  Raises:
    TypeError: when ``new_count`` is not an integer, or the state is not that of ``tx``.
    ValueError: when it is below 1, when the state has no exchange in it, its rows are of no worker
      or of different numbers of them, or it cannot be told whether a leaf is rows.

  Examples:
    >>> import jax.numpy as jnp, rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.5), "data")
    >>> state = tx.init(jnp.zeros(1))._replace(residual=jnp.array([[1.0], [2.0], [6.0]]))
    >>> rtopk_jax.resize_workers(state, 2).residual.tolist()  # 3 workers with a mean of 3
    [[1.3333333730697632], [4.666666507720947]]
  """
  _checks.at_least("new_count", new_count, 1, integer=True)
  if not find_metrics(state):
    keys = f" A {type(state).__name__} without the types of tx.init is not one: restore into them."
    raise ValueError(
      "state has no exchange in it; pass the state of sparse_exchange, dense_exchange, federated or of "
      f"a chain that contains one.{keys if isinstance(state, dict | list) else ''}"
    )
  leaves, structure = jax.tree.flatten(state)
  if (tx is None) != (params is None):
    raise ValueError("tx and params belong together: give both of them, or neither.")
  is_rows = _rows_by_state(state) if tx is None else _rows_by_transformation(structure, tx, params)
  _check_counts("state", [x for x, own in zip(leaves, is_rows, strict=True) if own])
  resized = [_resize(x, new_count) if own else x for x, own in zip(leaves, is_rows, strict=True)]
  # Messages are no numbers that could be averaged.
  is_message = lambda x: isinstance(x, InFlight)
  return jax.tree.map(
    lambda old, new: old.resized(new_count) if is_message(old) else new,
    state,
    jax.tree.unflatten(structure, resized),
    is_leaf=is_message,
  )


def _rows_by_transformation(
  structure: Any, tx: optax.GradientTransformation, params: Any
) -> list[bool]:
  """Which leaves are rows of every worker, by the transformation."""
  owned = ownership(tx, params)
  owned.check_structure(structure)
  return [bool(leaf.axes) for leaf in owned.leaves]


class _Row(NamedTuple):
  """A leaf that is rows."""

  rows: Any


def _rows_by_state(state: Any) -> list[bool]:
  """Which leaves are rows of every worker, by the state alone.

  An exchange's state names its own. Other leaves are told by their sharding, or by their shape: that of the rows
  of the same parameter, or that of the parameter.
  """
  is_row = lambda x: isinstance(x, _Row)
  marked = jax.tree.leaves_with_path(_state.map_rows(_Row, state), is_leaf=is_row)
  rows = [(path, x.rows) for path, x in marked if is_row(x)]
  count = rows[0][1].shape[0] if rows and np.shape(rows[0][1]) else 0
  axes = {_first_axis(x) for _, x in rows} - {None}
  return [is_row(x) or _is_rows(path, x, rows, count, axes) for path, x in marked]


def _is_rows(
  path: tuple[Any, ...],
  x: Any,
  rows: list[tuple[tuple[Any, ...], Any]],
  count: int,
  axes: set[Any],
) -> bool:
  """Whether a leaf of another transformation is rows."""
  shape = np.shape(x)
  if not count or shape[:1] != (count,):
    return False
  if axes and isinstance(getattr(x, "sharding", None), NamedSharding):
    return _first_axis(x) in axes
  closeness = [_state.common_end(path, at) for at, _ in rows]
  closest = zip(rows, closeness, strict=True)
  alike = {row.shape[1:] for (_, row), close in closest if 0 < close == max(closeness)}
  if (shape in alike) != (shape[1:] in alike):
    return shape[1:] in alike
  raise ValueError(
    f"state{jax.tree_util.keystr(path)} has shape {shape}, and it cannot be told whether that is a row of each "
    f"of {count} workers or the same on all of them. Give tx= and params= to resize_workers."
  )


def _first_axis(x: Any) -> Any:
  """What the leading axis of an array is sharded over; None for nothing."""
  sharding = getattr(x, "sharding", None)
  if not isinstance(sharding, NamedSharding) or not len(sharding.spec):
    return None
  return sharding.spec[0]


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
  _check_counts("rows", jax.tree.leaves(rows))
  return jax.tree.map(lambda x: _resize(x, new_count), rows)


def _check_counts(name: str, rows: list[Any]) -> None:
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
