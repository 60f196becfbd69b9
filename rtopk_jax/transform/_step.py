"""One step of the exchange, from local gradients and memory to an update and the memory after it.

Passes over the d compressed entries with momentum, error feedback and clipping, an array that is read or
written once being one: the norm reads the gradient (1); selection reads gradient, momentum and residual (3); the
new momentum reads two arrays and writes one (3), and so does the new residual (3); the update is written (1). 11
in all, 10 without clipping, 6 without momentum as well. It takes no fewer as long as a step may be skipped: no
memory may change before all workers have been heard, so that gradient and memory are read again afterwards.
The vector itself is never written down (but on TPUs, see ``_columns``), and of what a worker sends or receives k
entries are touched, not d.

What a compiled program moves is more by the words of the search (two bits an entry or one, written once and read
a few times) and by small leaves, which are put together and taken apart again: at most 16 in all, and two more
where a worker first averages over its chips (``Hierarchical``), as training without compression does. For ResNet-18
it is 13.9 on CPUs and, without clipping and momentum, 8.5 (``python -m benchmarks.step``).

CPUs that have one core for a device make momentum and residual, and clear the gradient for the update, a stretch at a
time (``_stretches``): of what a program names then, reading the new momentum and, of all that is written, what lay
there before come from a cache. Where somebody needs the gradient later, it is copied first, in two passes more.

XLA gives donated memory to the first result of its size. A step of one's own that returns the updates should take and
return the state before them, or the memory of a worker is copied where it is an update that gets its place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._axis import AxisName
from rtopk_jax.exchange import _collective, _reduce
from rtopk_jax.exchange._collective import Collective, Incoming, Outgoing
from rtopk_jax.kernels import _scatter, _stretches_old
from rtopk_jax.kernels._spent_old import zeros_after
from rtopk_jax.memory import _rule
from rtopk_jax.memory._rule import Memory
from rtopk_jax.select import _blocks
from rtopk_jax.select._keys import LARGEST_KEY
from rtopk_jax.select._selector import Selector
from rtopk_jax.transform import _gradients
from rtopk_jax.transform._metrics import ExchangeMetrics
from rtopk_jax.vector._layout import Block, Layout, Scope, Segment
from rtopk_jax.vector._vector import Place, Vector
from rtopk_jax.wire._wire import Wire

# Keys from this one on are of infinities and NaN.
_INFINITY = LARGEST_KEY - 1


@dataclasses.dataclass(frozen=True)
class Options:
  """The settings of an exchange; names as in ``sparse_exchange``."""

  memory: Memory
  scope: Scope
  collective: Collective
  wire: Wire
  average: str
  clip_norm: float | None
  seed: int | jax.Array


class Leaves(NamedTuple):
  """A list over the leaves of a gradient each; what there is no memory of is empty."""

  gradient: list[jax.Array]
  momentum: list[jax.Array]
  residual: list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Step:
  """A step of one worker.

  Attributes:
    options: the settings.
    workers: the mapped axis of the workers.
    leaves: this worker's gradient and memory, before the step.
    layout: which leaves travel how.
    count: the number of the step.
    present: whether this worker takes part, a bool scalar; None where all do.
    summed: how many gradients this worker's is the sum of; their mean is what it goes by.
    share: what this worker's gradient counts, with 1 on average; None where all count alike.
  """

  options: Options
  workers: AxisName
  leaves: Leaves
  layout: Layout
  count: jax.Array
  present: jax.Array | None
  summed: int
  share: jax.Array | None = None

  def run(self, selector: Selector) -> tuple[Leaves, ExchangeMetrics, jax.Array]:
    """Carries it out.

    Args:
      selector: of one density.

    Returns:
      The leaves after the step, the update in place of the gradient; the metrics; and whether the step was
      carried out, or skipped because a worker's vector was not finite.
    """
    scale = self._clip_scale()
    updates = [jnp.zeros(g.shape, jnp.float32) for g in self.leaves.gradient]
    finite = self._dense_means(scale, updates)
    incoming, metrics, all_finite = self._exchange(selector, scale)
    finite &= all_finite
    here = finite if self.present is None else finite & self.present

    after = Leaves(updates, list(self.leaves.momentum), list(self.leaves.residual))
    for segment in self.layout.dense:
      self._advance(segment, here, scale, after)
      for i in segment.leaves:
        updates[i] = jnp.where(finite, updates[i], jnp.float32(0))
    received = jnp.float32(0)
    for segment, arrived, weights in incoming:
      cleared = self._advance(segment, here, scale, after, arrived)
      means, count = _reduce.reduce(
        arrived.contributions, segment.where, finite, weights, self.options.average, cleared
      )
      received += _axis.over_model(count.astype(jnp.float32), segment.axes)
      for i, mean in zip(segment.leaves, means, strict=True):
        updates[i] = mean
    return after, metrics._replace(received=received), finite

  def _clip_scale(self) -> jax.Array | None:
    """The factor that brings the norm of the whole gradient down to this worker's share of the limit."""
    if self.options.clip_norm is None:
      return None
    square = jnp.float32(0)
    for segment in (*self.layout.compressed, *self.layout.dense):
      for i in segment.leaves:
        norm = jnp.sum(jnp.square(self._local(self.leaves.gradient[i], None)))
        square += _axis.over_model(norm, segment.axes)
    limit = self.options.clip_norm / _axis.size(self.workers) ** 0.5
    return _rule.clip_scale(square, limit)

  def _local(self, gradient: jax.Array, scale: jax.Array | None) -> jax.Array:
    gradient = gradient if self.summed == 1 else gradient / self.summed
    gradient = _gradients.counted(gradient.astype(jnp.float32), self.share)
    return gradient if scale is None else gradient * scale

  def _dense_means(self, scale: jax.Array | None, updates: list[jax.Array]) -> jax.Array:
    """Writes the plain means of dense leaves to ``updates``, and says whether all are finite."""
    finite = jnp.bool_(True)
    memory, leaves = self.options.memory, self.leaves
    for segment in self.layout.dense:
      directions: list[Any] = [None] * len(updates)
      for i in segment.leaves:
        trace = leaves.momentum[i] if leaves.momentum else None
        directions[i] = memory.vector(self._local(leaves.gradient[i], scale), trace, None)
      vector = segment.join(directions)
      mean = _collective.mean_dense(vector, self.workers, self.present, "workers")
      segment.split(mean, updates)
      wrong = jnp.count_nonzero(~jnp.isfinite(mean))
      finite &= _axis.over_model(wrong, segment.axes) == 0
    return finite

  def _exchange(
    self, selector: Selector, scale: jax.Array | None
  ) -> tuple[list[tuple[Segment, Incoming, jax.Array | None]], ExchangeMetrics, jax.Array]:
    """Sends what is compressed; what comes in with each sender's weight, and whether all is finite."""
    arrived = []
    wrong = sent_square = residual_square = jnp.float32(0)
    segments = self.layout.compressed
    for axes in dict.fromkeys(segment.axes for segment in segments):
      together = [(i, segment) for i, segment in enumerate(segments) if segment.axes == axes]
      outgoing = [self._outgoing(i, segment, selector, scale) for i, segment in together]
      surveys = [out.selection.survey for out in outgoing]
      largest = jnp.stack([survey.largest for survey in surveys]).max()
      square = jnp.stack([survey.square for survey in surveys]).sum()

      def header(sent, change, largest=largest, square=square):
        bad = (largest >= _INFINITY).astype(jnp.float32)
        rest = jnp.maximum(square + change, 0) if self.options.memory.error_feedback else change * 0
        numbers = [bad, sent, rest]
        if self.present is not None:
          flag = self.present.astype(jnp.float32)
          # What an absent worker has, even if it is not finite, is nobody's concern.
          numbers = [jnp.where(self.present, x, jnp.float32(0)) for x in numbers] + [flag]
        return jnp.stack(numbers)

      incoming, headers = self.options.collective.exchange(
        outgoing, header, self.options.wire, self.workers
      )
      weights = None if self.present is None else headers[:, 3]
      heads = _axis.over_model(headers[:, :3], axes)
      wrong += heads[:, 0].sum()
      senders = headers.shape[0] if weights is None else jnp.maximum(weights.sum(), 1)
      sent_square += heads[:, 1].sum() / senders
      residual_square += heads[:, 2].sum() / senders
      arrived += [
        (segment, message, weights)
        for (_, segment), message in zip(together, incoming, strict=True)
      ]
    entries = sum(
      (_axis.over_model(jnp.float32(segment.size), segment.axes) for segment in segments),
      jnp.float32(0),
    )
    metrics = ExchangeMetrics(
      sent_square, residual_square, jnp.float32(0), entries, jnp.zeros((), jnp.int32)
    )
    return arrived, metrics, wrong == 0

  def _outgoing(
    self, number: int, segment: Segment, selector: Selector, scale: jax.Array | None
  ) -> Outgoing:
    """What this worker selects of a segment."""
    memory, leaves = self.options.memory, self.leaves

    def rule(gradient, *kept):
      kept = list(kept)
      trace = kept.pop(0) if leaves.momentum else None
      rest = kept.pop(0) if leaves.residual else None
      return memory.vector(self._local(gradient, scale), trace, rest)

    arrays = tuple(
      (leaves.gradient[i], *(x[i] for x in (leaves.momentum, leaves.residual) if x))
      for i in segment.leaves
    )
    vector = Vector(segment.where, arrays, rule)
    step_key = jax.random.fold_in(_axis.key(self.options.seed), self.count)

    def key_of(group):
      key = jax.random.fold_in(jax.random.fold_in(step_key, number), group)
      key = jax.random.fold_in(key, _axis.index(self.workers))
      # Shards of a model draw independently as well.
      for index in _axis.model_index(segment.axes):
        key = jax.random.fold_in(key, index)
      return key

    num_workers, scope = _axis.size(self.workers), self.options.scope
    if isinstance(scope, Block):
      selection, blocks, share = _blocks.select(selector, vector, scope.size, key_of, num_workers)
    else:
      selection, blocks = selector.select(vector, key_of, num_workers), None
      share = selector.scales(vector.counts, num_workers)
    values = selection.values
    if share is not None:
      values = values * share
    return Outgoing(vector, selection, values, jax.random.fold_in(key_of(0), 1), blocks)

  def _advance(
    self,
    segment: Segment,
    here: jax.Array,
    scale: jax.Array | None,
    after: Leaves,
    incoming: Incoming | None = None,
  ) -> list[jax.Array]:
    """Writes the memory of a segment after the step to ``after``, unchanged where the step is not taken.

    Returns:
      Arrays for the segment's means, ``cleared`` in ``_sums.reduce``.
    """
    before = Leaves(*([x[i] for i in segment.leaves] if x else [] for x in self.leaves))
    if incoming is None:
      momenta, residuals = self._advanced(segment.where, before, here, scale, None)
      cleared = []
    else:
      momenta, residuals, cleared = self._settled(segment.where, before, here, scale, incoming)
    for new, leaves in ((momenta, after.momentum), (residuals, after.residual)):
      for i, x in zip(segment.leaves, new, strict=bool(new)):
        leaves[i] = x
    return cleared

  def _settled(
    self,
    where: Sequence[Place],
    before: Leaves,
    here: jax.Array,
    scale: jax.Array | None,
    incoming: Incoming,
  ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """Momentum, residual and zeros after them of leaves that are compressed, as each platform does it best."""

    def by_leaves():
      advanced = lambda where, lists: self._advanced(where, Leaves(*lists), here, scale, incoming)
      momenta, residuals = _scatter.in_folds(where, before, advanced)
      return momenta, residuals, [zeros_after(x) for x in residuals or momenta]

    arrays = [x for leaves in before for x in leaves]
    keeps = len(arrays) > len(where)
    suited = keeps and all(x.dtype == jnp.float32 for x in arrays)
    if not suited or not _stretches_old.are_quicker(max(place.size for place in where)):
      return by_leaves()
    by_stretches = lambda: self._by_stretches(where, before, here, scale, incoming)
    return lax.platform_dependent(cpu=by_stretches, default=by_leaves)

  def _advanced(
    self,
    where: Sequence[Place],
    before: Leaves,
    here: jax.Array,
    scale: jax.Array | None,
    incoming: Incoming | None,
  ) -> tuple[list[jax.Array], list[jax.Array]]:
    """Momentum and residual of some leaves after the step; nothing for what there is not, or does not change.

    The momentum comes first and the residual is made of it, so that each array is updated in place.
    """
    gradients = [self._local(x, scale) for x in before.gradient]
    momenta = [
      self._next_momentum(gradient, old.astype(jnp.float32), here)
      for gradient, old in zip(gradients, before.momentum, strict=bool(before.momentum))
    ]
    # In the dtype that they are kept in before anything is put to them: what is put to is written down.
    kept = [_rule.cast(x, old.dtype) for x, old in zip(momenta, before.momentum, strict=True)]
    if incoming is not None:
      kept = self._masked(kept, where, here, incoming)
    if not before.residual or incoming is None:
      return kept, []
    # Where momentum was cleared the residual is set below, so the one will do for the other.
    exact = all(x.dtype == jnp.float32 for x in kept)
    momenta = kept if exact else momenta
    residuals = []
    for number, old in enumerate(before.residual):
      momentum = momenta[number] if momenta else None
      rest = self._next_residual(gradients[number], momentum, old.astype(jnp.float32), here)
      residuals.append(_rule.cast(rest, old.dtype))
    return kept, incoming.settle(residuals, where, here)

  def _by_stretches(
    self,
    where: Sequence[Place],
    before: Leaves,
    here: jax.Array,
    scale: jax.Array | None,
    incoming: Incoming,
  ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """``_settled`` on CPUs, of leaves in float32."""
    # A rule is given what there is of momentum, residual and gradient, in this order.
    rules: list[_stretches_old.Rule | None] = []
    if before.momentum:
      rules.append(
        lambda *arrays: self._next_momentum(self._local(arrays[-1], scale), arrays[0], here)
      )
    if before.residual:
      rules.append(
        lambda *arrays: self._next_residual(
          self._local(arrays[-1], scale), arrays[0] if before.momentum else None, arrays[-2], here
        )
      )
    rules.append(None)
    lists = [x for x in (before.momentum, before.residual, before.gradient) if x]
    made = [_stretches_old.write_over(arrays, rules) for arrays in zip(*lists, strict=True)]
    *kept, cleared = (list(x) for x in zip(*made, strict=True))
    flat = [place.flat() for place in where]
    residuals = incoming.settle(kept.pop(), flat, here) if before.residual else []
    momenta = self._masked(kept.pop(), flat, here, incoming) if before.momentum else []
    shaped = lambda leaves: [
      x.reshape(place.shape) for x, place in zip(leaves, where, strict=bool(leaves))
    ]
    return shaped(momenta), shaped(residuals), shaped(cleared)

  def _next_momentum(self, gradient: jax.Array, old: jax.Array, here: jax.Array) -> jax.Array:
    new = self.options.memory.correct(gradient, old)
    return old if new is None else jnp.where(here, new, old)

  def _next_residual(
    self, gradient: jax.Array, momentum: jax.Array | None, old: jax.Array, here: jax.Array
  ) -> jax.Array:
    """Before anything is taken from it; ``momentum`` is that after the step."""
    memory = self.options.memory
    return jnp.where(here, memory.accumulate(memory.direction(gradient, momentum), old), old)

  def _masked(
    self, momenta: list[jax.Array], where: Sequence[Place], here: jax.Array, incoming: Incoming
  ) -> list[jax.Array]:
    """Momenta that start anew where something was sent."""
    if self.options.memory.masks:
      for positions, keep in incoming.sent:
        momenta = _scatter.put(momenta, where, positions, jnp.float32(0), keep=here & keep)
    return momenta
