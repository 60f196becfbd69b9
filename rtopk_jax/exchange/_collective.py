"""What a collective is to the exchange: the protocol."""

from collections.abc import Sequence
from typing import Any

import jax

from rtopk_jax import _axis
from rtopk_jax._axis import AxisName
from rtopk_jax._modes import Traffic
from rtopk_jax.exchange import _message
from rtopk_jax.exchange._cost import Cost, LocalSpeed
from rtopk_jax.exchange._message import Header, Incoming, Outgoing
from rtopk_jax.memory._rule import Memory
from rtopk_jax.vector._vector import aligned
from rtopk_jax.wire._format import WireFormat

AVERAGES = ("workers", "senders", "sum")


class Collective:
  """How messages travel: ``AllGather``, ``ReduceScatter``, ``Hierarchical``, ``Auto``.

  One of your own is a frozen dataclass. Where every worker gets every worker's message it has two methods,
  ``gather`` and ``traffic``, and perhaps ``suited``. One that does something else with messages writes ``exchange``
  and ``cost`` instead; ``ReduceScatter`` is one.

  Examples:
    >>> import dataclasses, jax, jax.numpy as jnp, rtopk_jax
    >>> @dataclasses.dataclass(frozen=True)
    ... class BySum(rtopk_jax.Collective):
    ...   def gather(self, words, axis_name):
    ...     rows = jnp.zeros((jax.lax.axis_size(axis_name), words.size), words.dtype)
    ...     return jax.lax.psum(rows.at[jax.lax.axis_index(axis_name)].set(words), axis_name)
    ...   def traffic(self, size, num_workers):
    ...     return rtopk_jax.Traffic.all_reduce(num_workers * size, num_workers)
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.top_k(0.01), "data", collective=BySum(), dense=False)
    >>> update = lambda g: tx.update(g, tx.init(g))[0]
    >>> jax.jit(jax.vmap(update, out_axes=None, axis_name="data"))(jnp.ones((4, 300))).sum()
    Array(3., dtype=float32)
    >>> rtopk_jax.wire_bytes(tx, jnp.ones(300), num_workers=4).sent  # four whole tiles
    2048
  """

  # Whether workers may be absent from a step.
  allows_absence = True
  # Whether each member of the axis has a memory and sends messages of its own.
  each_is_a_worker = True

  def gather(self, words: jax.Array, axis_name: AxisName) -> jax.Array:
    """Hands every worker's words to every worker; inside the map over the axis.

    Args:
      words: this worker's, uint32, shape (m,).
      axis_name: the mapped axis of the workers.

    Returns:
      Shape (num_workers, m), a row a worker, the same on all of them.

    Raises:
      TypeError: where a collective of your own has neither this nor ``exchange``.
    """
    raise TypeError(
      f"{self!r} does not say how messages travel: it has to write gather or exchange."
    )

  def traffic(self, size: int, num_workers: int) -> Traffic:
    """What ``gather`` does to a worker's link.

    Args:
      size: bytes that each worker hands over.
      num_workers: n.

    Returns:
      The ``Traffic`` of one worker.

    Raises:
      TypeError: where a collective of your own has neither this nor ``cost``.
    """
    raise TypeError(
      f"{self!r} does not say how many bytes it takes, and nobody can guess: it has to write traffic(size, "
      "num_workers), or cost where it does not gather."
    )

  def suited(
    self, axis_name: AxisName, average: str, wire: WireFormat, memory: Memory
  ) -> "Collective":
    """This collective as it serves some options; one of your own may refuse them.

    Args:
      axis_name: the mapped axis of the workers.
      average: "workers", "senders" or "sum".
      wire: the code of messages.
      memory: whether there is error feedback and momentum, and of which kind.

    Returns:
      The collective that is used in its place: itself.

    Raises:
      ValueError: in those that cannot serve the options.
    """
    del axis_name, average, wire, memory
    return self

  def exchange(
    self, outgoing: Sequence[Outgoing], header: Header, wire: WireFormat, axis_name: AxisName
  ) -> tuple[list[Incoming], jax.Array]:
    """Sends and receives.

    Args:
      outgoing: a vector each.
      header: this worker's numbers for all workers.
      wire: the code of messages.
      axis_name: the mapped axis of the workers.

    Returns:
      What comes in for each vector, and all headers, a row a worker.
    """
    return _message.to_everybody(outgoing, header, wire, lambda x: self.send(x, axis_name))

  def cost(self, d: int, k: int, num_workers: int, wire: WireFormat, local: LocalSpeed) -> Cost:
    """What one exchange of a vector takes.

    Args:
      d: entries of the vector.
      k: entries that a worker sends.
      num_workers: n.
      wire: the code of messages.
      local: how fast a worker computes.

    Returns:
      The ``Cost``: traffic, and seconds that the worker computes.
    """
    size = _message.gathered_bytes(wire, k, aligned(d))
    own = local.overhead + local.compress * d + local.place * num_workers * k
    return Cost(self.traffic(size, num_workers), own)

  @property
  def states_cost(self) -> bool:
    """Whether it says what an exchange takes."""
    kind = type(self)
    return kind.traffic is not Collective.traffic or kind.cost is not Collective.cost

  def send(self, words: jax.Array, axis_name: AxisName) -> jax.Array:
    """``gather`` as the library calls it: counted, checked, and typed as the same on all.

    Args:
      words: this worker's, uint32, shape (1, m).
      axis_name: the mapped axis of the workers.

    Returns:
      Shape (num_workers, 1, m).

    Raises:
      TypeError: where ``gather`` returns another shape or dtype.
    """
    return _axis.gather_by(words, axis_name, lambda x: self._checked(x, axis_name), self.traffic)

  def _checked(self, words: jax.Array, axis_name: AxisName) -> jax.Array:
    rows = self.gather(words.reshape(-1), axis_name)
    shape = (_axis.size(axis_name), words.size)
    if rows.shape != shape or rows.dtype != words.dtype:
      raise TypeError(
        f"gather of {self!r} must return {words.dtype} words of shape {shape}, a row a worker, got {rows.dtype} "
        f"of shape {rows.shape}."
      )
    return _axis.agreed(rows, axis_name)[:, None]

  def fastest(self, d: int, k: int, num_workers: int, wire: WireFormat) -> "Collective":
    """What it comes to for a vector, where it leaves a choice.

    Args:
      d: entries of the vector.
      k: entries that a worker sends.
      num_workers: n.
      wire: the code of messages.

    Returns:
      A collective: itself, but for ``Auto``.
    """
    del d, k, num_workers, wire
    return self

  def with_absence(self) -> "Collective":
    """This collective as it serves steps that workers may be absent from.

    Returns:
      The collective that is used then.

    Raises:
      ValueError: where it has owners, who cannot be absent.
    """
    if not self.allows_absence:
      raise ValueError(
        f"present needs a collective without owners, who cannot be absent; {self!r} has them."
      )
    return self

  def with_delay(self) -> "Collective":
    """This collective as it carries messages of the step before.

    Returns:
      The collective that is used with ``delay=1``.

    Raises:
      ValueError: where it does more than carry messages.
    """
    if type(self).exchange is not Collective.exchange:
      raise ValueError(
        f"delay=1 needs a collective that hands every message to everybody, such as AllGather(), got {self!r}."
      )
    return self

  def settled_for(
    self, outgoing: Sequence[Outgoing], wire: WireFormat, axis_name: AxisName
  ) -> "Collective":
    """The collective that carries some messages, where this one leaves a choice.

    Args:
      outgoing: a vector each.
      wire: the code of messages.
      axis_name: the mapped axis of the workers.

    Returns:
      A collective: itself, but for ``Auto``.
    """
    del outgoing, wire, axis_name
    return self

  def workers(self, axis_name: AxisName) -> AxisName:
    """The axes whose members have a memory and send messages of their own.

    Args:
      axis_name: the mapped axis or axes of the exchange.

    Returns:
      All of them, but for ``Hierarchical``.
    """
    return axis_name

  @property
  def parts_axis(self) -> AxisName | None:
    """The axis of whose members each sends a part of what they all have, or None."""
    return None

  def prepare(self, updates: Any, axis_name: AxisName) -> tuple[Any, int]:
    """What a member of ``workers`` starts from, out of the gradients over all of ``axis_name``.

    Args:
      updates: this member's gradient, a tree.
      axis_name: the mapped axis or axes of the exchange.

    Returns:
      A sum of gradients, and of how many: whoever reads it divides, so that no mean is materialised.
    """
    del axis_name
    return updates, 1
