"""The exchange that does not grow with the number of workers: every coordinate has an owner who adds it up."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rtopk_jax import _axis, _checks
from rtopk_jax._axis import AxisName
from rtopk_jax._loops import fori_loop
from rtopk_jax._modes import Traffic
from rtopk_jax.exchange import _message
from rtopk_jax.exchange._collective import Collective
from rtopk_jax.exchange._cost import Cost
from rtopk_jax.exchange._message import Contributions, Incoming, Outgoing
from rtopk_jax.kernels import _prefix_sum, _scatter, here
from rtopk_jax.memory._update import Sent
from rtopk_jax.select import _rtop_k
from rtopk_jax.select._slices import SparseSlices
from rtopk_jax.vector import _vector
from rtopk_jax.vector._vector import ALIGN, Vector
from rtopk_jax.wire._format import WireFormat, check_words

# Runs of an owner that are read at a time.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class ReduceScatter(Collective):
  r"""Each worker adds up 1/n of the coordinates and sends on the largest sums: O(k) a worker, whatever n.

  Coordinates are dealt to the workers in runs of 32, so that every layer is spread over all of them: worker o owns
  :math:`D_o = \{j : \lfloor j/32 \rfloor \bmod n = o\}`.

  1. Every entry that a worker selects goes to its owner, by one ``all_to_all`` with room for
     :math:`\lceil (1 + \mathrm{slack})\, k / n \rceil` entries an owner. What does not fit stays in the sender's
     memory.
  2. The owner adds up what arrives for each of its coordinates, and its own residual there.
  3. It sends the :math:`\lceil k/n \rceil` largest sums to everybody, by one ``all_gather``. The others stay as
     its residual.

  With :math:`v_i` what worker i selects from, :math:`C(v_i)` what of it reaches its owners and
  :math:`e_i = v_i - C(v_i)` the rest,

  .. math::
    s_o &= e_o|_{D_o} + \sum_i C(v_i)|_{D_o}, \qquad
    \mathrm{update}|_{D_o} = \frac1n \mathrm{top}_{\lceil k/n \rceil}(s_o), \\
    e_o|_{D_o} &\leftarrow s_o - \mathrm{top}_{\lceil k/n \rceil}(s_o).

  So each step changes about k coordinates of the model, at most :math:`n \lceil k/n \rceil`, not up to n·k; and
  nothing is lost: the residuals of all workers and n times the mean still make up what they had. There is no other
  state.

  A column of a matrix whose rows are a multiple of 32·n entries long has one owner. Where much of what is large
  lies in a few such columns, ``slack`` decides how much of it a step carries.

  Args:
    slack: room beyond the mean number of entries an owner gets from a worker, as a share of it.

  Raises:
    TypeError: when the slack is not a number.
    ValueError: when it is below 0.

  Examples:
    >>> import rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.rtop_k(0.01), "data", collective=rtopk_jax.ReduceScatter(slack=0.5)
    ... )
  """

  slack: float = 0.5

  def __post_init__(self):
    _checks.at_least("slack", self.slack, 0)

  allows_absence = False

  def suited(self, axis_name, average, wire, memory):
    """As ``Collective.suited``."""
    if not memory.error_feedback:
      raise ValueError(
        "error_feedback=False leaves an owner no place for the sums that it does not send on; choose "
        "AllGather() without a memory."
      )
    if average == "senders":
      raise ValueError(
        'average="senders" counts who sent an entry, and of a sum that its owner keeps back nobody can say; '
        'choose "workers" or "sum" with a ReduceScatter.'
      )
    if wire.needs_blocks:
      raise ValueError(
        'indices="block" need as many entries in every block as there were selected, which those of an '
        'owner are not; choose "int32" or "elias_fano" with a ReduceScatter.'
      )
    return self

  def exchange(self, outgoing, header, wire, axis_name):
    """As ``Collective.exchange``."""
    legs = [_Leg.of(self, out, wire, axis_name) for out in outgoing]
    tables = [leg.table(out) for leg, out in zip(legs, outgoing, strict=True)]
    ends = np.cumsum([table.shape[1] for table in tables])[:-1]
    arrived = _axis.all_to_all(jnp.concatenate(tables, axis=1), axis_name)
    rows = jnp.split(arrived, ends, axis=1)
    owned = [
      leg.collect(out, table, row)
      for leg, out, table, row in zip(legs, outgoing, tables, rows, strict=True)
    ]
    sent_square = jnp.stack([x.sent_square for x in owned]).sum()
    change = jnp.stack([x.change for x in owned]).sum()
    head, parts = header(sent_square, change), [x.message for x in owned]
    gathered = _axis.all_gather(_message.join(head, parts), axis_name)
    headers, messages = _message.part(gathered, head.size, [x.size for x in parts])
    return [
      leg.incoming(out, own, message)
      for leg, out, own, message in zip(legs, outgoing, owned, messages, strict=True)
    ], headers

  def cost(self, d, k, num_workers, wire, local):
    """As ``Collective.cost``."""
    owned = _owned(d, num_workers)
    capacity = _capacity(k, owned, num_workers, self.slack)
    # An index past the last coordinate stands for an empty place.
    row = 4 * wire.words(capacity, owned + capacity)
    returned = _message.gathered_bytes(wire, min(owned, -(-k // num_workers)), owned)
    traffic = Traffic.all_to_all(num_workers * row, num_workers)
    traffic += Traffic.all_gather(returned, num_workers)
    received = num_workers * capacity
    # What an owner gets goes into its sums and its memory; what rounding left of a worker's entries
    # goes into that worker's, and the sums that are sent on go into the update.
    placed = local.place * 2 * (received + k)
    own = local.own * d / num_workers + local.sort * (k + received)
    return Cost(traffic, local.overhead + local.compress * d + own + placed)


def _owned(d: int, num_workers: int) -> int:
  """Coordinates of an owner, those that there are not included."""
  return -(-d // (ALIGN * num_workers)) * ALIGN


def _capacity(k: int, owned: int, num_workers: int, slack: float) -> int:
  """Entries that a worker may send to an owner."""
  return min(k, owned, math.ceil((1 + slack) * k / num_workers))


@dataclasses.dataclass(frozen=True)
class _Owned:
  """What an owner made of what it got.

  Attributes:
    accepted: which of this worker's entries found room.
    kept: what rounding left of them, shape (k,).
    touched: positions of the coordinates that something came for, ascending, each once where ``is_first``.
    is_first: which of them count.
    sums: those there.
    chosen: positions of the sums that are sent on, ascending.
    rest: what rounding leaves of those.
    message: their words.
    sent_square: the squared norm of what this worker sent to owners.
    change: by how much all of it changes the squared norm of this worker's memory.
  """

  accepted: jax.Array
  kept: jax.Array
  touched: jax.Array
  is_first: jax.Array
  sums: jax.Array
  chosen: jax.Array
  rest: jax.Array
  message: jax.Array
  sent_square: jax.Array
  change: jax.Array


@dataclasses.dataclass(frozen=True)
class _Leg:
  """How one vector is dealt.

  Attributes:
    num_workers: n.
    axis_name: the mapped axis of the workers.
    wire: the code of messages.
    capacity: entries from a worker to an owner.
    returned: entries that an owner sends on.
    share: coordinates of an owner, those that there are not included.
  """

  num_workers: int
  axis_name: AxisName
  wire: WireFormat
  capacity: int
  returned: int
  share: int

  @classmethod
  def of(
    cls, collective: ReduceScatter, out: Outgoing, wire: WireFormat, axis_name: AxisName
  ) -> "_Leg":
    k, n = out.count, _axis.size(axis_name)
    share = _owned(out.vector.span, n)
    capacity = _capacity(k, share, n, collective.slack)
    return cls(n, axis_name, wire, capacity, min(share, -(-k // n)), share)

  def _owner(self, positions: jax.Array) -> jax.Array:
    return positions // ALIGN % self.num_workers

  def _number(self, positions: jax.Array) -> jax.Array:
    """Where among its owner's coordinates a position is."""
    return positions // (ALIGN * self.num_workers) * ALIGN + positions % ALIGN

  def _position(self, numbers: jax.Array, owner: jax.Array) -> jax.Array:
    cell = numbers // ALIGN * self.num_workers + owner
    return cell * ALIGN + numbers % ALIGN

  def _slots(self, out: Outgoing) -> tuple[jax.Array, jax.Array]:
    """A place in the table for each entry of a worker, and whether there is one."""
    owner = self._owner(out.selection.positions)
    entries = lax.iota(jnp.int32, owner.size)
    sorted_owner, order = lax.sort((owner, entries), num_keys=1, is_stable=True)
    first = _prefix_sum.count_below(sorted_owner, lax.iota(jnp.int32, self.num_workers))
    rank = jnp.zeros_like(entries).at[order].set(entries - first[sorted_owner])
    # What is not there stands last, and takes no place from what is.
    return owner * self.capacity + rank, (rank < self.capacity) & out.is_there

  def table(self, out: Outgoing) -> jax.Array:
    """A row of words for each owner."""
    slots, accepted = self._slots(out)
    size = self.num_workers * self.capacity
    slots = jnp.where(accepted, slots, size)
    # An empty place has an index that no coordinate has, so that indices ascend to the end.
    beyond = self.share + lax.iota(jnp.int32, self.capacity)
    indices = jnp.tile(beyond, self.num_workers)
    values = out.selection.values.astype(jnp.float32)
    indices = _axis.varying_like(indices, values)
    indices = indices.at[slots].set(self._number(out.selection.positions), mode="drop")
    values = jnp.zeros_like(values, shape=(size,)).at[slots].set(values, mode="drop")
    in_rows = lambda x: x.reshape(self.num_workers, self.capacity)
    keys = jax.random.split(out.key, self.num_workers)
    return jax.vmap(lambda v, i, key: self._encode(v, i, key, self.capacity))(
      in_rows(values), in_rows(indices), keys
    )

  def _encode(self, values: jax.Array, indices: jax.Array, key: jax.Array, room: int) -> jax.Array:
    words = self.wire.encode(SparseSlices(values, indices, self.share + room), key)
    return check_words(self.wire, words, self.wire.words(values.size, self.share + room))

  def collect(self, out: Outgoing, table: jax.Array, arrived: jax.Array) -> _Owned:
    """Adds up what came for this worker's coordinates, and chooses what to send on."""
    me = _axis.index(self.axis_name)
    positions, values = out.selection.positions, out.selection.entries
    room = self.share + self.capacity
    slots, accepted = self._slots(out)
    read_values = lambda row: self.wire.decode_values(row, self.capacity, room)
    sent = jax.vmap(read_values)(table).reshape(-1)
    sent = sent.at[jnp.minimum(slots, sent.size - 1)].get(mode="promise_in_bounds")
    sent = jnp.where(accepted, sent, jnp.float32(0))
    kept = values - sent
    mine = accepted & (self._owner(positions) == me)
    number = jnp.where(mine, self._number(positions), self.share)
    start = self._owned(out.vector, me).at[number].set(kept, mode="drop")

    read = lambda row: self.wire.decode(row, self.capacity, room)
    received = jax.vmap(read)(arrived)

    def add(worker, sums):
      at = sums.at[received.indices[worker]]
      new = received.values[worker]
      return at.add(new, mode="drop", unique_indices=True, indices_are_sorted=True)

    sums = fori_loop(0, self.num_workers, add, start)
    chosen = _rtop_k.largest_of(sums, self.returned)
    leaving = sums[chosen]
    message = self._encode(leaving, chosen, jax.random.fold_in(out.key, self.num_workers), 0)
    rest = leaving - self.wire.decode_values(message, self.returned, self.share)
    # Entries of others' coordinates that were sent, then all coordinates of this worker's own.
    change = jnp.sum(jnp.where(accepted, jnp.square(kept) - jnp.square(values), jnp.float32(0)))
    change += jnp.sum(jnp.square(sums) - jnp.square(start))
    change += jnp.sum(jnp.square(rest) - jnp.square(leaving))

    # The sums of what came are this worker's residual, as far as they are not sent on.
    numbers = jnp.sort(received.indices.reshape(-1))
    is_first = numbers != jnp.pad(numbers[:-1], (1, 0), constant_values=-1)
    is_there = numbers < self.share
    touched = jnp.where(is_there, self._position(numbers, me), np.int32(_vector.MAX_SIZE))
    return _Owned(
      accepted,
      kept,
      touched,
      is_there & is_first,
      sums.at[jnp.minimum(numbers, self.share - 1)].get(mode="promise_in_bounds"),
      self._position(chosen, me),
      rest,
      message,
      jnp.sum(jnp.square(sent)),
      change,
    )

  def _owned(self, vector: Vector, me: jax.Array) -> jax.Array:
    """This worker's coordinates of a vector, shape (share,)."""
    vector = here().flat(vector)
    longest = max(-(-place.size // ALIGN) for place in vector.where)
    spare = -(-longest // self.num_workers)
    owned = jnp.zeros((self.share // ALIGN + spare, ALIGN))
    owned = _axis.varying_like(owned, vector.arrays[0][0])
    for i, place in enumerate(vector.where):
      cell = place.first // ALIGN
      offset = (me - cell) % self.num_workers
      first = (cell + offset) // self.num_workers
      whole, more = divmod(place.size, ALIGN * self.num_workers)
      # Several turns even for a short piece: what is not read in a loop is read from where it lies in a leaf
      # of many axes, entry by entry.
      turns = max(2, whole // _CHUNK)
      chunk = whole // turns

      def turn(number, owned, i=i, offset=offset, first=first, chunk=chunk):
        rows = vector.read_every(i, self.num_workers, offset, number * chunk, chunk)
        return lax.dynamic_update_slice(owned, rows, (first + number * chunk, jnp.int32(0)))

      if chunk:
        owned = fori_loop(0, turns, turn, owned)
      # What a piece has no run for is filled in by the next piece.
      done = turns * chunk
      left = whole + bool(more) - done
      rest = vector.read_every(i, self.num_workers, offset, done, left)
      owned = lax.dynamic_update_slice(owned, rest, (first + done, jnp.int32(0)))
    return owned[: self.share // ALIGN].reshape(-1)

  def incoming(
    self, out: Outgoing, owned: _Owned, message: Callable[[jax.Array], jax.Array]
  ) -> Incoming:
    """What every worker adds to the update, and what becomes of this worker's memory."""
    positions = out.selection.positions

    def read(worker):
      slices = self.wire.decode(message(worker), self.returned, self.share)
      return self._position(slices.indices, worker), slices.values

    def settle(residuals, where, here):
      # Of what is sent exactly, nothing is left.
      zero, keep = self.wire.is_exact, here & owned.accepted
      same = zero and out.selection.values is out.selection.entries
      residuals = _scatter.put(residuals, where, positions, owned.kept, keep=keep, are_zero=same)

      keep = here & owned.is_first
      residuals = _scatter.put(residuals, where, owned.touched, owned.sums, keep=keep)
      return _scatter.put(residuals, where, owned.chosen, owned.rest, keep=here, are_zero=zero)

    sent = ((positions, owned.accepted), (owned.chosen, True))
    return Incoming(Contributions(self.num_workers, read), Sent(settle, sent))
