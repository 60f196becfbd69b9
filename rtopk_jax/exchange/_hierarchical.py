"""A collective over two kinds of links."""

import dataclasses
from typing import Any, cast

from rtopk_jax import _axis, _checks
from rtopk_jax._axis import AxisName
from rtopk_jax.exchange._all_gather import AllGather
from rtopk_jax.exchange._collective import Collective
from rtopk_jax.exchange._names import resolve


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

  With ``averaged=True`` the members of ``inner_axis`` come with :math:`g_i` already, as where the compiler spreads a
  worker's batch over them, and no mean is taken. ``axis_name`` then names the workers' axes alone; where ``inner_axis``
  is not mapped, as in a simulation of whole workers, a message goes out in one piece.

  Args:
    inner_axis: the fast axis, or several.
    outer: how messages travel over the slow ones, a collective or the name of one.
    averaged: whether all members of ``inner_axis`` have the same gradient.

  Raises:
    TypeError: for an axis that cannot be one, an ``outer`` that is not a collective, or an ``averaged`` that is
      neither True nor False.
    ValueError: for an axis named twice, or an ``outer`` that is hierarchical itself; in ``sparse_exchange`` when
      its axes are not more than these, or have one of them and ``averaged``.

  Examples:
    >>> import rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.rtop_k(0.01), ("slice", "chip"), collective=rtopk_jax.Hierarchical("chip")
    ... )
  """

  inner_axis: AxisName
  outer: str | Collective = dataclasses.field(default_factory=AllGather)
  averaged: bool = False

  def __post_init__(self):
    _checks.axis_name(self.inner_axis, "inner_axis")
    _checks.flag("averaged", self.averaged)
    object.__setattr__(self, "outer", resolve(self.outer, "outer"))
    if not self._outer.each_is_a_worker:
      raise ValueError(
        f"outer={self.outer!r} makes one worker of several itself. Name all fast axes in inner_axis, a tuple."
      )

  each_is_a_worker = False

  @property
  def _outer(self) -> Collective:
    """``outer``, which is no name any more."""
    return cast(Collective, self.outer)

  def suited(self, axis_name, average, wire, memory):
    """As ``Collective.suited``."""
    inner, every = _axis.names(self.inner_axis), _axis.names(axis_name)
    if self.averaged and set(inner) & set(every):
      raise ValueError(
        f"axis_name={axis_name!r} must not have the inner_axis={self.inner_axis!r} of averaged gradients in it."
      )
    if not self.averaged and not set(inner) < set(every):
      raise ValueError(
        f"inner_axis={self.inner_axis!r} must be some but not all of the axes of axis_name={axis_name!r}."
      )
    outer = self._outer.suited(self.workers(axis_name), average, wire, memory)
    return dataclasses.replace(self, outer=outer)

  def workers(self, axis_name: AxisName) -> AxisName:
    """As ``Collective.workers``."""
    if self.averaged:
      return axis_name
    inner = _axis.names(self.inner_axis)
    outer = tuple(name for name in _axis.names(axis_name) if name not in inner)
    return outer[0] if len(outer) == 1 else outer

  def prepare(self, updates: Any, axis_name: AxisName) -> tuple[Any, int]:
    """As ``Collective.prepare``."""
    return (updates, 1) if self.averaged else _axis.sum_over(updates, self.inner_axis)

  def with_absence(self):
    """As ``Collective.with_absence``."""
    return dataclasses.replace(self, outer=self._outer.with_absence())

  @property
  def parts_axis(self) -> AxisName | None:
    """As ``Collective.parts_axis``."""
    return self.inner_axis

  def with_delay(self):
    """As ``Collective.with_delay``."""
    return dataclasses.replace(self, outer=self._outer.with_delay())

  def settled_for(self, outgoing, wire, axis_name):
    """As ``Collective.settled_for``."""
    return dataclasses.replace(self, outer=self._outer.settled_for(outgoing, wire, axis_name))

  def send(self, words, axis_name):
    """As ``Collective.send``: each member of the fast axes sends a part."""
    with _axis.in_parts(self.inner_axis):
      return self._outer.send(words, axis_name)

  def exchange(self, outgoing, header, wire, axis_name):
    """As ``Collective.exchange``."""
    with _axis.in_parts(self.inner_axis):
      return self._outer.exchange(outgoing, header, wire, axis_name)

  def cost(self, d, k, num_workers, wire, local):
    """As ``Collective.cost``: that of the slow axes, n being the members of those."""
    return self._outer.cost(d, k, num_workers, wire, local)

  @property
  def states_cost(self) -> bool:
    """As ``Collective.states_cost``."""
    return self._outer.states_cost

  def fastest(self, d, k, num_workers, wire):
    """As ``Collective.fastest``."""
    return dataclasses.replace(self, outer=self._outer.fastest(d, k, num_workers, wire))
