"""The uncompressed exchange: the baseline that compression is measured against."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rtopk_jax import _axis, _checks, _modes
from rtopk_jax._axis import AxisName
from rtopk_jax._precision import in_32_bits
from rtopk_jax.exchange._mean import mean_dense
from rtopk_jax.kernels._offsets import hidden_by, settled
from rtopk_jax.kernels._scatter import cast
from rtopk_jax.memory import _rule
from rtopk_jax.memory._rule import Memory
from rtopk_jax.transform import _gradients, _state
from rtopk_jax.transform._metrics import ExchangeMetrics, no_metrics
from rtopk_jax.vector import _layout


class DenseExchangeState(NamedTuple):
  """State of ``dense_exchange``, the same on all workers.

  Attributes:
    count: steps so far, int32.
    momentum: the momentum, shaped like the parameters; ``()`` without momentum.
    metrics: of the last exchange.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> tx = rtopk_jax.dense_exchange("data", momentum=0.9)
    >>> state = tx.init({"w": jnp.zeros((100, 20))})
    >>> int(state.count), state.momentum["w"].shape
    (0, (100, 20))
  """

  count: jax.Array
  momentum: Any
  metrics: ExchangeMetrics

  per_worker = ()
  memory = ("momentum",)


def dense_exchange(
  axis_name: AxisName,
  *,
  average: str = "workers",
  momentum: float = 0.0,
  nesterov: bool = False,
  clip_norm: float | None = None,
  inner_axis: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces each worker's gradient by the mean of all: the uncompressed baseline.

  .. math::
    \bar g = \frac1n \sum_i g_i, \qquad u \leftarrow m u + \min\{1, c/\|\bar g\|\}\, \bar g, \qquad
    \mathrm{update} = u

  It takes the place of ``sparse_exchange`` in a chain, with the same interface: one collective, momentum
  and clipping, and a step skipped by all workers when the mean is not finite.

  Args:
    axis_name: the mapped axis of the workers, a string or a tuple of strings.
    average: "workers", "mean" and "senders" divide the sum by n (all are senders), "sum" does not.
    momentum: m in [0, 1).
    nesterov: the update is :math:`\bar g + m u` in place of u.
    clip_norm: c, the largest norm of the mean. None does not clip.
    inner_axis: a fast axis whose members have the same gradient: each sends a part of it, as with
      ``Hierarchical(inner_axis, averaged=True)``. None, or one that is not mapped: everything is sent whole.

  Returns:
    An ``optax.GradientTransformationExtraArgs`` with ``DenseExchangeState``. ``update`` takes ``present=``, a
    bool scalar of each worker: the mean is over those present, and ``weight=``, a real scalar of each, by which
    the mean is weighted.

  Raises:
    TypeError: for arguments of a wrong type and leaves that are not floating point.
    ValueError: for arguments out of range, trees of different structure, and gradients that are the same
      on all workers.
    NameError: in ``update`` outside a map over ``axis_name``.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> tx = rtopk_jax.dense_exchange("data")
    >>> exchange = lambda g: tx.update(g, tx.init(g))[0]
    >>> jax.vmap(exchange, out_axes=None, axis_name="data")(jnp.array([[1.0, 2.0], [3.0, 6.0]])).tolist()
    [2.0, 4.0]
  """
  _checks.axis_name(axis_name)
  if inner_axis is not None:
    _checks.axis_name(inner_axis, "inner_axis")
  _state.check_options(average, momentum, nesterov, clip_norm)
  average = _state.AVERAGES_BY_NAME[average]

  @in_32_bits
  def init(params):
    _gradients.check_exchangeable("params", params)
    _modes.note_exchange(axis_name)
    zeros = lambda: jax.tree.map(lambda p: jnp.zeros(_gradients.real_shape(p), jnp.float32), params)
    return DenseExchangeState(jnp.zeros((), jnp.int32), zeros() if momentum else (), no_metrics())

  @in_32_bits
  def update(updates, state, params=None, *, present=None, weight=None, **extra_args):
    del extra_args
    _axis.size(axis_name)
    given, updates = updates, _gradients.local_updates(updates, params, axis_name)
    _state.check_kind(state, DenseExchangeState)
    _state.check_fields(state, updates, momentum=(bool(momentum), f"momentum={momentum!r}"))
    if _modes.analysing():
      means = jax.tree.map(lambda g: jax.lax.psum(g, axis_name), updates)
      return jax.tree.map(_gradients.as_complex, means, given), state
    if momentum:
      _gradients.check_structure(updates, **{"state.momentum": state.momentum})
    gradients, structure = jax.tree.flatten(updates)
    segments = _layout.layout(
      updates,
      [g.shape or (1,) for g in gradients],
      "global",
      True,
      _axis.model_axes(updates, axis_name),
    ).dense
    present = _gradients.check_present(present, axis_name)
    share = _gradients.share(weight, present, axis_name)
    mean = [jnp.zeros(g.shape, jnp.float32) for g in gradients]
    metrics = state.metrics
    local = [_gradients.counted(g.astype(jnp.float32), share) for g in gradients]
    square, wrong, entries = jnp.float32(0), jnp.int32(0), jnp.float32(0)
    with hidden_by(state.count):
      for segment in segments:
        leaves = [local[i] for i in segment.leaves]
        with _axis.in_parts(inner_axis):
          found = mean_dense(leaves, axis_name, present, average)
        square += _axis.over_model(found.square, segment.axes)
        wrong += _axis.over_model(found.wrong, segment.axes)
        entries += _axis.over_model(jnp.float32(segment.size), segment.axes)
        for i, x in zip(segment.leaves, found.leaves, strict=True):
          mean[i] = x
      scale = jnp.float32(1) if clip_norm is None else _rule.clip_scale(square, clip_norm)
      # A norm beyond float32 is as bad as an entry that is.
      finite = settled((wrong == 0) & ~jnp.isnan(scale))
    if segments:
      metrics = ExchangeMetrics(
        sent_square=square * jnp.square(scale),
        residual_square=jnp.float32(0),
        received=entries,
        entries=entries,
        skipped=state.metrics.skipped,
      )
    if clip_norm is not None:
      mean = [x * scale for x in mean]
    rule = Memory(
      error_feedback=False, momentum=momentum, nesterov=nesterov, masking=False, decay=1.0
    )
    directions, kept = [], []
    momenta = jax.tree.leaves(state.momentum) or [None] * len(mean)
    for g, old in zip(mean, momenta, strict=True):
      new = None if old is None else rule.correct(g, old)
      directions.append(rule.direction(g, new))
      if old is not None and new is not None:
        kept.append(jnp.where(finite, new, old))
    updates = [
      cast(jnp.where(finite, x, jnp.float32(0)), g.dtype)
      for x, g in zip(directions, gradients, strict=True)
    ]
    new_momentum = _state.write_rows(kept, state.momentum) if momentum else ()
    means = jax.tree.map(_gradients.as_complex, jax.tree.unflatten(structure, updates), given)
    return means, DenseExchangeState(
      _state.increment(state.count), new_momentum, _state.settle(finite, metrics, state.metrics)
    )

  return optax.GradientTransformationExtraArgs(init, update)
