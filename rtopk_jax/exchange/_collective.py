"""What a collective is to the exchange, and the plainest of them: every worker's message to every worker.

A collective takes what workers want to send and says three things about it, none of which is carried out
before all workers are known to go on with the step:

* ``Contributions``: what to add up to the update, from the same buffers on every worker. They are decoded one
  after another by a loop whose code does not grow with their number. Within one of them positions are distinct,
  so no two additions race for an entry: the sum has one order, and replicas agree bit for bit on every backend.
* how entries of this worker's memory change because something was sent or received.
* the headers: a few numbers of every worker.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._axis import AxisName
from rtopk_jax.kernels import _bitpack, _scatter
from rtopk_jax.memory._rule import Memory
from rtopk_jax.memory._update import Sent
from rtopk_jax.select._selector import Selection
from rtopk_jax.select._slices import Blocks, SparseSlices
from rtopk_jax.vector._vector import Vector
from rtopk_jax.wire._wire import Wire

AVERAGES = ("workers", "senders", "sum")

# From the squared norm of what a worker sends, and by how much sending it changes the squared norm of its
# memory, to a few float32 numbers.
Header = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Outgoing:
  """What a worker wants to send of a vector.

  Attributes:
    vector: what it is selected from.
    selection: which entries.
    values: theirs, as they are to be sent, shape (k,), float32.
    key: a PRNG key of this worker's, for rounding.
    blocks: the block of each entry, where indices are of blocks.
  """

  vector: Vector
  selection: Selection
  values: jax.Array
  key: jax.Array
  blocks: Blocks | None = None


@dataclasses.dataclass(frozen=True)
class Contributions:
  """What the workers add to an update.

  Attributes:
    count: how many there are, one from each worker.
    read: the positions (ascending) and values of one, by its number.
  """

  count: int
  read: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Incoming(NamedTuple):
  """What comes of sending.

  Attributes:
    contributions: to the update.
    sent: what this worker's memory has to know.
  """

  contributions: Contributions
  sent: Sent


class Collective:
  """How messages travel; frozen, hashable, static under ``jit``."""

  # Whether workers may be absent from a step.
  allows_absence = True

  def suited(self, axis_name: AxisName, average: str, wire: Wire, memory: Memory) -> "Collective":
    """This collective as it serves some options, which are refused where it cannot."""
    del axis_name, average, wire, memory
    return self

  def with_absence(self) -> "Collective":
    """This collective as it serves steps that workers may be absent from; refused where it cannot."""
    if not self.allows_absence:
      raise ValueError(
        f"present needs a collective without owners, who cannot be absent; {self!r} has them."
      )
    return self

  def workers(self, axis_name: AxisName) -> AxisName:
    """The axes whose members have a memory and send messages of their own."""
    return axis_name

  def prepare(self, updates: Any, axis_name: AxisName) -> tuple[Any, int]:
    """What a member of ``workers`` starts from, out of the gradients over all of ``axis_name``.

    Returns:
      A sum of gradients, and of how many: whoever reads it divides, so that no mean is materialised.
    """
    del axis_name
    return updates, 1

  def exchange(
    self, outgoing: Sequence[Outgoing], header: Header, wire: Wire, axis_name: AxisName
  ) -> tuple[list[Incoming], jax.Array]:
    """Sends and receives.

    Args:
      outgoing: a vector each.
      header: this worker's numbers for all workers.
      wire: the code of messages.
      axis_name: the mapped axis of the workers.

    Returns:
      What comes in for each vector, and all headers, a row a worker.
    """
    raise NotImplementedError


def gather(
  head: jax.Array, messages: Sequence[jax.Array], axis_name: AxisName
) -> tuple[jax.Array, list[Callable[[jax.Array], jax.Array]]]:
  """Every worker's header and messages, in one collective.

  Args:
    head: this worker's numbers, float32.
    messages: its messages, words each.
    axis_name: the mapped axis of the workers.

  Returns:
    The headers, (num_workers, …), and for each message what picks a worker's words by its number.
  """
  words = [lax.bitcast_convert_type(head, jnp.uint32), *messages]
  # TPUs would make an all-reduce of a gather of anything but whole tiles.
  rest = -sum(part.size for part in words) % _axis.TILE
  # With an axis of one in their tiles, what one worker sent lies together there. A message is picked out of the
  # whole: cut out for all workers first, it would be copied.
  joined = _bitpack.join([*words, jnp.zeros(rest, jnp.uint32)])[None]
  gathered = _axis.all_gather(joined, axis_name)

  def pick(begin: int, size: int) -> Callable[[jax.Array], jax.Array]:
    return lambda worker: lax.dynamic_slice(
      gathered, (worker, jnp.int32(0), jnp.int32(begin)), (1, 1, size)
    ).reshape(size)

  parts, begin = [], head.size
  for message in messages:
    parts.append(pick(begin, message.size))
    begin += message.size
  headers = gathered[:, 0, : head.size]
  return lax.bitcast_convert_type(headers, jnp.float32), parts


@dataclasses.dataclass(frozen=True)
class AllGather(Collective):
  """Every worker gets every worker's message: O(n·k) received, one collective.

  Examples:
    >>> import rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.rtop_k(0.01), "data", collective=rtopk_jax.AllGather()
    ... )
  """

  def exchange(self, outgoing, header, wire, axis_name):
    """As ``Collective.exchange``."""
    messages, kept = [], []
    sent_square = change = jnp.float32(0)
    for out in outgoing:
      slices = SparseSlices(out.values, out.selection.positions, out.vector.span)
      messages.append(wire.encode(slices, out.key, out.blocks))
      # What counts as sent is what the others will read, rounding included.
      sent = wire.decode_values(messages[-1], out.values.size)
      kept.append(out.values - sent)
      sent_square += jnp.sum(jnp.square(sent))
      change += jnp.sum(jnp.square(kept[-1]) - jnp.square(out.values))
    headers, arrived = gather(header(sent_square, change), messages, axis_name)
    n = headers.shape[0]
    return [
      _incoming(*each, n, wire) for each in zip(outgoing, kept, arrived, strict=True)
    ], headers


def _incoming(
  out: Outgoing,
  kept: jax.Array,
  arrived: Callable[[jax.Array], jax.Array],
  num_workers: int,
  wire: Wire,
) -> Incoming:
  positions = out.selection.positions

  def read(worker):
    slices = wire.decode(arrived(worker), positions.size, out.vector.span, out.blocks)
    return slices.indices, slices.values

  def settle(residuals, where, here):
    # Of what is sent exactly, nothing is left.
    return _scatter.put(residuals, where, positions, kept, keep=here, are_zero=wire.is_exact)

  return Incoming(Contributions(num_workers, read), Sent(settle, ((positions, True),)))
