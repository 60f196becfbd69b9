"""The cost of an exchange, before there is one: when compression pays, and which collective.

A step's exchange takes what the worker computes and what its link carries, one after the other:

    seconds = overhead + compress·d + place·(entries placed) + Σ over collectives (messages·latency + bytes/bandwidth)

and where every worker owns 1/n of the vector (which it reads, adds to, chooses from and writes back) besides

    own·d/n + sort·(k + entries received)

Bytes are those of ``rtopk_jax.wire_bytes``. Nothing here runs on a device.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import NamedTuple

from rtopk_jax import _checks
from rtopk_jax.wire._wire import Wire

# Words in front of every worker's message; a gathered message is a whole number of tiles.
_HEADER, _TILE = 3, 128
# Coordinates that a ``ReduceScatter`` deals at a time.
_RUN = 32
# Payload of a full Ethernet frame with IPv4 and TCP headers and a time stamp, to what the wire carries.
FRAMING = 1538 / 1448
COLLECTIVES = ("all_gather", "reduce_scatter")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclasses.dataclass(frozen=True)
class Link:
  r"""What a worker's network interface carries, each way at once.

  A collective of m messages one after another, b bytes in all, takes :math:`m l + 8 f b / B` seconds, with B the
  bandwidth, l the latency and f the framing.

  Args:
    bandwidth: bits a second, or a string such as "1Gbit/s", which is kept as the number it stands for.
    latency: seconds from the start of a message to the arrival of its first byte.
    framing: bytes on the wire to bytes of payload.

  Raises:
    TypeError: for a bandwidth that is neither a number nor a string, or others that are not numbers.
    ValueError: for a bandwidth that is not above 0, a latency below 0 or a framing below 1.

  Examples:
    >>> import rtopk_jax
    >>> link = rtopk_jax.Link("1Gbit/s", latency=1e-4, framing=1.0)
    >>> link.bandwidth
    1000000000.0
    >>> seconds = link.seconds([("all_gather", 125_000)], num_workers=2)  # a million bits to the other
    >>> round(seconds, 6)
    0.0011
  """

  bandwidth: float | str
  latency: float = 1e-4
  framing: float = FRAMING

  def __post_init__(self):
    object.__setattr__(self, "bandwidth", parse_bandwidth(self.bandwidth))
    _checks.at_least("latency", self.latency, 0)
    _checks.at_least("framing", self.framing, 1)

  def seconds(self, operands: Iterable[tuple[str, int]], num_workers: int) -> float:
    """The time of some collectives, one after another.

    Args:
      operands: the name of each, "all_gather", "psum" or "all_to_all", and the bytes that a worker hands to it.
      num_workers: n.

    Returns:
      Seconds.

    Raises:
      ValueError: for a collective of another name.
    """
    traffic = total_traffic(operands, num_workers)
    return traffic.messages * self.latency + self.bits(traffic) / float(self.bandwidth)

  def bits(self, traffic: "Traffic") -> float:
    """The bits on the wire of some traffic.

    Args:
      traffic: what collectives do to the link.

    Returns:
      Bits each way, headers included.
    """
    return 8 * self.framing * traffic.bytes


@dataclasses.dataclass(frozen=True)
class LocalSpeed:
  """How fast a worker computes its share of an exchange; ``measure_local`` finds out.

  Args:
    compress: seconds an entry of the vector: clip, memory, selection, code and the sum's zeros.
    place: seconds an entry that is decoded and added to a vector, or written into one.
    dense: seconds an entry of the vector that the dense exchange takes beside its collective.
    overhead: seconds that compressing takes whatever the size, such as for starting kernels.
    own: seconds an entry that a worker owns in a ``ReduceScatter``: reading it, which is from all over the
      vector, adding up, choosing, and writing down what is left.
    sort: seconds an entry that is sorted there, by its owner or by its place.

  Raises:
    TypeError: for a time that is not a number.
    ValueError: for a time below 0.

  Examples:
    >>> import rtopk_jax
    >>> local = rtopk_jax.LocalSpeed(compress=2e-9, place=1e-8)
    >>> rtopk_jax.advise(25.6e6, 16, "100Mbit/s", local=local).compress
    True
  """

  compress: float = 1.5e-9
  place: float = 8e-9
  dense: float = 1e-9
  overhead: float = 0.0
  own: float = 4e-9
  sort: float = 5e-8

  def __post_init__(self):
    for field in dataclasses.fields(self):
      _checks.at_least(field.name, getattr(self, field.name), 0)

  @classmethod
  def of_memory(cls, bandwidth: float) -> "LocalSpeed":
    """An estimate for a device that is not at hand, from its memory's bandwidth alone.

    Args:
      bandwidth: bytes a second.

    Returns:
      The times of a device that moves 10 numbers of 4 bytes an entry to compress, 8 to own one and 3 to
      average densely, waits for a transaction of 64 bytes to place an entry, moves 8 bytes an entry there and
      back 8 times to sort, and starts kernels for 1 ms.

    Raises:
      TypeError: when the bandwidth is not a number.
      ValueError: when it is not above 0.

    Examples:
      >>> import rtopk_jax
      >>> local = rtopk_jax.LocalSpeed.of_memory(3.2e12)
      >>> 0 < local.dense < local.compress < local.place
      True
    """
    _checks.above_zero("bandwidth", bandwidth, "bytes a second")
    moved = {"compress": 40, "place": 64, "dense": 12, "own": 32, "sort": 128}
    return cls(**{name: size / bandwidth for name, size in moved.items()}, overhead=1e-3)


def local_speed(local: LocalSpeed | None) -> LocalSpeed:
  """What is known of a worker's speed; None stands for two CPU cores, and anything else is refused."""
  if local is None:
    return LocalSpeed()
  if not isinstance(local, LocalSpeed):
    raise TypeError(f"local must be a rtopk_jax.LocalSpeed, or None, got {local!r}.")
  return local


class Traffic(NamedTuple):
  """What one collective does to a worker's link: messages one after another, bytes each way."""

  messages: int
  bytes: float


def traffic_of(collective: str, operand: int, num_workers: int) -> Traffic:
  """The traffic of a collective that runs as a ring, or pair by pair.

  Args:
    collective: "all_gather", "psum" or "all_to_all".
    operand: bytes that a worker hands to it.
    num_workers: n.

  Returns:
    The ``Traffic`` of one worker: :math:`(n-1)` messages of m bytes for an all-gather, twice as many of
    m/n for a sum, :math:`n-1` of m/n for an all-to-all.
  """
  others = num_workers - 1
  share = operand * others / num_workers
  known = {
    "all_gather": Traffic(others, float(operand * others)),
    "psum": Traffic(2 * others, 2 * share),
    "all_to_all": Traffic(others, share),
  }
  _checks.one_of("collective", collective, known)
  return known[collective]


def total_traffic(operands: Iterable[tuple[str, int]], num_workers: int) -> Traffic:
  """The traffic of some collectives, one after another."""
  parts = [traffic_of(*operand, num_workers) for operand in operands]
  return Traffic(sum(x.messages for x in parts), sum(x.bytes for x in parts))


def operands(
  collective: str, d: int, k: int, num_workers: int, wire: Wire, slack: float = 0.5
) -> list[tuple[str, int]]:
  """The collectives of one exchange of a vector, and the bytes a worker hands to each.

  Args:
    collective: "dense", "all_gather" or "reduce_scatter".
    d: entries of the vector.
    k: entries that a worker sends.
    num_workers: n.
    wire: the code of messages.
    slack: of a ``ReduceScatter``.

  Returns:
    A list of (name, bytes).
  """
  if collective == "dense":
    return [("psum", 4 * d)]
  _checks.one_of("collective", collective, ("dense", *COLLECTIVES))
  gathered = lambda k, d: 4 * _TILE * -(-(_HEADER + wire.words(k, d)) // _TILE)
  if collective == "all_gather":
    return [("all_gather", gathered(k, _RUN * -(-d // _RUN)))]
  owned, capacity = _owner(d, k, num_workers, slack)
  # An index past the last coordinate stands for an empty place.
  row = wire.words(capacity, owned + capacity)
  return [
    ("all_to_all", 4 * num_workers * row),
    ("all_gather", gathered(min(owned, -(-k // num_workers)), owned)),
  ]


def _owner(d: int, k: int, num_workers: int, slack: float) -> tuple[int, int]:
  """Coordinates of an owner, and entries that a worker may send to it."""
  owned = _RUN * -(-d // (_RUN * num_workers))
  return owned, min(k, owned, math.ceil((1 + slack) * k / num_workers))


def exchange_time(
  collective: str,
  d: int,
  k: int,
  num_workers: int,
  link: Link,
  wire: Wire,
  local: LocalSpeed | None = None,
  slack: float = 0.5,
) -> float:
  """Seconds of one exchange of a vector, from local gradients to their mean.

  Args:
    collective: "dense", "all_gather" or "reduce_scatter".
    d: entries of the vector.
    k: entries that a worker sends; of no matter to "dense".
    num_workers: n.
    link: what each worker's interface carries.
    wire: the code of messages.
    local: how fast a worker computes; None is ``LocalSpeed()``.
    slack: of a ``ReduceScatter``.

  Returns:
    Seconds.
  """
  local = local_speed(local)
  network = link.seconds(operands(collective, d, k, num_workers, wire, slack), num_workers)
  return network + local_time(collective, d, k, num_workers, local, slack)


def local_time(
  collective: str, d: int, k: int, num_workers: int, local: LocalSpeed, slack: float = 0.5
) -> float:
  """Seconds of one exchange that the worker computes; arguments as of ``exchange_time``."""
  if collective == "dense":
    return local.dense * d
  alone = local.overhead + local.compress * d
  if collective == "all_gather":
    return alone + local.place * num_workers * k
  received = num_workers * _owner(d, k, num_workers, slack)[1]
  # What an owner gets goes into its sums and its memory; what rounding left of a worker's entries
  # goes into that worker's, and the sums that are sent on go into the update.
  placed = local.place * 2 * (received + k)
  return alone + local.own * d / num_workers + local.sort * (k + received) + placed


def parse_bandwidth(value: float | str, name: str = "bandwidth") -> float:
  """Bits a second from a number of them or from a string with a unit.

  Args:
    value: such as 1e9, "1Gbit/s", "100 Mbps" or "12.5MB/s".
    name: of the argument, for errors.

  Returns:
    Bits a second.

  Raises:
    TypeError: for what is neither a number nor a string.
    ValueError: for a string that is no bandwidth, or one that is not above 0.

  Examples:
    >>> from rtopk_jax.exchange._cost import parse_bandwidth
    >>> parse_bandwidth("100Mbit/s"), parse_bandwidth("2 GB/s"), parse_bandwidth(5e8)
    (100000000.0, 16000000000.0, 500000000.0)
  """
  bits = _parse_string(value, name) if isinstance(value, str) else value
  _checks.above_zero(name, bits, "bits a second")
  return float(bits)


def _parse_string(text: str, name: str) -> float:
  compact = text.replace(" ", "")
  number = compact.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/")
  unit = compact[len(number) :]
  for ending, factor in (("bit/s", 1), ("bps", 1), ("bit", 1), ("B/s", 8), ("", 1)):
    prefix = unit[: len(unit) - len(ending)].lower()
    if unit.endswith(ending) and prefix in _UNITS:
      try:
        return float(number) * _UNITS[prefix] * factor
      except ValueError:
        break
  raise ValueError(
    f"{name} must be bits a second, as a number or like '1Gbit/s', '100Mbps' or '2GB/s', got {text!r}."
  )
