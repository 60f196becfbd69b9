"""The compressed exchange: a local gradient goes in, what all workers agree on comes out.

    local gradient ─▶ clip ─▶ memory ─▶ select ─▶ encode ─▶ exchange ─▶ decode + reduce

Everything up to the exchange is this worker's alone; everything after it is the same on all workers,
bit for bit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rtopk_jax import _axis, _checks, _exchange, _layout, _memory, _schedule, _state
from rtopk_jax._axis import AxisName
from rtopk_jax._exchange import AllGather
from rtopk_jax._layout import Dense
from rtopk_jax._memory import Memory
from rtopk_jax._metrics import ExchangeMetrics, no_metrics
from rtopk_jax._select import Selector
from rtopk_jax._wire import Wire

_COLLECTIVES = {"all_gather": AllGather}
# Words in front of a message: whether an entry is not finite, and two squared norms for the metrics.
_HEADER = 3


class SparseExchangeState(NamedTuple):
  """State of ``sparse_exchange``.

  Attributes:
    count: steps so far, int32, the same on all workers.
    residual: what this worker has not sent yet, a row a leaf; ``()`` without error feedback.
    momentum: this worker's momentum, a row a leaf; ``()`` without momentum.
    metrics: of the last exchange, the same on all workers.
  """

  count: jax.Array
  residual: Any
  momentum: Any
  metrics: ExchangeMetrics

  per_worker = ("residual", "momentum")


def sparse_exchange(
  selector: Selector,
  axis_name: AxisName,
  *,
  scope: str = "global",
  average: str = "workers",
  error_feedback: bool = True,
  momentum: float = 0.0,
  nesterov: bool = False,
  momentum_masking: bool = True,
  clip_norm: float | None = None,
  dense: Dense = None,
  collective: str | AllGather = "all_gather",
  wire: Wire | None = None,
  memory_decay: float = 1.0,
  memory_dtype: jax.typing.DTypeLike | None = None,
  seed: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces each worker's gradient by the mean of what all workers select of theirs.

  With :math:`g_i` worker i's gradient, :math:`u_i` its momentum, :math:`e_i` its residual, n workers
  and C the selector,

  .. math::
    u_i &\leftarrow m u_i + \min\{1, c\, n^{-1/2} / \|g_i\|\}\, g_i \\
    v_i &\leftarrow \lambda e_i + u_i \\
    e_i &\leftarrow v_i - C(v_i), \qquad u_i \leftarrow u_i \odot [C(v_i) = 0] \\
    \mathrm{update} &= \frac1n \sum_i C(v_i)

  (Algorithm 1 and Section III of the paper). Put it first in a chain, where local gradients enter: what
  follows sees the mean. It runs inside ``shard_map``, ``pmap`` or ``vmap`` over ``axis_name``, where its
  updates are the same on all workers and its state is this worker's. With momentum here the optimizer
  that follows should have none of its own.

  A step in which any worker's vector is not finite is skipped by all: updates are zero, the memory stays.

  Args:
    selector: what is sent; ``rtop_k(…)``, ``top_k(…)`` or ``random_k(…)``.
    axis_name: the mapped axis of the workers, a string or a tuple of strings.
    scope: "global": all compressed leaves are one vector, as in the paper; "leaf": each selects its own
      share.
    average: "workers" divides the sum by n; "senders" divides each entry by the number of workers that
      sent it; "sum" does not divide. Leaves sent dense are averaged whatever this says.
    error_feedback: keep what was not sent and add it to the next gradient.
    momentum: m in [0, 1), applied before selection (momentum correction).
    nesterov: send :math:`g + m u` in place of u.
    momentum_masking: momentum of sent entries starts anew. Has no effect without error feedback.
    clip_norm: c, the largest norm of the mean gradient; each worker clips its own, all leaves together,
      to :math:`c\, n^{-1/2}`. None does not clip.
    dense: leaves that are averaged as they are: None for those with fewer than two dimensions or 1,024
      entries, a bool for all or none, a tree of bools, or a function of path and leaf.
    collective: "all_gather", or an ``AllGather``.
    wire: the code of messages; None is ``Wire()``, which is exact.
    memory_decay: :math:`\lambda` in (0, 1].
    memory_dtype: of residual and momentum as they are kept; None is float32, in which all is computed.
    seed: of the selector's randomness, an integer; the same on all workers, who draw independently. An
      integer scalar array may be traced, so that one compiled step serves many seeds.

  Returns:
    An ``optax.GradientTransformationExtraArgs`` with ``SparseExchangeState``. ``init`` and ``update``
    want to be called inside the mapped function; ``rtopk_jax.init`` makes the state from outside.

  Raises:
    TypeError: here for arguments of a wrong type, in ``init`` and ``update`` for leaves that are not
      floating point.
    ValueError: here for arguments out of range or at odds with each other; in ``update`` for trees of
      different structure, gradients that are the same on all workers, and state without this worker's
      row.
    NameError: in ``update`` outside a map over ``axis_name``.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> tx = optax.chain(rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), "data"), optax.sgd(0.1))
    >>> params = {"w": jnp.zeros((100, 20))}
    >>> def step(params, gradient):
    ...   updates, state = tx.update(gradient, tx.init(params), params)
    ...   return optax.apply_updates(params, updates)
    >>> gradients = {"w": jax.random.normal(jax.random.key(0), (4, 100, 20))}  # 4 simulated workers
    >>> step = jax.jit(jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name="data"))
    >>> params = step(params, gradients)
    >>> 20 <= int(jnp.count_nonzero(params["w"])) <= 4 * 20
    True
  """
  if not isinstance(selector, Selector):
    hint = f"; did you mean rtop_k({selector})" if isinstance(selector, int | float) else ""
    raise TypeError(f"selector must be rtop_k(…), top_k(…) or random_k(…), got {selector!r}{hint}.")
  _checks.axis_name(axis_name)
  _checks.one_of("scope", scope, _layout.SCOPES)
  _state.check_options(average, momentum, nesterov, clip_norm)
  _checks.flag("error_feedback", error_feedback)
  _checks.flag("momentum_masking", momentum_masking)
  _checks.at_least("memory_decay", memory_decay, 0)
  if not 0 < memory_decay <= 1:
    raise ValueError(f"memory_decay must be in (0, 1], got {memory_decay!r}.")
  if selector.unbiased and error_feedback:
    raise ValueError(
      "unbiased=True scales what is sent by r/k, which error_feedback=True would take back from the "
      "memory; choose one of them."
    )
  if memory_decay != 1 and not error_feedback:
    raise ValueError(f"memory_decay={memory_decay!r} has no effect with error_feedback=False.")
  if memory_dtype is not None and not jnp.issubdtype(memory_dtype, jnp.floating):
    raise TypeError(f"memory_dtype must be a floating point dtype, got {memory_dtype!r}.")
  if isinstance(seed, bool) or not jnp.issubdtype(jnp.result_type(seed), jnp.integer):
    raise TypeError(f"seed must be an integer, got {seed!r}.")
  wire = Wire() if wire is None else wire
  if not isinstance(wire, Wire):
    raise TypeError(f"wire must be a rtopk_jax.Wire, got {wire!r}.")
  if isinstance(collective, str):
    _checks.one_of("collective", collective, _COLLECTIVES)
    collective = _COLLECTIVES[collective]()
  if not isinstance(collective, AllGather):
    raise TypeError(f"collective must be a name or a rtopk_jax.AllGather, got {collective!r}.")
  memory = Memory(error_feedback, momentum, nesterov, momentum_masking, memory_decay)
  row_dtype = jnp.dtype(jnp.float32 if memory_dtype is None else memory_dtype)

  def init(params):
    _state.check_floating("params", params)
    rows = lambda: jax.tree.map(
      lambda p: _axis.new_row(tuple(p.shape), row_dtype, axis_name), params
    )
    return SparseExchangeState(
      count=jnp.zeros((), jnp.int32),
      residual=rows() if error_feedback else (),
      momentum=rows() if momentum else (),
      metrics=no_metrics(),
    )

  def update(updates, state, params=None, **extra_args):
    del extra_args
    num_workers = _axis.size(axis_name)
    _state.check_updates(updates, params, axis_name)
    gradients, structure = jax.tree.flatten(updates)
    plan = _layout.layout(updates, scope, dense)

    rest = (
      _state.read_rows(state.residual, updates, axis_name, "residual") if error_feedback else None
    )
    trace = _state.read_rows(state.momentum, updates, axis_name, "momentum") if momentum else None
    local = [g.astype(jnp.float32) for g in gradients]
    if clip_norm is not None:
      scale = _memory.clip_scale(local, clip_norm / num_workers**0.5)
      local = [g * scale for g in local]
    corrected = [memory.correct(g, trace[i] if trace else None) for i, g in enumerate(local)]
    directions, traces = [x for x, _ in corrected], [x for _, x in corrected]

    reduced = [jnp.zeros(g.shape, jnp.float32) for g in gradients]
    residuals = list(rest or ())
    finite = jnp.bool_(True)
    if plan.dense.leaves:
      total = _exchange.reduce_dense(plan.dense.join(directions), axis_name)
      finite = jnp.all(jnp.isfinite(total))
      plan.dense.split(total / num_workers, reduced)
    metrics = state.metrics
    if plan.compressed:
      kept = [
        memory.accumulate(direction, rest[i] if rest else None)
        for i, direction in enumerate(directions)
      ]
      vectors = [segment.join(kept) for segment in plan.compressed]
      trails = [segment.join(traces) for segment in plan.compressed] if momentum else []
      totals, headers, vectors, trails = _schedule.switch(
        selector.stages,
        state.count,
        lambda stage: _exchange_vectors(
          vectors,
          trails,
          state.count,
          stage=selector.at(stage),
          memory=memory,
          wire=wire,
          collective=collective,
          axis_name=axis_name,
          average=average,
          seed=seed,
        ),
      )
      for i, segment in enumerate(plan.compressed):
        segment.split(totals[i], reduced)
        if error_feedback:
          segment.split(vectors[i], residuals)
        if momentum:
          segment.split(trails[i], traces)
      finite &= jnp.all(headers[:, 0] == 0)
      metrics = ExchangeMetrics(
        sent_square=jnp.mean(headers[:, 1]),
        residual_square=jnp.mean(headers[:, 2]),
        received=jnp.stack([jnp.count_nonzero(x) for x in totals]).sum().astype(jnp.float32),
        entries=jnp.float32(sum(segment.size for segment in plan.compressed)),
        skipped=state.metrics.skipped,
      )

    updates = jax.tree.unflatten(
      structure,
      [
        _state.cast(jnp.where(finite, x, jnp.float32(0)), g.dtype)
        for x, g in zip(reduced, gradients, strict=True)
      ],
    )
    return updates, SparseExchangeState(
      count=_state.increment(state.count),
      residual=_state.write_rows(finite, residuals, state.residual) if error_feedback else (),
      momentum=_state.write_rows(finite, traces, state.momentum) if momentum else (),
      metrics=_state.settle(finite, metrics, state.metrics),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _exchange_vectors(
  vectors: list[jax.Array],
  trails: list[jax.Array],
  count: jax.Array,
  *,
  stage: Selector,
  memory: Memory,
  wire: Wire,
  collective: AllGather,
  axis_name: AxisName,
  average: str,
  seed: int | jax.Array,
) -> tuple[list[jax.Array], jax.Array, list[jax.Array], list[jax.Array]]:
  """One stage's exchange: reduced vectors, all headers, new residuals and momenta."""
  num_workers = _axis.size(axis_name)
  key = jax.random.fold_in(jax.random.key(seed), count)
  counts = [stage.counts(vector.size, num_workers) for vector in vectors]
  messages, residuals, masked = [], [], []
  sent_square = residual_square = jnp.float32(0)
  for i, (vector, (k, _)) in enumerate(zip(vectors, counts, strict=True)):
    worker_key = jax.random.fold_in(jax.random.fold_in(key, i), _axis.index(axis_name))
    message = wire.encode(stage(vector, worker_key, num_workers))
    # What counts as sent is what the others will read, rounding included.
    sent = wire.decode(message, k, vector.size)
    messages.append(message)
    sent_square += jnp.sum(jnp.square(sent.values))
    if memory.error_feedback:
      residuals.append(memory.retain(vector, sent))
      residual_square += jnp.sum(jnp.square(residuals[-1]))
    else:
      residuals.append(vector)
    if trails:
      masked.append(memory.mask(trails[i], sent))
  finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(vector)) for vector in vectors]))
  header = jnp.stack([(~finite).astype(jnp.float32), sent_square, residual_square])
  header = lax.bitcast_convert_type(header, jnp.uint32)
  gathered = collective.gather(jnp.concatenate([header, *messages]), axis_name)
  totals, start = [], _HEADER
  for vector, (k, _) in zip(vectors, counts, strict=True):
    stop = start + wire.words(k, vector.size)
    totals.append(_exchange.reduce_messages(gathered[:, start:stop], wire, k, vector.size, average))
    start = stop
  headers = lax.bitcast_convert_type(gathered[:, :_HEADER], jnp.float32)
  return totals, headers, residuals, masked
