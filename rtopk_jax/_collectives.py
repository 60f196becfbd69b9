"""The collectives by name, and the two that are made of others: over two kinds of links, and chosen by cost."""

import dataclasses
from typing import Any

from rtopk_jax import _axis, _checks
from rtopk_jax._axis import AxisName
from rtopk_jax._exchange import AllGather, Collective
from rtopk_jax._memory import Memory
from rtopk_jax._reduce_scatter import ReduceScatter
from rtopk_jax._wire import Wire


@dataclasses.dataclass(frozen=True)
class Hierarchical(Collective):
  """A dense mean over a fast axis, then the sparse exchange over the slow ones.

  Workers that share a fast link, such as the chips of a slice or the GPUs of a host, are one worker to the
  compression: they start from the mean of their gradients, have one memory between them, of which each
  holds a copy, and send the same message. ``axis_name`` of the exchange is a tuple that has ``inner_axis`` in
  it; n counts the members of the other axes.

  Args:
    inner_axis: the fast axis, or several.
    outer: how messages travel over the slow ones.

  Raises:
    TypeError: for an axis that cannot be one, or an ``outer`` that is not a collective.

  Examples:
    >>> import rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.rtop_k(0.01), ("slice", "chip"), collective=rtopk_jax.Hierarchical("chip")
    ... )
  """

  inner_axis: AxisName
  outer: Collective = dataclasses.field(default_factory=AllGather)

  def __post_init__(self):
    _checks.axis_name(self.inner_axis)
    if not isinstance(self.outer, Collective) or isinstance(self.outer, Hierarchical):
      raise TypeError(f"outer must be AllGather(), ReduceScatter() or Auto(…), got {self.outer!r}.")

  def check(self, axis_name: AxisName, average: str, wire: Wire, memory: Memory) -> None:
    """As ``Collective.check``."""
    inner, every = _axis.names(self.inner_axis), _axis.names(axis_name)
    if not set(inner) < set(every):
      raise ValueError(
        f"inner_axis={self.inner_axis!r} must be some but not all of the axes of axis_name={axis_name!r}."
      )
    self.outer.check(self.workers(axis_name), average, wire, memory)

  def workers(self, axis_name: AxisName) -> AxisName:
    """As ``Collective.workers``."""
    inner = _axis.names(self.inner_axis)
    outer = tuple(name for name in _axis.names(axis_name) if name not in inner)
    return outer[0] if len(outer) == 1 else outer

  def prepare(self, updates: Any, axis_name: AxisName) -> Any:
    """As ``Collective.prepare``."""
    return _axis.mean_over(updates, self.inner_axis)

  @property
  def allows_absence(self) -> bool:
    """As ``Collective.allows_absence``."""
    return self.outer.allows_absence

  def exchange(self, outgoing, header, wire, axis_name):
    """As ``Collective.exchange``."""
    return self.outer.exchange(outgoing, header, wire, axis_name)


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
