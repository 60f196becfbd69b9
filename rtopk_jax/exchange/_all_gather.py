"""The plainest collective: every worker's message to every worker."""

import dataclasses

from rtopk_jax import _axis
from rtopk_jax._modes import Traffic
from rtopk_jax.exchange._collective import Collective


@dataclasses.dataclass(frozen=True)
class AllGather(Collective):
  """Every worker gets every worker's message: O(n·k) received, one collective.

  Examples:
    >>> import rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.rtop_k(0.01), "data", collective=rtopk_jax.AllGather()
    ... )
  """

  def gather(self, words, axis_name):
    """As ``Collective.gather``."""
    return _axis.all_gather(words, axis_name)

  def send(self, words, axis_name):
    """As ``Collective.send``: JAX knows already that all get the same."""
    return _axis.all_gather(words, axis_name)

  def traffic(self, size, num_workers):
    """As ``Collective.traffic``."""
    return Traffic.all_gather(size, num_workers)
