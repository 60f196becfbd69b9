"""What an exchange cost and how it did."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rtopk_jax import _checks, _modes
from rtopk_jax.transform import _gradients
from rtopk_jax.transform._optax import gradient_like, update_as_traced


class ExchangeMetrics(NamedTuple):
  """Sums over the last exchange, the same on all workers; ``exchange_metrics`` makes them readable.

  Attributes:
    sent_square: squared norm of a worker's message, mean over workers.
    residual_square: squared norm of a worker's residual, mean over workers.
    received: entries of the compressed leaves that the reduced update changes.
    entries: entries of the compressed leaves.
    skipped: steps skipped so far because a worker had a non-finite entry.

  Examples:
    >>> import jax.numpy as jnp, rtopk_jax
    >>> state = rtopk_jax.dense_exchange("data").init({"w": jnp.zeros(4)})
    >>> int(state.metrics.skipped)
    0
  """

  sent_square: jax.Array
  residual_square: jax.Array
  received: jax.Array
  entries: jax.Array
  skipped: jax.Array


def no_metrics() -> ExchangeMetrics:
  """The metrics before the first exchange."""
  zero = jnp.zeros((), jnp.float32)
  return ExchangeMetrics(zero, zero, zero, zero, jnp.zeros((), jnp.int32))


def find_metrics(state: Any) -> list[ExchangeMetrics]:
  """The metrics of every exchange in a state."""
  is_metrics = lambda x: isinstance(x, ExchangeMetrics)
  return [x for x in jax.tree.leaves(state, is_leaf=is_metrics) if is_metrics(x)]


def was_taken(after: Any, before: Any) -> jax.Array:
  """Whether no exchange of a state has skipped the step between two: the same on all workers."""
  pairs = zip(find_metrics(after), find_metrics(before), strict=True)
  return jnp.stack([new.skipped == old.skipped for new, old in pairs]).all()


class WireBytes(NamedTuple):
  """Bytes of one step's collectives for one worker.

  Attributes:
    sent: what the worker hands to the collectives, once.
    received: what it needs of the others: their messages of an all-gather, the rows for it of an
      all-to-all, the sum of an all-reduce.
    link: what leaves (and what enters) its network interface when collectives run as rings, as they do
      on most backends: n − 1 times its message for an all-gather, (n − 1)/n times its table for an
      all-to-all, 2(n − 1)/n times its vector for an all-reduce.

  Examples:
    >>> import jax.numpy as jnp, rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.01), "data")
    >>> rtopk_jax.wire_bytes(tx, {"w": jnp.zeros((100, 100))}, num_workers=4)
    WireBytes(sent=1024, received=3072, link=3072)
  """

  sent: int
  received: int
  link: int


def exchange_metrics(state: Any) -> dict[str, jax.Array]:
  """How the last exchange went, as scalars that are the same on all workers.

  Args:
    state: the state of an exchange, or of a chain that has one or several.

  Returns:
    ``sent_norm`` and ``residual_norm`` (root mean square over workers of the norm of what a worker sent
    and of what it kept, the latter worked out from the former and exact to some 1e-4 of it), ``union_coverage`` (share of the compressed entries that the reduced update
    changes) and ``skipped_steps`` (so far, for non-finite gradients). All zero before the first step.

  Raises:
    ValueError: when the state has no exchange in it.

  Examples:
    >>> import jax.numpy as jnp, optax, rtopk_jax
    >>> tx = optax.chain(rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "data"), optax.sgd(0.1))
    >>> metrics = rtopk_jax.exchange_metrics(tx.init({"w": jnp.ones((64, 32))}))
    >>> sorted(metrics)
    ['residual_norm', 'sent_norm', 'skipped_steps', 'union_coverage']
  """
  found = find_metrics(state)
  if not found:
    raise ValueError(
      "state has no exchange in it; pass the state of sparse_exchange, dense_exchange or of a chain "
      "that contains one."
    )
  # Several exchanges share out the leaves between them, so sums add up.
  total = jax.tree.map(lambda *sums: jnp.stack(sums).sum(axis=0), *found)
  return {
    "sent_norm": jnp.sqrt(total.sent_square),
    "residual_norm": jnp.sqrt(total.residual_square),
    "union_coverage": total.received / jnp.maximum(total.entries, 1),
    "skipped_steps": jnp.stack([x.skipped for x in found]).max(axis=0),
  }


def wire_bytes(
  tx: optax.GradientTransformation, params: Any, num_workers: int, step: int | None = None
) -> WireBytes:
  """The bytes a worker sends and receives in a step, counted from the buffers that are exchanged.

  The update is traced, not run, with collectives that note what they would have done to a link.

  With ``Hierarchical`` a worker is all chips of the fast axis, and so are its bytes: each chip sends a part of the
  message, up to whole tiles of 512 bytes. What the mean over the fast axis takes is not counted.

  Args:
    tx: an exchange, or a chain that has one.
    params: the parameters, arrays or ``ShapeDtypeStruct``.
    num_workers: n.
    step: the step meant, for a density that warms up; None is after the warm-up.

  Returns:
    ``WireBytes``.

  Raises:
    TypeError: when ``num_workers`` or ``step`` is not an integer, a leaf is no array, or a collective states no
      bytes.
    ValueError: when ``num_workers`` is below 1 or ``step`` below 0.

  Examples:
    >>> import jax.numpy as jnp, rtopk_jax
    >>> params = {"w": jnp.ones((1000, 100))}
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.001), "data")
    >>> rtopk_jax.wire_bytes(tx, params, num_workers=5)  # 100 pairs and a header, in whole tiles
    WireBytes(sent=1024, received=4096, link=4096)
    >>> rtopk_jax.wire_bytes(rtopk_jax.dense_exchange("data"), params, num_workers=5)
    WireBytes(sent=400000, received=400000, link=640000)
  """
  measured = _dry_run(tx, params, num_workers, step)
  total = sum(measured.traffic, _modes.Traffic.none())
  return WireBytes(round(total.sent), round(total.received), round(total.link))


def chosen_collectives(
  tx: optax.GradientTransformation, params: Any, num_workers: int, step: int | None = None
) -> tuple[Any, ...]:
  """What every ``Auto`` chooses in a step that no worker is absent from; found like ``wire_bytes``.

  Args:
    tx: an exchange, or a chain that has one.
    params: the parameters, arrays or ``ShapeDtypeStruct``.
    num_workers: n.
    step: the step meant, for a density that warms up; None is after the warm-up.

  Returns:
    Collectives, one of every exchange by an ``Auto``; none for other exchanges.

  Raises:
    TypeError: when ``num_workers`` or ``step`` is not an integer.
    ValueError: when ``num_workers`` is below 1 or ``step`` below 0.

  Examples:
    >>> import jax.numpy as jnp, rtopk_jax
    >>> params = {"w": jnp.ones((1000, 1000))}
    >>> auto = rtopk_jax.Auto("100Mbit/s")
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.01), "data", collective=auto)
    >>> rtopk_jax.chosen_collectives(tx, params, num_workers=2)
    (AllGather(),)
    >>> rtopk_jax.chosen_collectives(tx, params, num_workers=128)
    (ReduceScatter(slack=0.5),)
  """
  return tuple(_dry_run(tx, params, num_workers, step).choices)


def shapes(tree: Any) -> Any:
  """The shapes and dtypes of a tree of arrays, Python numbers or what has both."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def _dry_run(
  tx: optax.GradientTransformation, params: Any, num_workers: int, step: int | None
) -> _modes.Measurement:
  """A step traced, not run."""
  _checks.at_least("num_workers", num_workers, 1, integer=True)
  if step is not None:
    _checks.at_least("step", step, 0, integer=True)
  _checks.init_and_update("tx", tx)
  _gradients.check_arrays("params", params)
  params = shapes(params)
  with _modes.measure(num_workers, step) as measured:
    # A function of its own each time: what is traced within a measurement must not be cached.
    jax.eval_shape(
      lambda p: update_as_traced(tx, gradient_like(p), tx.init(p), p, jnp.float32(0)), params
    )
  return measured
