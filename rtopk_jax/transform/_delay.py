r"""A step of the exchange whose messages arrive one step later.

    what is in flight ─▶ collective ─▶ update of the step before
    gradient, memory ─▶ select ─▶ encode ─▶ what is in flight next

The upper line needs nothing of this step's gradient, so it travels while that is computed. The lower line needs
nothing of other workers, so the memory changes at once. With :math:`M_i` what worker i has in flight,

.. math::
  v_i^t = \lambda e_i^t + u_i^t, \qquad M_i^{t+1} = C(v_i^t), \qquad e_i^{t+1} = v_i^t - M_i^{t+1}, \qquad
  \mathrm{update}^t = \frac1n \sum_i M_i^t.

A worker whose own vector is not finite keeps its memory, and says so in its message. The others hear of it a step
later. Then nothing of that step is applied, and each takes its message back into its residual.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rtopk_jax import _axis
from rtopk_jax._axis import AxisName
from rtopk_jax.exchange import _message, _reduce
from rtopk_jax.exchange._mean import mean_dense
from rtopk_jax.exchange._message import Contributions, Outgoing
from rtopk_jax.kernels import _gather, _scatter, here
from rtopk_jax.kernels._offsets import settled
from rtopk_jax.kernels._scatter import cast
from rtopk_jax.kernels._zeros import zeros_after
from rtopk_jax.memory import _update
from rtopk_jax.memory._update import Leaves
from rtopk_jax.select import _warmup
from rtopk_jax.select._selector import Selector
from rtopk_jax.transform._metrics import ExchangeMetrics
from rtopk_jax.transform._step import Step, is_finite, place, read_heads
from rtopk_jax.vector._layout import Layout, Segment
from rtopk_jax.vector._vector import Vector

# Numbers of a header that says whether its worker takes part.
_HEAD = 4


class InFlight(NamedTuple):
  """What workers have sent, and not applied yet.

  Attributes:
    senders: of which messages there are, float32, (num_workers, messages): 0 before the first step and of a worker that
      took no part. A row has several messages only where the number of workers has just become smaller.
    dense: the leaves that are sent as they are, float32, a row a worker each; the sum of its messages.
    words: messages of the compressed leaves one after another, uint32, a row a worker.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.01), "data", delay=1)
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> state = rtopk_jax.init(tx, {"w": jnp.zeros((100, 20))}, mesh, "data")
    >>> float(state.in_flight.senders.sum()), state.in_flight.words.shape[0]
    (0.0, 1)
  """

  senders: jax.Array
  dense: tuple[jax.Array, ...]
  words: jax.Array

  def resized(self, new_count: int) -> "InFlight":
    """The same messages in the rows of another number of workers, every one as it is.

    Args:
      new_count: the number of workers to come.

    Returns:
      The same messages, dealt out.
    """
    old, slots = self.senders.shape
    deep = max(1, -(-old * slots // new_count))
    places = old * slots

    def dealt(x):
      rows = np.asarray(x).reshape(places, -1)
      new = np.zeros((new_count * deep, rows.shape[1]), rows.dtype)
      new[:places] = rows
      return jnp.asarray(new.reshape(new_count, -1))

    def summed(x):
      total = np.zeros((new_count, *x.shape[1:]), np.float64)
      # Where the last message of a row goes, all of them count.
      np.add.at(total, (np.arange(old) * slots + slots - 1) // deep, np.asarray(x, np.float64))
      return jnp.asarray(total.astype(np.float32))

    return InFlight(dealt(self.senders), tuple(map(summed, self.dense)), dealt(self.words))


def longest(message: Callable[[int], jax.Array], stages: int) -> int:
  """Words of the longest message of all stages, by shapes alone."""
  return max(jax.eval_shape(lambda s=s: message(s)).size for s in range(stages))


def nothing(layout: Layout, words: int, workers: AxisName) -> InFlight:
  """Before the first step.

  Args:
    layout: of the leaves.
    words: of the longest message.
    workers: the axes of the workers.
  """
  row = lambda shape, dtype=jnp.float32: _axis.new_row(shape, dtype, workers)
  shapes = [where.shape for segment in layout.dense for where in segment.where]
  return InFlight(row((1,)), tuple(map(row, shapes)), row((words,), jnp.uint32))


class _Sent(NamedTuple):
  """What a worker has done by itself: its message, and its memory after it."""

  words: jax.Array
  compressed: list[Leaves]
  finite: jax.Array


class _Arrived(NamedTuple):
  """What came of the messages of the step before: updates, residuals with what was taken back, and so on."""

  means: list[list[jax.Array]]
  residuals: list[list[jax.Array]]
  metrics: ExchangeMetrics
  finite: jax.Array


@dataclasses.dataclass(frozen=True)
class DelayedStep(Step):
  """A step whose messages arrive one step later; attributes as of ``Step``, and one more.

  Attributes:
    stage: of the warm-up, that in which the messages in flight were written; the same on all workers.
  """

  stage: jax.Array = dataclasses.field(default_factory=lambda: jnp.int32(0))

  def message(self, selector: Selector, scale: jax.Array | None = None) -> jax.Array:
    """This worker's message at one density, shape (1, words)."""
    return self._written(self._outgoings(selector, scale), jnp.bool_(True)).words

  def run(
    self, selector: Selector, in_flight: InFlight
  ) -> tuple[Leaves, ExchangeMetrics, jax.Array, InFlight]:
    """As ``Step.run``, the update being that of the step before."""
    scale = self._clip_scale()
    updates = [jnp.zeros(g.shape, jnp.float32) for g in self.leaves.gradient]
    directions = [x for segment in self.layout.dense for x in self._directions(segment, scale)]
    dense_finite = self._arrived_dense(in_flight, updates)
    sound = settled(
      jnp.stack([jnp.isfinite(x).all() for x in directions] or [jnp.bool_(True)]).all()
    )
    if self.layout.compressed:
      outgoings = lambda stage: self._outgoings(selector.at(stage), scale)
      if len(selector.stages.densities) == 1:
        # Selected once, and read below too. What a branch of several computes cannot be read in another.
        outgoings = functools.cache(outgoings)
      room = in_flight.words.size // in_flight.senders.shape[-1]
      lengths: list[int] = []
      sent = _warmup.switch(
        selector.stages, self.count, lambda s: self._send(outgoings(s), scale, sound, room, lengths)
      )
      # All stages have been traced by now, but for a count of one stage's bytes.
      if len(lengths) >= len(selector.stages.densities) and max(lengths) != room:
        raise ValueError(_of_others(room, max(lengths)))
      arrived = _warmup.choose(
        selector.stages,
        self.stage,
        lambda s: self._receive(outgoings(s), in_flight, sent, dense_finite),
      )
    else:
      sent = _Sent(in_flight.words.reshape(-1), [], sound)
      zero = jnp.float32(0)
      arrived = _Arrived([], [], self.metrics(zero, zero), dense_finite)
    finite = arrived.finite
    momentum, residual = list(self.leaves.momentum), list(self.leaves.residual)
    parts = zip(
      self.layout.compressed, sent.compressed, arrived.means, arrived.residuals, strict=True
    )
    for segment, own, means, residuals in parts:
      place(means, segment, updates)
      place(own.momentum, segment, momentum)
      place(residuals, segment, residual)
    for segment in self.layout.dense:
      place(self._dense_momenta(segment, scale, sent.finite), segment, momentum)
      for i in segment.leaves:
        updates[i] = jnp.where(finite, updates[i], jnp.float32(0))
    # The new message may have the memory of the old one, which has been read by then.
    over = zeros_after(arrived.metrics.sent_square.reshape(1)).astype(jnp.uint32)
    present = self._takes_part().astype(jnp.float32)
    after = InFlight(
      present.reshape(*in_flight.senders.shape[:-1], 1),
      tuple(x.reshape(y.shape) for x, y in zip(directions, in_flight.dense, strict=True)),
      (sent.words + over).reshape(*in_flight.words.shape[:-1], -1),
    )
    return Leaves(updates, momentum, residual), arrived.metrics, finite, after

  def _takes_part(self) -> jax.Array:
    """Whether this worker is present, each worker's own even where all are."""
    return self._taken(_axis.varying_like(jnp.bool_(True), self.leaves.gradient[0]))

  def _outgoings(self, selector: Selector, scale: jax.Array | None) -> list[Outgoing]:
    segments = self.layout.compressed
    return [self.outgoing(i, segment, selector, scale) for i, segment in enumerate(segments)]

  def _written(self, outgoing: Sequence[Outgoing], sound: jax.Array) -> _message.Written:
    finite = sound & is_finite(outgoing)
    header = self.header(outgoing, finite, self._takes_part())
    return _message.write(outgoing, header, self.options.wire)

  def _send(
    self,
    outgoing: Sequence[Outgoing],
    scale: jax.Array | None,
    sound: jax.Array,
    room: int,
    lengths: list[int],
  ) -> _Sent:
    """This worker's message in so many words, and its memory after it; how many it needs is noted."""
    written = self._written(outgoing, sound)
    lengths.append(written.words.size)
    if written.words.size > room:
      raise ValueError(_of_others(room, written.words.size))
    # The memory changes after the message has been read out of it, or it would be made in other memory and copied.
    is_read = zeros_after(written.words.reshape(-1)[:1])[0] == 0
    finite = settled(sound & is_finite(outgoing) & is_read)
    local = lambda gradient: self._local(gradient, scale)
    found = []
    for segment, out, kept in zip(self.layout.compressed, outgoing, written.kept, strict=True):
      momenta, residuals = _update.after_exchange(
        self.options.memory,
        self.leaves.of(segment.leaves),
        segment.where,
        local,
        self._taken(finite),
        _message.sent(out, kept, self.options.wire),
      )
      found.append(Leaves([], momenta, residuals))
    words = written.words.reshape(-1)
    return _Sent(jnp.pad(words, (0, room - words.size)), found, finite)

  def _receive(
    self, outgoing: Sequence[Outgoing], in_flight: InFlight, sent: _Sent, sound: jax.Array
  ) -> _Arrived:
    """What comes of the messages in flight, which are of the sizes of some others."""
    options, wire = self.options, self.options.wire
    length = self._length(outgoing)
    slots = in_flight.senders.shape[-1]
    words = in_flight.words.reshape(1, -1)
    if words.size != slots * length:
      words = words.reshape(slots, -1)[:, :length].reshape(1, -1)
    collective = options.collective.settled_for(outgoing, wire, self.workers)
    # What arrived is read when all else is done: what is scheduled earlier is waited for earlier.
    late = zeros_after(sent.words[:1])[0].astype(jnp.int32)
    gathered = collective.send(words, self.workers).reshape(-1, 1, length)
    headers, contributions = _message.read(outgoing, gathered, _HEAD, wire, late)
    weights = headers[:, 3]
    heads = read_heads(headers, weights, frozenset())
    finite = settled(sound & (heads.wrong == 0))
    means, residuals, received = [], [], jnp.float32(0)
    for segment, given, own in zip(
      self.layout.compressed, contributions, sent.compressed, strict=True
    ):
      rest = own.residual
      if rest:
        for slot in range(slots):
          row = _axis.index(self.workers) * slots + slot
          back = ~finite & (headers[row, 3] > 0) & (headers[row, 0] == 0)
          take_back = functools.partial(_taken_back, segment, given, row)
          _, rest = here().up_to(1, lambda state: ~state[0], take_back, (back, rest))
      mean, count = _reduce.reduce(
        given, segment.where, finite, weights, options.average, rest or own.momentum
      )
      received += count.astype(jnp.float32)
      means.append(mean)
      residuals.append(rest)
    metrics = self.metrics(heads.sent_square, heads.residual_square)
    return _Arrived(means, residuals, metrics._replace(received=received), finite)

  def _length(self, outgoing: Sequence[Outgoing]) -> int:
    """Words of a message."""
    return jax.eval_shape(lambda: self._written(outgoing, jnp.bool_(True)).words).size

  def _arrived_dense(self, in_flight: InFlight, updates: list[jax.Array]) -> jax.Array:
    """Writes the means of dense leaves in flight to ``updates``, and says whether all are finite."""
    finite, rest = jnp.bool_(True), list(in_flight.dense)
    for segment in self.layout.dense:
      rows, rest = rest[: len(segment.leaves)], rest[len(segment.leaves) :]
      own = [x.reshape(where.shape) for x, where in zip(rows, segment.where, strict=True)]
      with _axis.in_parts(self.options.collective.parts_axis):
        mean = mean_dense(own, self.workers, in_flight.senders.sum(), "workers")
      place(mean.leaves, segment, updates)
      finite &= mean.wrong == 0
    return finite


def _of_others(room: int, words: int) -> str:
  return (
    f"state.in_flight has messages of {room} words, and those of this exchange have {words}: they were sent with another "
    "density, wire or scope. Take a last step of the old one in which all workers are absent (present=False), which "
    "delivers them, and make the state anew."
  )


def _taken_back(
  segment: Segment,
  contributions: Contributions,
  row: jax.Array,
  state: tuple[jax.Array, list[jax.Array]],
) -> tuple[jax.Array, list[jax.Array]]:
  """Adds a worker's own message to its residuals if it is to be taken back, which it is no more afterwards."""
  back, residuals = state
  positions, values = contributions.read(row)
  arrays = tuple((x,) for x in residuals)
  vector = Vector(segment.where, arrays, lambda x: x.astype(jnp.float32))
  new = _gather.take(vector, positions) + values
  kept = cast(new, residuals[0].dtype).astype(jnp.float32)
  return jnp.zeros_like(back), _scatter.put(residuals, segment.where, positions, kept, keep=back)
