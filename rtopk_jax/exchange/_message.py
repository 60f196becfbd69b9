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


class Written(NamedTuple):
  """A worker's message to everybody, before it is sent.

  Attributes:
    words: shape (1, m), uint32, whole tiles: the header, then a message of each vector.
    head_size: numbers of the header.
    kept: of each vector what is left of the entries that are sent, shape (k,).
  """

  words: jax.Array
  head_size: int
  kept: list[jax.Array]


def join(head: jax.Array, messages: Sequence[jax.Array]) -> jax.Array:
  """A worker's header and messages as one row of words, (1, m), in whole tiles."""
  words = [lax.bitcast_convert_type(head, jnp.uint32), *messages]
  # TPUs would make an all-reduce of a gather of anything but whole tiles.
  rest = -sum(x.size for x in words) % _axis.TILE
  # With an axis of one in their tiles, what one worker sent lies together there.
  return _bitpack.join([*words, jnp.zeros(rest, jnp.uint32)])[None]


def part(
  gathered: jax.Array, head_size: int, sizes: Sequence[int], start: jax.Array | int = 0
) -> tuple[jax.Array, list[Callable[[jax.Array], jax.Array]]]:
  """Headers and messages out of what ``join`` made on each worker.

  Args:
    gathered: rows of words, (rows, 1, m).
    head_size: numbers of a header.
    sizes: words of each message.
    start: of a row's words: zero, of which a compiler knows only when it is there.

  Returns:
    The headers, (rows, head_size), and for each message what picks the words of a row by its number.
  """

  # A message is picked out of the whole: cut out for all workers first, it would be copied.
  def pick(begin: int, size: int) -> Callable[[jax.Array], jax.Array]:
    return lambda row: lax.dynamic_slice(
      gathered, (row, jnp.int32(0), jnp.int32(begin) + start), (1, 1, size)
    ).reshape(size)

  parts, begin = [], head_size
  for size in sizes:
    parts.append(pick(begin, size))
    begin += size
  headers = lax.dynamic_slice_in_dim(gathered[:, 0], start, head_size, axis=1)
  return lax.bitcast_convert_type(headers, jnp.float32), parts


def write(outgoing: Sequence[Outgoing], header: Header, wire: WireFormat) -> Written:
  """What a worker sends, and what its memory keeps of it; arguments as of ``Collective.exchange``."""
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
  head = header(sent_square, change)
  return Written(join(head, messages), head.size, kept)


def read(
  outgoing: Sequence[Outgoing],
  gathered: jax.Array,
  head_size: int,
  wire: WireFormat,
  start: jax.Array | int = 0,
) -> tuple[jax.Array, list[Contributions]]:
  """What everybody's ``write`` contributes.

  Args:
    outgoing: what a message is of; of its selections only sizes and blocks count.
    gathered: rows of words, (rows, 1, m).
    head_size: numbers of a header.
    wire: the code of messages.
    start: as of ``part``.

  Returns:
    The headers, a row a message, and the ``Contributions`` to each vector.
  """
  codes = [out.code(wire) for out in outgoing]
  sizes = [code.words(out.count, out.room) for code, out in zip(codes, outgoing, strict=True)]
  headers, arrived = part(gathered, head_size, sizes, start)
  parts = zip(outgoing, codes, arrived, strict=True)
  return headers, [_contributions(*each, gathered.shape[0]) for each in parts]


def sent(out: Outgoing, kept: jax.Array, wire: WireFormat) -> Sent:
  """What a worker's memory has to know of what it sent of a vector, ``kept`` being what is left of that."""
  positions = out.selection.positions
  # Of what is sent exactly, nothing is left.
  are_zero = wire.is_exact and out.selection.values is out.selection.entries

  def settle(residuals, where, here):
    return _scatter.put(residuals, where, positions, kept, keep=here, are_zero=are_zero)

  return Sent(settle, ((positions, True),))


def to_everybody(
  outgoing: Sequence[Outgoing], header: Header, wire: WireFormat, send: Send
) -> tuple[list[Incoming], jax.Array]:
  """Every worker's message to every worker; arguments and results as of ``Collective.exchange``."""
  written = write(outgoing, header, wire)
  headers, contributions = read(outgoing, send(written.words), written.head_size, wire)
  parts = zip(contributions, outgoing, written.kept, strict=True)
  return [Incoming(given, sent(out, kept, wire)) for given, out, kept in parts], headers


def _those_there(out: Outgoing, values: jax.Array) -> jax.Array:
  """Values of entries that are there, and zero for others, whatever a wire makes of zero."""
  there = out.is_there
  return values if there is True else jnp.where(there, values, jnp.zeros_like(values))


def _contributions(
  out: Outgoing, code: WireFormat, arrived: Callable[[jax.Array], jax.Array], count: int
) -> Contributions:
  def read(row):
    slices = code.decode(arrived(row), out.count, out.room)
    if not out.selection.is_short:
      return slices.indices, slices.values
    there = slices.indices < out.vector.span
    return slices.indices, jnp.where(there, slices.values, jnp.float32(0))

  return Contributions(count, read)
