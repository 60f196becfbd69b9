"""Whether to compress, and how: the cost model asked for every density and collective."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from rtopk_jax import _checks
from rtopk_jax.exchange import _cost, _names
from rtopk_jax.exchange._collective import Collective
from rtopk_jax.exchange._cost import Cost, Link, LocalSpeed
from rtopk_jax.wire import _wire
from rtopk_jax.wire._format import WireFormat

DENSITIES = (0.1, 0.01, 0.001)
# A compressed exchange that is not faster than the dense one by this factor is not worth its residuals.
_WORTH = 1.2
# A lower density has to gain this factor over a higher one, which loses less of each gradient.
_GAIN = 1.5


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The cost of one step's exchange.

  Attributes:
    collective: "dense", or that of the exchange as ``advise`` was given it: its name, or what it prints as.
    density: k/d; 1 for "dense".
    bytes: that a worker's link carries, each way, headers not counted.
    network: seconds on the link.
    local: seconds of the worker's own work.
    break_even: bits a second below which it is faster than the dense exchange; 0: never, infinity: always.
    pays_above: whether it is faster above ``break_even`` instead, sending more but computing less, or in fewer
      messages.
  """

  collective: str
  density: float
  bytes: int
  network: float
  local: float
  break_even: float
  pays_above: bool = False

  @property
  def seconds(self) -> float:
    """Seconds of the whole exchange."""
    return self.network + self.local

  def training(self, compute: float, batches: int, local_steps: int = 1) -> float:
    r"""How long a training takes that exchanges like this: :math:`b\,c + \lfloor b/H \rfloor\,T`.

    With b the batches of a worker, c the seconds of one, H the batches between two exchanges and T ``seconds``.
    What overlaps (``delay=1``) is not known to it, nor how many batches a loss takes.

    Args:
      compute: seconds of a worker's batch beside the exchange: gradient and optimizer.
      batches: of a worker, in the whole training.
      local_steps: H; 1 exchanges every gradient.

    Returns:
      Seconds.

    Raises:
      TypeError: for what are not numbers.
      ValueError: for a time below 0, or counts below 1.

    Examples:
      >>> import rtopk_jax
      >>> dense = rtopk_jax.advise(1e6, num_workers=4, bandwidth="100Mbit/s").dense
      >>> round(dense.seconds, 2)
      0.51
      >>> round(dense.training(compute=0.1, batches=1000)), round(dense.training(0.1, 1000, local_steps=30))
      (611, 117)
    """
    _checks.at_least("compute", compute, 0)
    _checks.at_least("batches", batches, 1, integer=True)
    _checks.at_least("local_steps", local_steps, 1, integer=True)
    return batches * compute + batches // local_steps * self.seconds

  @property
  def pays(self) -> str:
    """At which bandwidths it is faster than the dense exchange: a sentence without its subject."""
    if self.break_even == math.inf:
      return "pays at any bandwidth"
    if self.break_even == 0:
      return "pays at no bandwidth"
    return f"pays {'above' if self.pays_above else 'below'} {_rate(self.break_even)}"


@dataclasses.dataclass(frozen=True)
class Advice:
  """What an exchange would cost, and which one to take. Printed, it is a table and a sentence.

  ``advise`` makes it. Each exchange has ``collective``, ``density``, ``bytes`` (that a worker's link carries each
  way), ``seconds``, which are its ``network`` and ``local`` ones, ``break_even`` (bits a second) and ``pays``, a
  sentence about the bandwidths at which it is faster than the dense one. Its ``training(compute, batches,
  local_steps=1)`` says how many seconds a training takes that exchanges so; ``trainings`` is a table of them.

  Attributes:
    dense: the uncompressed exchange.
    estimates: the compressed ones, by density and collective.
    choice: the one to take; ``dense`` where compression does not pay.
    reason: a sentence.

  Examples:
    >>> import rtopk_jax
    >>> advice = rtopk_jax.advise(25.6e6, num_workers=16, bandwidth="1Gbit/s", densities=(0.001,))
    >>> [x.collective for x in advice.estimates]
    ['all_gather', 'reduce_scatter']
    >>> advice.choice in advice.estimates, advice.choice.seconds < advice.dense.seconds
    (True, True)
  """

  dense: Estimate
  estimates: tuple[Estimate, ...]
  choice: Estimate
  reason: str

  def trainings(self, compute: float, batches: int, local_steps: Sequence[int] = (1,)) -> str:
    """How long trainings take, by ``Estimate.training``.

    Args:
      compute: seconds of a worker's batch beside the exchange.
      batches: of a worker, in the whole training.
      local_steps: batches between two exchanges, a column each.

    Returns:
      A table, of every exchange and every number of batches between two.

    Raises:
      TypeError: for what are not numbers.
      ValueError: for a time below 0, or counts below 1.

    Examples:
      >>> import rtopk_jax
      >>> advice = rtopk_jax.advise(1e6, 4, "100Mbit/s", densities=(0.01,), collectives=("all_gather",))
      >>> print(advice.trainings(compute=0.1, batches=1000, local_steps=(1, 30)))
      exchange             k/d  every batch     every 30
      dense                           611 s        117 s
      all_gather           1 %        123 s        101 s
    """
    heads = ["every batch" if every == 1 else f"every {every}" for every in local_steps]
    lines = [f"{'exchange':{self._width}} {'k/d':>8}" + "".join(f" {head:>12}" for head in heads)]
    for x in (self.dense, *self.estimates):
      times = [_time(x.training(compute, batches, every)) for every in local_steps]
      lines.append(self._name(x) + "".join(f" {time:>12}" for time in times))
    return "\n".join(lines)

  @property
  def compress(self) -> bool:
    """Whether compression pays."""
    return self.choice != self.dense

  @property
  def _width(self) -> int:
    """Of the column that names exchanges."""
    return max(15, *(len(x.collective) for x in self.estimates))

  def _name(self, x: Estimate) -> str:
    """An exchange and its density, as a table's row begins."""
    density = "" if x == self.dense else f"{100 * x.density:g} %"
    return f"{x.collective:{self._width}} {density:>8}"

  def __str__(self) -> str:
    width = self._width
    lines = [
      f"{'exchange':{width}} {'k/d':>8} {'MB':>10} {'ms':>10} {'dense/this':>11} {'break-even':>13}"
    ]
    for x in (self.dense, *self.estimates):
      even = "" if x == self.dense else f"{'> ' if x.pays_above else ''}{_rate(x.break_even)}"
      lines.append(
        f"{self._name(x)} {x.bytes / 1e6:10.3f} {1e3 * x.seconds:10.2f} "
        f"{self.dense.seconds / x.seconds:11.2f} {even:>13}"
      )
    return "\n".join([*lines, "", self.reason])


def advise(
  params: float,
  num_workers: int,
  bandwidth: float | str,
  *,
  latency: float = 1e-4,
  densities: Sequence[float] | np.ndarray | jax.Array = DENSITIES,
  collectives: Sequence[str | Collective] = tuple(_names.NAMES),
  wire: str | WireFormat | None = None,
  local: LocalSpeed | None = None,
  compute: float | None = None,
) -> Advice:
  r"""Says what a step's exchange would take, dense and compressed, and which one to take.

  With B and l the link's bandwidth and latency, f = 1538/1448 bytes on it for each of payload (what Ethernet, IP
  and TCP add), :math:`w(k, d)` the bytes of a message, and o, c, p and a the ``overhead``, ``compress``, ``place``
  and ``dense`` of ``local``,

  .. math::
    T_\mathrm{dense} &= a d + 2(n-1)\, l + \frac{8f}{B}\, \frac{2(n-1)}n\, 4d \\
    T_\mathrm{all\_gather} &= o + c d + p\, n k + (n-1)\, l + \frac{8f}{B}\, (n-1)\, w(k, d) \\
    T_\mathrm{reduce\_scatter} &= o + c d + v\, \tfrac dn + s (k + e) + 2p (k + e) + 2(n-1)\, l
      + \frac{8f}{B}\, (n-1) \left(w\left(\tfrac en, \tfrac dn\right)
      + w\left(\tfrac kn, \tfrac dn\right)\right)

  where v and s are its ``own`` and ``sort``, an owner gets e = 3k/2 entries at most, and k/n and the like are
  rounded up as in the buffers. An exchange breaks even with the dense one at the B for which both T are equal. Of
  the densities, the highest is advised of those that no lower one beats by half. Nothing is run.

  Args:
    params: d, the number of parameters.
    num_workers: n.
    bandwidth: of a worker's link, bits a second or a string such as "1Gbit/s".
    latency: of a message, seconds.
    densities: k/d, those to choose from, numbers or an array of one axis.
    collectives: those to choose from, by name or as objects; each states its own bytes and its own cost.
    wire: the code of messages, as of ``sparse_exchange``; None is ``Wire()``.
    local: how fast a worker compresses; None is ``LocalSpeed()``, two CPU cores. ``measure_local`` finds out,
      ``LocalSpeed.of_memory`` guesses.
    compute: seconds that a step takes beside its exchange; where the dense exchange is under a tenth of it,
      compression is not advised. None: not known.

  Returns:
    The ``Advice``.

  Raises:
    TypeError: for arguments that are not numbers, or a collective that does not state what it costs.
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
  size = _checks.whole("params", params)
  _checks.at_least("num_workers", num_workers, 1, integer=True)
  link = Link(bandwidth, latency)
  code, local = _wire.resolve(wire), _cost.local_speed(local)
  ordered = sorted(set(_several(densities)), reverse=True)
  if isinstance(collectives, str) or not isinstance(collectives, Iterable):
    raise TypeError(
      f"collectives must be several, such as {tuple(_names.NAMES)}, got {collectives!r}; one alone is a tuple too."
    )
  chosen = [(_label(x), _names.resolve(x, "collectives")) for x in collectives]
  if not chosen:
    raise ValueError("collectives must name at least one, got none.")
  if compute is not None:
    _checks.at_least("compute", compute, 0)

  plain = _cost.dense_cost(size, num_workers, local)
  dense = _estimate("dense", 1.0, plain, plain, link)
  estimates = []
  for density in ordered:
    k = max(1, round(density * size))
    for label, collective in chosen:
      cost = collective.cost(size, k, num_workers, code, local)
      estimates.append(_estimate(label, density, cost, plain, link))
  choice, reason = _choose(dense, tuple(estimates), compute)
  return Advice(dense, tuple(estimates), choice, reason)


def _label(collective: Any) -> str:
  return collective if isinstance(collective, str) else repr(collective)


def _several(densities: Any) -> list[float]:
  if isinstance(densities, np.ndarray | jax.Array):
    densities = np.asarray(densities).tolist()
  if isinstance(densities, str) or not isinstance(densities, Iterable):
    raise TypeError(
      f"densities must be several numbers, such as {DENSITIES}, got {densities!r}; one alone is a tuple "
      "too, such as (0.01,)."
    )
  densities = list(densities)
  if not densities:
    raise ValueError(f"densities must name at least one, such as {DENSITIES}, got none.")
  for density in densities:
    _checks.density("densities", density)
  return densities


def _estimate(label: str, density: float, cost: Cost, dense: Cost, link: Link) -> Estimate:
  """What an exchange takes, and from where on it takes less than the dense one."""
  traffic = cost.traffic
  fixed = cost.local - dense.local + (traffic.messages - dense.traffic.messages) * link.latency
  saved = link.bits(dense.traffic) - link.bits(traffic)
  # What the link saves outweighs a fixed cost below a bandwidth; a fixed saving outweighs what the link has more
  # above one.
  nowhere_even = math.inf if saved > 0 or fixed < 0 else 0.0
  break_even = saved / fixed if saved * fixed > 0 else nowhere_even
  size, network = round(traffic.link), link.seconds(traffic)
  return Estimate(label, density, size, network, cost.local, break_even, saved < 0 and fixed < 0)


def _choose(
  dense: Estimate, estimates: tuple[Estimate, ...], compute: float | None
) -> tuple[Estimate, str]:
  if not dense.bytes:
    return dense, "Don't compress: one worker has nobody to exchange with."
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
    f"{takes}, {dense.seconds / choice.seconds:.1f} times as long. It {choice.pays}."
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
