"""Messages of all workers: what goes into one, what comes out, and the exchange of each with everybody.

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis
from rtopk_jax.kernels import _bitpack, _scatter
from rtopk_jax.memory._update import Sent
from rtopk_jax.select._selection import Selection
from rtopk_jax.select._slices import SparseSlices
from rtopk_jax.vector._vector import Vector
from rtopk_jax.wire._format import WireFormat, check_words

# From the squared norm of what a worker sends, and by how much sending it changes the squared norm of its
# memory, to a few float32 numbers.
Header = Callable[[jax.Array, jax.Array], jax.Array]
# Of every worker the words that it hands over, (1, m) to (num_workers, 1, m), the same on all.
Send = Callable[[jax.Array], jax.Array]
# Words of a header as all workers take part.
_HEADER = 3


@dataclasses.dataclass(frozen=True)
class Outgoing:
  """What a worker wants to send of a vector.

  Attributes:
    vector: what it is selected from.
    selection: which entries, and their values as they are to be sent.
    key: a PRNG key of this worker's, for rounding.
  """

  vector: Vector
  selection: Selection
  key: jax.Array

  @property
  def count(self) -> int:
    """k, the entries that there is room for."""
    return self.selection.positions.size

  @property
  def room(self) -> int:
    """How many different positions a message has to be able to name."""
    return self.selection.room(self.vector)

  @property
  def is_there(self) -> jax.Array | bool:
    """Which of the k are there."""
    return self.selection.is_there(self.vector)

  def code(self, wire: WireFormat) -> WireFormat:
    """A wire for these entries."""
    if wire.needs_blocks and self.selection.blocks is None:
      raise ValueError(
        'indices="block" need as many entries in every block as there is room for, and this selector says of '
        'each message how many there are; choose "int32" or "elias_fano".'
      )
    return wire.within(self.selection.blocks)


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


def gathered_bytes(wire: WireFormat, k: int, d: int) -> int:
  """Bytes that a worker hands over to send one message of k of d entries to everybody."""
  return 4 * _axis.TILE * -(-(_HEADER + wire.words(k, d)) // _axis.TILE)


def gather(
  head: jax.Array, messages: Sequence[jax.Array], send: Send
) -> tuple[jax.Array, list[Callable[[jax.Array], jax.Array]]]:
  """Every worker's header and messages, in one collective.

  Args:
    head: this worker's numbers, float32.
    messages: its messages, words each.
    send: hands them to everybody.

  Returns:
    The headers, (num_workers, …), and for each message what picks a worker's words by its number.
  """
  words = [lax.bitcast_convert_type(head, jnp.uint32), *messages]
  # TPUs would make an all-reduce of a gather of anything but whole tiles.
  rest = -sum(part.size for part in words) % _axis.TILE
  # With an axis of one in their tiles, what one worker sent lies together there. A message is picked out of the
  # whole: cut out for all workers first, it would be copied.
  joined = _bitpack.join([*words, jnp.zeros(rest, jnp.uint32)])[None]
  gathered = send(joined)

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


def to_everybody(
  outgoing: Sequence[Outgoing], header: Header, wire: WireFormat, send: Send
) -> tuple[list[Incoming], jax.Array]:
  """Every worker's message to every worker; arguments and results as of ``Collective.exchange``."""
  messages, kept = [], []
  sent_square = change = jnp.float32(0)
  for out in outgoing:
    code, entries, values = out.code(wire), out.selection.entries, out.selection.values
    slices = SparseSlices(values.astype(jnp.float32), out.selection.positions, out.room)
    message = code.encode(slices, out.key)
    messages.append(check_words(wire, message, code.words(out.count, out.room)))
    # What counts as sent is what the others will read, rounding included.
    sent = _those_there(out, code.decode_values(message, out.count, out.room))
    kept.append(entries - sent)
    sent_square += jnp.sum(jnp.square(sent))
    change += jnp.sum(jnp.square(kept[-1]) - jnp.square(entries))
  headers, arrived = gather(header(sent_square, change), messages, send)
  n = headers.shape[0]
  return [_incoming(*each, n, wire) for each in zip(outgoing, kept, arrived, strict=True)], headers


def _those_there(out: Outgoing, values: jax.Array) -> jax.Array:
  """Values of entries that are there, and zero for others, whatever a wire makes of zero."""
  there = out.is_there
  return values if there is True else jnp.where(there, values, jnp.zeros_like(values))


def _incoming(
  out: Outgoing,
  kept: jax.Array,
  arrived: Callable[[jax.Array], jax.Array],
  num_workers: int,
  wire: WireFormat,
) -> Incoming:
  positions, code = out.selection.positions, out.code(wire)

  def read(worker):
    slices = code.decode(arrived(worker), out.count, out.room)
    if not out.selection.is_short:
      return slices.indices, slices.values
    there = slices.indices < out.vector.span
    return slices.indices, jnp.where(there, slices.values, jnp.float32(0))

  # Of what is sent exactly, nothing is left.
  are_zero = wire.is_exact and out.selection.values is out.selection.entries

  def settle(residuals, where, here):
    return _scatter.put(residuals, where, positions, kept, keep=here, are_zero=are_zero)

  return Incoming(Contributions(num_workers, read), Sent(settle, ((positions, True),)))
