"""The collectives: every worker's message to every worker, and one sum of them that all agree on.

Messages are decoded one worker after another, in worker order, by a loop whose code does not grow with
their number. Within a message indices are distinct, so no two additions race for an entry: the sum has
one order, and replicas agree bit for bit on every backend.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._axis import AxisName
from rtopk_jax._wire import Wire

AVERAGES = ("workers", "senders", "sum")


@dataclasses.dataclass(frozen=True)
class AllGather:
  """Every worker gets every worker's message: O(n·k) received, one collective.

  Examples:
    >>> import rtopk_jax
    >>> tx = rtopk_jax.sparse_exchange(
    ...   rtopk_jax.rtop_k(0.01), "data", collective=rtopk_jax.AllGather()
    ... )
  """

  def gather(self, words: jax.Array, axis_name: AxisName) -> jax.Array:
    """All messages.

    Args:
      words: this worker's, shape (w,), uint32.
      axis_name: the mapped axis of the workers.

    Returns:
      Shape (num_workers, w), the same on all workers.
    """
    return _axis.all_gather(words, axis_name)


def reduce_messages(messages: jax.Array, wire: Wire, k: int, d: int, average: str) -> jax.Array:
  """The mean of all workers' slices.

  Args:
    messages: shape (num_workers, wire.words(k, d)), uint32.
    wire: their code.
    k: entries in each.
    d: entries of the vector.
    average: "workers" divides by their number, "senders" each entry by the number of workers that sent
      it, "sum" does not divide.

  Returns:
    Shape (d,), float32.
  """
  num_workers = messages.shape[0]
  by_senders = average == "senders"

  def add(worker, sums):
    total, senders = sums
    sent = wire.decode(messages[worker], k, d)
    options = {"unique_indices": True, "indices_are_sorted": True, "mode": "promise_in_bounds"}
    total = total.at[sent.indices].add(sent.values, **options)
    if by_senders:
      senders = senders.at[sent.indices].add(jnp.int32(1), **options)
    return total, senders

  senders = jnp.zeros(d if by_senders else 0, jnp.int32)
  total, senders = lax.fori_loop(0, num_workers, add, (jnp.zeros(d, jnp.float32), senders))
  if by_senders:
    return total / jnp.maximum(senders, 1).astype(jnp.float32)
  return divide(total, num_workers, average)


def reduce_dense(vector: jax.Array, axis_name: AxisName) -> jax.Array:
  """The sum over workers of a vector, in one collective."""
  return _axis.psum(vector, axis_name)


def divide(total: jax.Array, num_workers: int, average: str) -> jax.Array:
  """A sum over all workers as the average asked for; every worker is a sender of all of it."""
  return total if average == "sum" else total / num_workers
