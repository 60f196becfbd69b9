"""The collectives by name, and the two that are made of others: over two kinds of links, and chosen by cost."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rtopk_jax import _axis, _checks, _modes
from rtopk_jax._axis import AxisName
from rtopk_jax.exchange import _cost
from rtopk_jax.exchange._collective import AllGather, Collective
from rtopk_jax.exchange._reduce_scatter import ReduceScatter
from rtopk_jax.wire._wire import Wire

_log = logging.getLogger("rtopk_jax")


@dataclasses.dataclass(frozen=True)
class Hierarchical(Collective):
  r"""A dense mean over a fast axis, then the sparse exchange over the slow ones.

  With :math:`g_{ij}` the gradient of the j-th of m workers that share a fast link, and the exchange's own rule for
  the n groups of them,

  .. math::
    g_i = \frac1m \sum_{j=1}^m g_{ij}, \qquad \mathrm{update} = \frac1n \sum_{i=1}^n C(v_i), \qquad
    v_i \ \text{from}\ g_i.

  Workers that share a fast link, such as the chips of a slice or the GPUs of a host, are one worker to the
  compression: they start from the mean of their gradients, have one memory between them, of which each
  holds a copy, and send one message, each a part of it, so that nothing crosses the slow link twice.
  ``axis_name`` of the exchange is a tuple that has ``inner_axis`` in it; n counts the members of the other axes.

  Args:
    inner_axis: the fast axis, or several.
    outer: how messages travel over the slow ones.

  Raises:
    TypeError: for an axis that cannot be one, or an ``outer`` that is not a collective.
    ValueError: for an axis named twice; in ``sparse_exchange`` when its axes are not more than these.

  Examples:
    >>> import rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.rtop_k(0.01), ("slice", "chip"), collective=rtopk_jax.Hierarchical("chip")
    ... )
  """

  inner_axis: AxisName
  outer: Collective = dataclasses.field(default_factory=AllGather)

  def __post_init__(self):
    _checks.axis_name(self.inner_axis, "inner_axis")
    if not isinstance(self.outer, Collective) or isinstance(self.outer, Hierarchical):
      raise TypeError(f"outer must be AllGather(), ReduceScatter() or Auto(…), got {self.outer!r}.")

  def suited(self, axis_name, average, wire, memory):
    """As ``Collective.suited``."""
    inner, every = _axis.names(self.inner_axis), _axis.names(axis_name)
    if not set(inner) < set(every):
      raise ValueError(
        f"inner_axis={self.inner_axis!r} must be some but not all of the axes of axis_name={axis_name!r}."
      )
    outer = self.outer.suited(self.workers(axis_name), average, wire, memory)
    return dataclasses.replace(self, outer=outer)

  def workers(self, axis_name: AxisName) -> AxisName:
    """As ``Collective.workers``."""
    inner = _axis.names(self.inner_axis)
    outer = tuple(name for name in _axis.names(axis_name) if name not in inner)
    return outer[0] if len(outer) == 1 else outer

  def prepare(self, updates: Any, axis_name: AxisName) -> tuple[Any, int]:
    """As ``Collective.prepare``."""
    return _axis.sum_over(updates, self.inner_axis)

  def with_absence(self):
    """As ``Collective.with_absence``."""
    return dataclasses.replace(self, outer=self.outer.with_absence())

  def exchange(self, outgoing, header, wire, axis_name):
    """As ``Collective.exchange``."""
    with _axis.in_parts(self.inner_axis):
      return self.outer.exchange(outgoing, header, wire, axis_name)


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
    choices: what to choose from.
    local: how fast a worker compresses; None is ``LocalSpeed()``, two CPU cores. ``measure_local`` finds out.

  Raises:
    TypeError: when ``choices`` are not ``AllGather`` or ``ReduceScatter``, or ``local`` is no ``LocalSpeed``.
    ValueError: for a bandwidth that is none, or no choices.

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
  choices: Sequence[Collective] = dataclasses.field(
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
    object.__setattr__(self, "choices", tuple(self.choices))
    if not self.choices:
      raise ValueError("choices must not be empty.")
    for choice in self.choices:
      if not isinstance(choice, AllGather | ReduceScatter):
        raise TypeError(f"choices must be AllGather() or ReduceScatter(…), got {choice!r}.")

  def _of(self, serving: Callable[[Collective], Collective]) -> "Auto":
    """The same with the choices that can serve something, as they do; refused where none can."""
    suited, refusals = [], []
    for choice in self.choices:
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

  def choose(self, d: int, k: int, num_workers: int, wire: Wire) -> Collective:
    """The fastest of the choices.

    Args:
      d: entries of the vector.
      k: entries that a worker sends.
      num_workers: n.
      wire: the code of messages.

    Returns:
      One of ``choices``.

    Raises:
      TypeError: for sizes that are not integers.
      ValueError: for sizes below 1, and k above d.
    """
    for name, value in (("d", d), ("k", k), ("num_workers", num_workers)):
      _checks.at_least(name, value, 1, integer=True)
    _checks.at_most("k", k, d, "the entries of the vector")
    link = _cost.Link(self.bandwidth, self.latency)

    def seconds(choice: Collective) -> float:
      sizes = d, k, num_workers, link, wire, self.local
      if isinstance(choice, ReduceScatter):
        return _cost.exchange_time("reduce_scatter", *sizes, slack=choice.slack)
      return _cost.exchange_time("all_gather", *sizes)

    return min(self.choices, key=seconds)

  def exchange(self, outgoing, header, wire, axis_name):
    """As ``Collective.exchange``."""
    d, k = sum(out.vector.size for out in outgoing), sum(out.values.size for out in outgoing)
    n = _axis.size(axis_name)
    # The model knows no indices of blocks, which are about as long as Elias-Fano's.
    known = dataclasses.replace(wire, indices="elias_fano") if wire.indices == "block" else wire
    choice = self.choose(d, k, n, known)
    dry = _modes.measurement()
    if dry is not None:
      dry.choices.append(choice)
    _log.info("%s: %r for %d of %d entries and %d workers", self, choice, k, d, n)
    return choice.exchange(outgoing, header, wire, axis_name)


_NAMES = {"all_gather": AllGather, "reduce_scatter": ReduceScatter}


def resolve(collective: Any) -> Collective:
  """The collective that a name or an object stands for."""
  if isinstance(collective, str):
    _checks.one_of("collective", collective, _NAMES)
    return _NAMES[collective]()
  if not isinstance(collective, Collective):
    raise TypeError(
      "collective must be a name or a rtopk_jax.AllGather, ReduceScatter, Hierarchical or Auto, got "
      f"{collective!r}."
    )
  return collective
