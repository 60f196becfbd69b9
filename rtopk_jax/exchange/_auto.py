"""A collective that is chosen by cost, out of several."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from rtopk_jax import _axis, _checks, _modes
from rtopk_jax.exchange import _cost
from rtopk_jax.exchange._all_gather import AllGather
from rtopk_jax.exchange._collective import Collective
from rtopk_jax.exchange._names import resolve
from rtopk_jax.exchange._reduce_scatter import ReduceScatter
from rtopk_jax.wire import _wire
from rtopk_jax.wire._format import WireFormat

_log = logging.getLogger("rtopk_jax")


@dataclasses.dataclass(frozen=True)
class Auto(Collective):
  r"""The collective that the cost model expects to be fastest, for the workers that there are.

  With :math:`T_j(d, k, n)` the seconds that ``rtopk_jax.advise`` expects of collective j, for k of d entries
  of each of n workers, it is :math:`\arg\min_j T_j(d, k, n)` over the choices that can serve the other options
  of the exchange and, where ``update`` is given ``present=``, workers that are absent; the first of equals.

  It is chosen when a step is traced, by sizes alone, so that all workers choose the same.
  ``rtopk_jax.chosen_collectives`` tells which one an exchange takes, and ``choose`` which one it would. It also
  goes to the log of ``rtopk_jax``, at level INFO.

  Args:
    bandwidth: of each worker's link, bits a second, or a string such as "1Gbit/s".
    latency: seconds from the start of a message to the arrival of its first byte.
    choices: what to choose from, collectives or their names; each has to state what it costs.
    local: how fast a worker compresses; None is ``LocalSpeed()``, two CPU cores. ``measure_local`` finds out.

  Raises:
    TypeError: when ``choices`` are not collectives, or one of them does not say what it costs, or ``local`` is no
      ``LocalSpeed``.
    ValueError: for a bandwidth that is none, no choices, or one that makes one worker of several: their memory
      would depend on it.

  Examples:
    >>> import rtopk_jax
    >>> auto = rtopk_jax.Auto(bandwidth="1Gbit/s")
    >>> auto.choose(d=25_600_000, k=25_600, num_workers=2, wire=rtopk_jax.Wire())
    AllGather()
    >>> auto.choose(d=25_600_000, k=25_600, num_workers=256, wire=rtopk_jax.Wire())
    ReduceScatter(slack=0.5)
  """

  bandwidth: float | str
  latency: float = 1e-4
  choices: Sequence[str | Collective] = dataclasses.field(
    default_factory=lambda: (AllGather(), ReduceScatter())
  )
  local: _cost.LocalSpeed | None = None

  def __post_init__(self):
    _cost.Link(self.bandwidth, self.latency)
    _cost.local_speed(self.local)
    if isinstance(self.choices, str) or not isinstance(self.choices, Iterable):
      raise TypeError(
        "choices must be several, such as (AllGather(), ReduceScatter()), got "
        f"{self.choices!r}; one alone is a tuple too, such as (AllGather(),)."
      )
    # A list could not be hashed.
    object.__setattr__(self, "choices", tuple(resolve(x, "choices") for x in self.choices))
    if not self.choices:
      raise ValueError("choices must not be empty.")
    for choice in self._choices:
      if not choice.each_is_a_worker:
        raise ValueError(
          f"choices={choice!r} makes one worker of several, and the memory would depend on what is chosen. Put Auto "
          "inside it, as in Hierarchical(inner_axis, outer=Auto(…))."
        )
      if not choice.states_cost:
        raise TypeError(
          f"choices must say what they cost, and {choice!r} does not: it has to write traffic(size, num_workers), "
          "or cost."
        )

  @property
  def _choices(self) -> tuple[Collective, ...]:
    """``choices``, in which there are no names any more."""
    return cast(tuple[Collective, ...], self.choices)

  def _of(self, serving: Callable[[Collective], Collective]) -> "Auto":
    """The same with the choices that can serve something, as they do; refused where none can."""
    suited, refusals = [], []
    for choice in self._choices:
      try:
        suited.append(serving(choice))
      except ValueError as error:
        refusals.append(error)
    if not suited:
      raise refusals[0]
    return dataclasses.replace(self, choices=tuple(suited))

  def suited(self, axis_name, average, wire, memory):
    """As ``Collective.suited``."""
    return self._of(lambda choice: choice.suited(axis_name, average, wire, memory))

  def with_absence(self):
    """As ``Collective.with_absence``."""
    return self._of(lambda choice: choice.with_absence())

  def cost(self, d, k, num_workers, wire, local):
    """As ``Collective.cost``: of what it chooses."""
    return self.choose(d, k, num_workers, wire).cost(d, k, num_workers, wire, local)

  def fastest(self, d, k, num_workers, wire):
    """As ``Collective.fastest``."""
    return self.choose(d, k, num_workers, wire)

  def choose(
    self, d: int, k: int, num_workers: int, wire: str | WireFormat | None = None
  ) -> Collective:
    """The fastest of the choices.

    Args:
      d: entries of the vector.
      k: entries that a worker sends.
      num_workers: n.
      wire: the code of messages, as of ``sparse_exchange``.

    Returns:
      One of ``choices``.

    Raises:
      TypeError: for sizes that are not integers.
      ValueError: for sizes below 1, and k above d.
    """
    for name, value in (("d", d), ("k", k), ("num_workers", num_workers)):
      _checks.at_least(name, value, 1, integer=True)
    _checks.at_most("k", k, d, "the entries of the vector")
    code, local = _wire.resolve(wire), _cost.local_speed(self.local)
    link = _cost.Link(self.bandwidth, self.latency)
    seconds = lambda choice: choice.cost(d, k, num_workers, code, local).seconds(link)
    return min(self._choices, key=seconds).fastest(d, k, num_workers, code)

  def with_delay(self):
    """As ``Collective.with_delay``."""
    return self._of(lambda choice: choice.with_delay())

  def settled_for(self, outgoing, wire, axis_name):
    """As ``Collective.settled_for``."""
    d, k = sum(out.vector.size for out in outgoing), sum(out.count for out in outgoing)
    n = _axis.size(axis_name)
    choice = self.choose(d, k, n, outgoing[0].code(wire))
    dry = _modes.measurement()
    if dry is not None:
      dry.choices.append(choice)
    _log.info("%s: %r for %d of %d entries and %d workers", self, choice, k, d, n)
    return choice

  def exchange(self, outgoing, header, wire, axis_name):
    """As ``Collective.exchange``."""
    chosen = self.settled_for(outgoing, wire, axis_name)
    return chosen.exchange(outgoing, header, wire, axis_name)
