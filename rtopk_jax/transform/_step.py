"""One step of the exchange, from local gradients and memory to an update and the memory after it.

Passes over the d compressed entries with momentum, error feedback and clipping, an array that is read or
written once being one: the norm reads the gradient (1); selection reads gradient, momentum and residual (3); the
new momentum reads two arrays and writes one (3), and so does the new residual (3); the update is written (1). 11
in all, 10 without clipping, 6 without momentum as well. It takes no fewer as long as a step may be skipped: no
memory may change before all workers have been heard, so that gradient and memory are read again afterwards.
The vector itself is never materialised (but where ``kernels`` says so), and of what a worker sends or receives k
entries are touched, not d.

What a compiled program moves is more by the words of the search (two bits an entry or one, written once and read
a few times) and by small leaves, which are put together and taken apart again: at most 16 in all, and two more
where a worker first averages over its chips (``Hierarchical``), as training without compression does.
``python -m benchmarks.step`` counts them.

XLA gives donated memory to the first result of its size. A step of one's own that returns the updates should take and
return the state before them, or the memory of a worker is copied where it is an update that gets its place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rtopk_jax import _axis
from rtopk_jax._axis import AxisName
from rtopk_jax.exchange import _reduce
from rtopk_jax.exchange._collective import Collective
from rtopk_jax.exchange._mean import mean_dense
from rtopk_jax.exchange._message import Header, Incoming, Outgoing
from rtopk_jax.kernels._offsets import settled
from rtopk_jax.memory import _rule, _update
from rtopk_jax.memory._rule import Memory
from rtopk_jax.memory._update import Leaves
from rtopk_jax.select import _warmup
from rtopk_jax.select._keys import LARGEST_KEY, MOST_GROUPS, derived_key
from rtopk_jax.select._selector import Selector
from rtopk_jax.transform import _gradients
from rtopk_jax.transform._metrics import ExchangeMetrics
from rtopk_jax.vector._layout import Block, Layout, Scope, Segment
from rtopk_jax.vector._vector import Vector
from rtopk_jax.wire._format import WireFormat

# Keys from this one on are of infinities and NaN.
_INFINITY = LARGEST_KEY - 1


@dataclasses.dataclass(frozen=True)
class Options:
  """The settings of an exchange; names as in ``sparse_exchange``."""

  memory: Memory
  scope: Scope
  collective: Collective
  wire: WireFormat
  average: str
  clip_norm: float | None
  seed: int | jax.Array


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

  def run(
    self, selector: Selector, in_flight: Any
  ) -> tuple[Leaves, ExchangeMetrics, jax.Array, Any]:
    """Carries it out.

    Args:
      selector: of one density, or of one for each stage of a warm-up.
      in_flight: what this worker has sent and nobody applied yet; ``()`` where messages arrive at once.

    Returns:
      The leaves after the step, the update in place of the gradient; the metrics; whether the step was
      carried out, or skipped because a worker's vector was not finite; and what is in flight then.
    """
    scale = self._clip_scale()
    updates: list[Any] = [jnp.zeros(g.shape, jnp.float32) for g in self.leaves.gradient]
    dense_is_finite = self._dense_means(scale, updates)
    # What is the same for all stages stands outside of the switch, and is compiled once.
    compressed, metrics, finite = _warmup.switch(
      selector.stages,
      self.count,
      lambda stage: self._compressed(selector.at(stage), scale, dense_is_finite),
    )
    momentum, residual = list(self.leaves.momentum), list(self.leaves.residual)
    for segment, after in zip(self.layout.compressed, compressed, strict=True):
      place(after.gradient, segment, updates)
      place(after.momentum, segment, momentum)
      place(after.residual, segment, residual)
    for segment in self.layout.dense:
      place(self._dense_momenta(segment, scale, finite), segment, momentum)
      for i in segment.leaves:
        updates[i] = jnp.where(finite, updates[i], jnp.float32(0))
    return Leaves(updates, momentum, residual), metrics, finite, in_flight

  def _compressed(
    self, selector: Selector, scale: jax.Array | None, dense_is_finite: jax.Array
  ) -> tuple[list[Leaves], ExchangeMetrics, jax.Array]:
    """The leaves of every compressed segment after the step, at one density; the rest as of ``run``."""
    incoming, metrics, all_finite = self._exchange(selector, scale)
    finite = settled(dense_is_finite & all_finite)
    taken, rule = self._taken(finite), self.options.memory
    local = lambda gradient: self._local(gradient, scale)
    found, received = [], jnp.float32(0)
    for segment, arrived, weights in incoming:
      before = self.leaves.of(segment.leaves)
      momenta, residuals = _update.after_exchange(
        rule, before, segment.where, local, taken, arrived.sent
      )
      means, count = _reduce.reduce(
        arrived.contributions,
        segment.where,
        finite,
        weights,
        self.options.average,
        residuals or momenta,
      )
      received += _axis.over_model(count.astype(jnp.float32), segment.axes)
      found.append(Leaves(means, momenta, residuals))
    return found, metrics._replace(received=received), finite

  def _taken(self, finite: jax.Array) -> jax.Array:
    """Whether this worker takes the step."""
    return finite if self.present is None else finite & self.present

  def _dense_momenta(
    self, segment: Segment, scale: jax.Array | None, finite: jax.Array
  ) -> list[jax.Array]:
    """Momentum of leaves that are sent dense, after the step."""
    local = lambda gradient: self._local(gradient, scale)
    before = self.leaves.of(segment.leaves)
    return _update.after_mean(self.options.memory, before, local, self._taken(finite))

  def _clip_scale(self) -> jax.Array | None:
    """The factor that brings the norm of the whole gradient down to this worker's share of the limit."""
    if self.options.clip_norm is None:
      return None
    squares = []
    for segment in (*self.layout.compressed, *self.layout.dense):
      for i in segment.leaves:
        norm = jnp.sum(jnp.square(self._local(self.leaves.gradient[i], None)))
        squares.append(_axis.over_model(norm, segment.axes))
    limit = self.options.clip_norm / _axis.size(self.workers) ** 0.5
    return settled(_rule.clip_scale(jnp.stack(squares).sum(), limit))

  def _local(self, gradient: jax.Array, scale: jax.Array | None) -> jax.Array:
    gradient = gradient if self.summed == 1 else gradient / self.summed
    gradient = _gradients.counted(gradient.astype(jnp.float32), self.share)
    return gradient if scale is None else gradient * scale

  def _dense_means(self, scale: jax.Array | None, updates: list[jax.Array]) -> jax.Array:
    """Writes the plain means of dense leaves to ``updates``, and says whether all are finite."""
    finite = jnp.bool_(True)
    for segment in self.layout.dense:
      directions = self._directions(segment, scale)
      with _axis.in_parts(self.options.collective.parts_axis):
        mean = mean_dense(directions, self.workers, self.present, "workers")
      place(mean.leaves, segment, updates)
      finite &= _axis.over_model(mean.wrong, segment.axes) == 0
    return finite

  def _directions(self, segment: Segment, scale: jax.Array | None) -> list[jax.Array]:
    """What a worker sends of leaves that are sent as they are."""
    memory, leaves = self.options.memory, self.leaves
    directions = []
    for i in segment.leaves:
      trace = leaves.momentum[i] if leaves.momentum else None
      directions.append(memory.vector(self._local(leaves.gradient[i], scale), trace, None))
    return directions

  def _exchange(
    self, selector: Selector, scale: jax.Array | None
  ) -> tuple[list[tuple[Segment, Incoming, jax.Array | None]], ExchangeMetrics, jax.Array]:
    """Sends what is compressed; what comes in with each sender's weight, and whether all is finite."""
    arrived = []
    wrong = sent_square = residual_square = jnp.float32(0)
    segments = self.layout.compressed
    for axes in dict.fromkeys(segment.axes for segment in segments):
      together = [(i, segment) for i, segment in enumerate(segments) if segment.axes == axes]
      outgoing = [self.outgoing(i, segment, selector, scale) for i, segment in together]
      header = self.header(outgoing, is_finite(outgoing), self.present)
      incoming, headers = self.options.collective.exchange(
        outgoing, header, self.options.wire, self.workers
      )
      weights = None if self.present is None else headers[:, 3]
      heads = read_heads(headers, weights, axes)
      wrong += heads.wrong
      sent_square += heads.sent_square
      residual_square += heads.residual_square
      arrived += [
        (segment, message, weights)
        for (_, segment), message in zip(together, incoming, strict=True)
      ]
    return arrived, self.metrics(sent_square, residual_square), wrong == 0

  def header(
    self, outgoing: Sequence[Outgoing], finite: jax.Array, present: jax.Array | None
  ) -> Header:
    """What a worker tells all others of what it sends.

    Args:
      outgoing: that.
      finite: whether it is all finite.
      present: whether the worker takes part; None where all do, and say nothing of it.
    """
    square = jnp.stack([out.selection.statistics.square for out in outgoing]).sum()

    def header(sent, change):
      rest = jnp.maximum(square + change, 0) if self.options.memory.error_feedback else change * 0
      numbers = [(~finite).astype(jnp.float32), sent, rest]
      if present is not None:
        # What an absent worker has, even if it is not finite, is nobody's concern.
        numbers = [jnp.where(present, x, jnp.float32(0)) for x in numbers]
        numbers.append(present.astype(jnp.float32))
      return jnp.stack(numbers)

    return header

  def metrics(self, sent_square: jax.Array, residual_square: jax.Array) -> ExchangeMetrics:
    """Those of a step, before it is known how many entries of the update are not zero."""
    entries = sum(
      (
        _axis.over_model(jnp.float32(segment.size), segment.axes)
        for segment in self.layout.compressed
      ),
      jnp.float32(0),
    )
    return ExchangeMetrics(
      sent_square, residual_square, jnp.float32(0), entries, jnp.zeros((), jnp.int32)
    )

  def outgoing(
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
    # Shards of a model draw independently as well.
    member = _axis.index_with_shards(self.workers, segment.axes)
    key_of = lambda group: derived_key(
      self.options.seed, self.count, member, number * MOST_GROUPS + group
    )
    num_workers, scope = _axis.size(self.workers), self.options.scope
    block = scope.size if isinstance(scope, Block) else None
    selection = selector.select(vector, key_of, num_workers, block)
    return Outgoing(vector, selection, key_of(MOST_GROUPS - 1))


class Heads(NamedTuple):
  """What the headers of all workers come to.

  Attributes:
    wrong: how many have sent what is not finite.
    sent_square: the mean squared norm of what one sends.
    residual_square: of what it keeps.
  """

  wrong: jax.Array
  sent_square: jax.Array
  residual_square: jax.Array


def read_heads(headers: jax.Array, weights: jax.Array | None, axes: frozenset[str]) -> Heads:
  """The sums of all headers, over the shards of a model as well."""
  heads = _axis.over_model(headers[:, :3], axes)
  senders = headers.shape[0] if weights is None else jnp.maximum(weights.sum(), 1)
  return Heads(heads[:, 0].sum(), heads[:, 1].sum() / senders, heads[:, 2].sum() / senders)


def is_finite(outgoing: Sequence[Outgoing]) -> jax.Array:
  """Whether the vectors that entries are selected from are finite."""
  largest = jnp.stack([out.selection.statistics.largest for out in outgoing]).max()
  return largest < _INFINITY


def place(new: Sequence[jax.Array], segment: Segment, into: list[jax.Array]) -> None:
  """Puts what is new of a segment's leaves to its place in a list of all."""
  for i, x in zip(segment.leaves, new, strict=bool(new)):
    into[i] = x
