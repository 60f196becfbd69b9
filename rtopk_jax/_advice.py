"""Whether to compress, and how: the cost model asked for every density and collective."""

import dataclasses
import math
from collections.abc import Sequence

from rtopk_jax import _checks, _plan
from rtopk_jax._plan import Link, LocalSpeed
from rtopk_jax._wire import Wire

DENSITIES = (0.1, 0.01, 0.001)
# A compressed exchange that is not faster than the dense one by this factor is not worth its residuals.
_WORTH = 1.2
# A lower density has to gain this factor over a higher one, which loses less of each gradient.
_GAIN = 1.5


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The cost of one step's exchange.

  Attributes:
    collective: "dense", "all_gather" or "reduce_scatter".
    density: k/d; 1 for "dense".
    bytes: that a worker's link carries, each way, headers not counted.
    network: seconds on the link.
    local: seconds of the worker's own work.
    break_even: bits a second below which it is faster than the dense exchange; 0: never, infinity: always.
  """

  collective: str
  density: float
  bytes: int
  network: float
  local: float
  break_even: float

  @property
  def seconds(self) -> float:
    """Of the whole exchange."""
    return self.network + self.local


@dataclasses.dataclass(frozen=True)
class Advice:
  """What an exchange would cost, and which one to take. Printed, it is a table and a sentence.

  Attributes:
    dense: the uncompressed exchange.
    estimates: the compressed ones, by density and collective.
    choice: the one to take; ``dense`` where compression does not pay.
    reason: a sentence.
  """

  dense: Estimate
  estimates: tuple[Estimate, ...]
  choice: Estimate
  reason: str

  @property
  def compress(self) -> bool:
    """Whether compression pays."""
    return self.choice != self.dense

  def __str__(self) -> str:
    lines = [
      f"{'exchange':15} {'k/d':>8} {'MB':>10} {'ms':>10} {'dense/this':>11} {'break-even':>13}"
    ]
    for x in (self.dense, *self.estimates):
      density = "" if x == self.dense else f"{100 * x.density:g} %"
      even = "" if x == self.dense else _rate(x.break_even)
      lines.append(
        f"{x.collective:15} {density:>8} {x.bytes / 1e6:10.3f} {1e3 * x.seconds:10.2f} "
        f"{self.dense.seconds / x.seconds:11.2f} {even:>13}"
      )
    return "\n".join([*lines, "", self.reason])


def advise(
  params: float,
  num_workers: int,
  bandwidth: float | str,
  *,
  latency: float = 1e-4,
  densities: Sequence[float] = DENSITIES,
  wire: Wire | None = None,
  local: LocalSpeed | None = None,
  compute: float | None = None,
) -> Advice:
  r"""Says what a step's exchange would take, dense and compressed, and which one to take.

  With c and p the seconds of ``local`` an entry compressed and placed, :math:`m_j` the messages and
  :math:`b_j` the bytes of collective j, B the bandwidth and l the latency,

  .. math::
    T = o + c\, d + p\, n k + \sum_j \left(m_j l + \frac{b_j}{B}\right)

  of an all-gather, o being the overhead. Owners take w d/n and sorts besides, w seconds an entry owned.
  An exchange breaks even with the dense one at the B for which both T are equal. Of the densities, the
  highest is advised of those that no lower one beats by half. Nothing is run.

  Args:
    params: d, the number of parameters.
    num_workers: n.
    bandwidth: of a worker's link, bits a second or a string such as "1Gbit/s".
    latency: of a message, seconds.
    densities: k/d, those to choose from.
    wire: the code of messages; None is ``Wire()``.
    local: how fast a worker compresses; None is ``LocalSpeed()``, two CPU cores. ``measure_local`` finds out,
      ``LocalSpeed.of_memory`` guesses.
    compute: seconds that a step takes beside its exchange; where the dense exchange is under a tenth of it,
      compression is not advised. None: not known.

  Returns:
    The ``Advice``.

  Raises:
    TypeError: for arguments that are not numbers.
    ValueError: for arguments out of range.

  Examples:
    >>> import rtopk_jax
    >>> advice = rtopk_jax.advise(25.6e6, num_workers=16, bandwidth="1Gbit/s")
    >>> advice.compress, advice.choice.density
    (True, 0.001)
    >>> fast = rtopk_jax.advise(25.6e6, num_workers=16, bandwidth="400Gbit/s")
    >>> print(fast.reason)
    Don't compress: the dense exchange takes 32.7 ms and no compressed one is 1.2 times as fast.
  """
  size = _size(params)
  _checks.at_least("num_workers", num_workers, 1, integer=True)
  link = Link(_plan.parse_bandwidth(bandwidth), latency)
  wire = Wire() if wire is None else wire
  local = LocalSpeed() if local is None else local
  if not isinstance(wire, Wire):
    raise TypeError(f"wire must be a rtopk_jax.Wire, got {wire!r}.")
  if not isinstance(local, LocalSpeed):
    raise TypeError(f"local must be a rtopk_jax.LocalSpeed, got {local!r}.")
  if not densities:
    raise ValueError("densities must name at least one.")
  for density in densities:
    _checks.density("densities", density)
  if compute is not None:
    _checks.at_least("compute", compute, 0)

  estimate = lambda collective, density: _estimate(
    collective, density, size, num_workers, link, wire, local
  )
  dense = estimate("dense", 1.0)
  ordered = sorted(set(densities), reverse=True)
  estimates = tuple(
    estimate(collective, density) for density in ordered for collective in _plan.COLLECTIVES
  )
  choice, reason = _choose(dense, estimates, compute)
  return Advice(dense, estimates, choice, reason)


def _size(params: float) -> int:
  _checks.at_least("params", params, 1)
  if params != int(params):
    raise ValueError(f"params must be a whole number of parameters, got {params!r}.")
  return int(params)


def _estimate(
  collective: str, density: float, d: int, n: int, link: Link, wire: Wire, local: LocalSpeed
) -> Estimate:
  k = max(1, round(density * d))

  def parts(collective):
    """Traffic, and seconds that the worker computes."""
    traffic = _plan.total_traffic(_plan.operands(collective, d, k, n, wire), n)
    return traffic, _plan.local_time(collective, d, k, n, local)

  (traffic, own), (dense_traffic, dense_own) = parts(collective), parts("dense")
  fixed = own - dense_own + (traffic.messages - dense_traffic.messages) * link.latency
  saved = link.bits(dense_traffic) - link.bits(traffic)
  break_even = 0.0 if saved <= 0 else math.inf if fixed <= 0 else saved / fixed
  network = traffic.messages * link.latency + link.bits(traffic) / link.bandwidth
  return Estimate(collective, density, round(traffic.bytes), network, own, break_even)


def _choose(
  dense: Estimate, estimates: tuple[Estimate, ...], compute: float | None
) -> tuple[Estimate, str]:
  takes = f"the dense exchange takes {_time(dense.seconds)}"
  if compute is not None and dense.seconds < 0.1 * compute:
    return dense, f"Don't compress: {takes}, under a tenth of the {_time(compute)} of a step."
  if min(x.seconds for x in estimates) * _WORTH > dense.seconds:
    return dense, f"Don't compress: {takes} and no compressed one is {_WORTH} times as fast."
  # From the highest density on, so that of equals the one that loses less is taken.
  choice = estimates[0]
  for x in estimates[1:]:
    if x.seconds * (_GAIN if x.density < choice.density else 1) < choice.seconds:
      choice = x
  return choice, (
    f"Compress: {choice.collective} at k/d = {100 * choice.density:g} % takes {_time(choice.seconds)}, "
    f"{takes}, {dense.seconds / choice.seconds:.1f} times as long. "
    + (
      f"It breaks even at {_rate(choice.break_even)}."
      if choice.break_even < math.inf
      else "It pays at any bandwidth."
    )
  )


def _time(seconds: float) -> str:
  return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _rate(bandwidth: float) -> str:
  if bandwidth in (0, math.inf):
    return "never" if bandwidth == 0 else "always"
  for factor, unit in ((1e9, "Gbit/s"), (1e6, "Mbit/s")):
    if bandwidth >= factor:
      return f"{bandwidth / factor:.3g} {unit}"
  return f"{bandwidth / 1e3:.3g} kbit/s"
