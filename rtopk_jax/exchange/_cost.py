"""The cost of an exchange, before there is one: links, workers, and what they make of a collective's statement.

A step's exchange takes what the worker computes and what its link carries, one after the other:

    seconds = overhead + compress·d + place·(entries placed) + Σ over collectives (messages·latency + bytes/bandwidth)

and where every worker owns 1/n of the vector (which it reads, adds to, chooses from and writes back) besides

    own·d/n + sort·(k + entries received)

Each collective states its own (``Collective.cost``). Bytes are those of ``rtopk_jax.wire_bytes``. Nothing here runs on a device.
"""

import dataclasses
from typing import NamedTuple

from rtopk_jax import _checks
from rtopk_jax._modes import Traffic

# Payload of a full Ethernet frame with IPv4 and TCP headers and a time stamp, to what the wire carries.
FRAMING = 1538 / 1448
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
    >>> traffic = rtopk_jax.Traffic.all_gather(125_000, num_workers=2)  # a million bits to the other
    >>> round(link.seconds(traffic), 6)
    0.0011
  """

  bandwidth: float | str
  latency: float = 1e-4
  framing: float = FRAMING

  def __post_init__(self):
    object.__setattr__(self, "bandwidth", parse_bandwidth(self.bandwidth))
    _checks.at_least("latency", self.latency, 0)
    _checks.at_least("framing", self.framing, 1)

  def seconds(self, traffic: Traffic) -> float:
    """The time of some traffic.

    Args:
      traffic: what collectives do to the link, one after another.

    Returns:
      Seconds.
    """
    return traffic.messages * self.latency + self.bits(traffic) / float(self.bandwidth)

  def bits(self, traffic: Traffic) -> float:
    """The bits on the wire of some traffic.

    Args:
      traffic: what collectives do to the link.

    Returns:
      Bits each way, headers included.
    """
    return 8 * self.framing * traffic.link


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


class Cost(NamedTuple):
  """What one exchange of a vector takes.

  Attributes:
    traffic: of a worker's link.
    local: seconds that the worker computes.

  Examples:
    >>> import rtopk_jax
    >>> speed = rtopk_jax.LocalSpeed()
    >>> cost = rtopk_jax.AllGather().cost(10**6, 10**3, 4, rtopk_jax.Wire(), speed)
    >>> cost.traffic.sent  # 1,000 values and indices, in whole tiles
    8192
    >>> cost.seconds(rtopk_jax.Link("1Gbit/s")) > cost.local
    True
  """

  traffic: Traffic
  local: float

  def seconds(self, link: Link) -> float:
    """Of both, one after the other.

    Args:
      link: of the worker.

    Returns:
      Seconds.
    """
    return link.seconds(self.traffic) + self.local


def dense_cost(d: int, num_workers: int, local: LocalSpeed) -> Cost:
  """What the dense exchange of a vector takes."""
  return Cost(Traffic.all_reduce(4 * d, num_workers), local.dense * d)


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
