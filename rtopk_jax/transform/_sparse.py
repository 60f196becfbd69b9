"""The compressed exchange: a local gradient goes in, what all workers agree on comes out.

    local gradient ─▶ clip ─▶ memory ─▶ select ─▶ encode ─▶ exchange ─▶ decode + reduce

Everything up to the exchange is this worker's alone; everything after it is the same on all workers,
bit for bit.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rtopk_jax import _axis, _checks, _modes
from rtopk_jax._axis import AxisName
from rtopk_jax._precision import in_32_bits
from rtopk_jax.exchange import _names
from rtopk_jax.exchange._collective import Collective
from rtopk_jax.kernels import here
from rtopk_jax.kernels._offsets import hidden_by, offsets
from rtopk_jax.kernels._scatter import cast
from rtopk_jax.memory._rule import Memory
from rtopk_jax.memory._update import Leaves
from rtopk_jax.select._selector import Selector
from rtopk_jax.transform import _gradients, _state
from rtopk_jax.transform._delay import DelayedStep, longest, nothing
from rtopk_jax.transform._metrics import ExchangeMetrics, no_metrics
from rtopk_jax.transform._step import Options, Step
from rtopk_jax.vector import _layout
from rtopk_jax.vector._layout import Dense, Scope
from rtopk_jax.wire import _wire
from rtopk_jax.wire._format import WireFormat


class SparseExchangeState(NamedTuple):
  """State of ``sparse_exchange``.

  Attributes:
    count: steps so far, int32, the same on all workers.
    residual: what this worker has not sent yet, a row a leaf; ``()`` without error feedback.
    momentum: this worker's momentum, a row a leaf; ``()`` without momentum.
    metrics: of the last exchange, the same on all workers.
    in_flight: an ``InFlight`` with what this worker has sent and nobody applied yet; ``()`` without delay.
    stage: of a warm-up, that in which it was sent, int32, the same on all workers; ``()`` without delay.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.01), "data")
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> state = rtopk_jax.init(tx, {"w": jnp.zeros((100, 20))}, mesh, "data")
    >>> state.residual["w"].shape, state.momentum
    ((1, 100, 20), ())
  """

  count: jax.Array
  residual: Any
  momentum: Any
  metrics: ExchangeMetrics
  in_flight: Any = ()
  stage: Any = ()

  # The fields whose leaves are rows, and those that the exchange itself leaves as they were in a step it skips.
  per_worker = ("residual", "momentum", "in_flight")
  memory = (*per_worker, "stage")


def sparse_exchange(
  selector: Selector,
  axis_name: AxisName,
  *,
  scope: Scope = "global",
  average: str = "workers",
  error_feedback: bool = True,
  momentum: float = 0.0,
  nesterov: bool = False,
  momentum_masking: bool = True,
  clip_norm: float | None = None,
  dense: Dense = None,
  collective: str | Collective = "all_gather",
  wire: str | WireFormat | None = None,
  memory_decay: float = 1.0,
  memory_dtype: jax.typing.DTypeLike | None = None,
  delay: int = 0,
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

  (paper, Section III-A). Algorithm 1 as printed is one call, ``sparse_exchange(rtop_k(ρ, σ, unbiased=True),
  axis, average="sum", error_feedback=False)``: it has no memory, and no 1/n.

  Put it first in a chain, where local gradients enter: what follows sees the mean. It runs inside
  ``shard_map``, ``pmap`` or ``vmap`` over ``axis_name``, where its updates are the same on all workers and its
  state is this worker's. With momentum here the optimizer that follows should have none of its own.

  A step in which any worker's vector is not finite is skipped by all: updates are zero, the memory stays.

  With ``delay=1`` the update is that of the step before, and zero in the first one. Messages wait in the state, so a
  step's collective depends on nothing that the step computes, and both go on at the same time. Nothing is lost: at
  any time what was applied, what is in flight and the residuals make up all gradients. A worker whose vector is not
  finite keeps its memory; a step later all skip the update, and the others take their messages back.

  Args:
    selector: what is sent; ``rtop_k(…)``, ``top_k(…)`` or ``random_k(…)``, or a ``Selector`` of your own.
    axis_name: the mapped axis of the workers, a string or a tuple of strings.
    scope: "global": all compressed leaves are one vector, as in the paper; "leaf": each selects its own
      share; ``Block(size)``: each run of so many entries of a leaf does.
    average: "workers", or "mean", divides the sum by n; "senders" divides each entry by the number of workers that
      sent it; "sum" does not divide. Leaves sent dense are averaged whatever this says.
    error_feedback: keep what was not sent and add it to the next gradient.
    momentum: m in [0, 1), applied before selection (momentum correction).
    nesterov: send :math:`g + m u` in place of u.
    momentum_masking: momentum of sent entries starts anew. Has no effect without error feedback.
    clip_norm: c, the largest norm of the mean gradient; each worker clips its own, all leaves together,
      to :math:`c\, n^{-1/2}`. None does not clip.
    dense: leaves that are averaged as they are: None for those of fewer than 1,024 entries, and those of one
      dimension of fewer than 65,536; a bool for all or none, a tree of bools, or a function of path and leaf.
    collective: "all_gather" or "reduce_scatter", an ``AllGather``, ``ReduceScatter``, ``Hierarchical`` or
      ``Auto``, or a ``Collective`` of your own.
    wire: the code of messages, a ``Wire`` or a ``WireFormat`` of your own; a string is ``Wire(values=…)``, None is
      ``Wire()``, which is exact.
    memory_decay: :math:`\lambda` in (0, 1].
    memory_dtype: of residual and momentum as they are kept; None is float32, in which all is computed.
    delay: steps from sending to applying, 0 or 1.
    seed: of the selector's randomness, an integer; the same on all workers, who draw independently. An
      integer scalar array may be traced, so that one compiled step serves many seeds.

  Returns:
    An ``optax.GradientTransformationExtraArgs`` with ``SparseExchangeState``. ``init`` and ``update``
    want to be called inside the mapped function; ``rtopk_jax.init`` makes the state from outside. ``update``
    takes ``present=``, a bool scalar of each worker: one that is absent keeps its memory as it is, and the
    mean is over those present. It takes ``weight=``, a real scalar :math:`c_i \ge 0` of each worker, the number
    of its examples for instance: :math:`n c_i g_i / \sum_j c_j` takes the place of :math:`g_i`, at the cost of
    one small all-reduce that waits for no gradient.

  Raises:
    TypeError: here for arguments of a wrong type, in ``init`` and ``update`` for leaves that are not
      floating point.
    ValueError: here for arguments out of range or at odds with each other; in ``init`` and ``update`` when so
      many workers stand in for r/k that ``rtop_k`` would be random-k; in ``update`` for trees of different
      structure, gradients that are the same on all workers, state without this worker's row, ``present``
      where the collective has owners, and a ``weight`` below 0 that is not traced.
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
    hint = f"; did you mean rtop_k({selector})?" if isinstance(selector, int | float) else "."
    raise TypeError(
      f"selector must be rtop_k(…), top_k(…), random_k(…) or another rtopk_jax.Selector, got {selector!r}{hint}"
    )
  _checks.axis_name(axis_name)
  _layout.check_scope(scope)
  _state.check_options(average, momentum, nesterov, clip_norm)
  _checks.flag("error_feedback", error_feedback)
  _checks.flag("momentum_masking", momentum_masking)
  _checks.real("memory_decay", memory_decay)
  _checks.at_least("delay", delay, 0, integer=True)
  _checks.at_most("delay", delay, 1, "one step")
  if not 0 < memory_decay <= 1:
    raise ValueError(f"memory_decay must be in (0, 1], got {memory_decay!r}.")
  if selector.unbiased and error_feedback:
    raise ValueError(
      "unbiased=True scales what is sent by r/k, which error_feedback=True would take back from the "
      "memory; choose one of them."
    )
  if memory_decay != 1 and not error_feedback:
    raise ValueError(f"memory_decay={memory_decay!r} has no effect with error_feedback=False.")
  memory_dtype = jnp.float32 if memory_dtype is None else memory_dtype
  row_dtype = _checks.floating_dtype("memory_dtype", memory_dtype)
  _checks.seed(seed)
  average = _state.AVERAGES_BY_NAME[average]
  code = _wire.resolve(wire)
  if code.needs_blocks and not isinstance(scope, _layout.Block):
    raise ValueError(f'indices="block" need scope=rtopk_jax.Block(size), got scope={scope!r}.')
  memory = Memory(error_feedback, momentum, nesterov, momentum_masking, memory_decay)
  chosen = _names.resolve(collective).suited(axis_name, average, code, memory)
  chosen = chosen.with_delay() if delay else chosen
  options = Options(memory, scope, chosen, code, average, clip_norm, seed)

  def layout_of(updates, shapes, workers):
    axes = _axis.model_axes(updates, workers)
    if delay and any(axes):
      raise ValueError(
        f"delay=1 needs parameters that are whole on every worker, and some are sharded over {sorted(set().union(*axes))}."
      )
    return _layout.layout(updates, shapes, scope, dense, axes)

  def step_of(kind, layout, raw, momenta, residuals, count, workers, serving=chosen, **taking_part):
    """The step of some leaves and a state."""
    leaves = Leaves(*(layout.join(x, here().join) for x in (raw, momenta, residuals)))
    own = dataclasses.replace(options, collective=serving)
    return kind(own, workers, leaves, layout, count, **taking_part)

  def in_flight_before(params, workers, is_known):
    """Nothing, in the shapes of what will be in flight."""
    shapes = jax.tree.map(
      lambda p: jax.ShapeDtypeStruct(_gradients.real_shape(p), jnp.float32), params
    )
    rows = [x.shape or (1,) for x in jax.tree.leaves(shapes)]
    layout = layout_of(shapes, rows, workers)

    def message(stage):
      zeros = [jnp.zeros(shape, jnp.float32) for shape in rows]
      memory = (zeros if momentum else [], zeros if error_feedback else [])
      everybody = {"present": None, "summed": 1}
      step = step_of(DelayedStep, layout, zeros, *memory, jnp.int32(0), workers, **everybody)
      return step.message(selector.at(stage))

    words = 0
    if is_known and layout.compressed:
      words = longest(message, len(selector.stages.densities))
    return nothing(layout, words, workers)

  @in_32_bits
  def init(params):
    _gradients.check_exchangeable("params", params)
    _modes.note_exchange(axis_name)
    workers = chosen.workers(axis_name)
    is_known = _axis.is_bound(workers) and not _modes.analysing()
    if is_known:
      _check_selector(selector, params, dense, workers)
    row = lambda p: _axis.new_row(_gradients.real_shape(p), row_dtype, workers)
    rows = lambda: jax.tree.map(row, params)
    return SparseExchangeState(
      count=jnp.zeros((), jnp.int32),
      residual=rows() if error_feedback else (),
      momentum=rows() if momentum else (),
      metrics=no_metrics(),
      in_flight=in_flight_before(params, workers, is_known) if delay else (),
      stage=jnp.zeros((), jnp.int32) if delay else (),
    )

  @in_32_bits
  def update(updates, state, params=None, *, present=None, weight=None, **extra_args):
    del extra_args
    _axis.size(axis_name)
    given, updates = updates, _gradients.local_updates(updates, params, axis_name)
    _state.check_kind(state, SparseExchangeState)
    _state.check_fields(
      state,
      updates,
      residual=(error_feedback, f"error_feedback={error_feedback}"),
      momentum=(bool(momentum), f"momentum={momentum!r}"),
      in_flight=(bool(delay), f"delay={delay!r}"),
    )
    workers = chosen.workers(axis_name)
    if _modes.analysing():
      return _outline(given, updates, state, axis_name, workers)
    serving = chosen if present is None else chosen.with_absence()
    present = _gradients.check_present(present, workers)
    share = _gradients.share(weight, present, axis_name)
    updates, summed = chosen.prepare(updates, axis_name)
    raw, structure = jax.tree.flatten(updates)
    residuals, momenta = (
      _state.read_rows(rows, updates, workers, field) if is_kept else []
      for rows, field, is_kept in (
        (state.residual, "residual", error_feedback),
        (state.momentum, "momentum", bool(momentum)),
      )
    )
    # All in the shape of the rows: reshaped, they could not be updated in place.
    layout = layout_of(updates, [x.shape or (1,) for x in momenta or residuals or raw], workers)
    taking_part = {"present": present, "summed": summed, "share": share}
    kind = DelayedStep if delay else Step
    taking_part |= {"stage": state.stage} if delay else {}
    lists = raw, momenta, residuals
    step = step_of(kind, layout, *lists, state.count, workers, serving, **taking_part)
    with hidden_by(state.count):
      after, metrics, finite, in_flight = step.run(selector, state.in_flight)
      means, momenta, residuals = layout.split(after, offsets)
    means = [cast(x.reshape(g.shape), g.dtype) for x, g in zip(means, raw, strict=True)]
    means = jax.tree.map(_gradients.as_complex, jax.tree.unflatten(structure, means), given)
    return means, SparseExchangeState(
      count=_state.increment(state.count),
      residual=_state.write_rows(residuals, state.residual) if error_feedback else (),
      momentum=_state.write_rows(momenta, state.momentum) if momentum else (),
      metrics=_state.settle(finite, metrics, state.metrics),
      in_flight=in_flight,
      stage=selector.stages.stage(state.count) if delay else (),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def _check_selector(selector: Selector, params: Any, dense: Dense, workers: AxisName) -> None:
  """Has the selector of the last stage refuse so many entries and workers, before a step is traced."""
  shapes = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(_gradients.real_shape(p), jnp.float32), params
  )
  lie = [x.shape or (1,) for x in jax.tree.leaves(shapes)]
  last = selector.at(len(selector.stages.densities) - 1)
  for segment in _layout.layout(shapes, lie, "leaf", dense).compressed:
    last.entries(segment.size, _axis.size(workers))


def _outline(
  given: Any, updates: Any, state: SparseExchangeState, axis_name: AxisName, workers: AxisName
) -> tuple[Any, SparseExchangeState]:
  """What an update is made of, for a trace that asks only where things come from."""
  means = jax.tree.map(lambda g: jax.lax.psum(g, axis_name), updates)
  own = lambda rows: jax.tree.map(lambda row: _axis.mark_own(row, workers), rows)
  state = state._replace(**{name: own(getattr(state, name)) for name in state.per_worker})
  return jax.tree.map(_gradients.as_complex, means, given), state
