"""What suits GPUs: they have many threads, a kernel takes a microsecond to start, and loops ask the host.

Where the end of a loop depends on what it works out, a GPU waits after each turn for the host to read a flag and to
start the next one, some 50 µs, in which it would read a vector of 25 million entries twice. So on GPUs what is a
loop of a few turns elsewhere is done at once, with more work in it, or all turns that there may be follow each
other without a question.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax._loops import fori_loop, seldom


def once_or_more(is_done: Callable[[Any], Any], turn: Callable[[Any], Any], start: Any) -> Any:
  """As ``_portable.Portable.once_or_more``: the first turn before the loop, so that one question is left."""
  return seldom(lambda state: ~is_done(state), turn, turn(start))


def by_threads(
  combine: Callable[[Any, Any], tuple[jax.Array, ...]], operands: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
  """Short rows of several arrays, each row combined by a thread of its own.

  XLA has as many threads for a row as it has numbers, which takes five times as long.

  Args:
    combine: from two tuples, of an entry of each array, to one.
    operands: the arrays, of shape (rows, length).

  Returns:
    For each array shape (rows,).
  """
  column = lambda i: tuple(lax.dynamic_slice_in_dim(x, i, 1, axis=1) for x in operands)
  return in_turn(combine, column, operands[0].shape[1])


def in_turn(
  combine: Callable[[Any, Any], tuple[jax.Array, ...]],
  columns: Callable[[jax.Array], tuple[jax.Array, ...]],
  count: int,
) -> tuple[jax.Array, ...]:
  """So many columns of several arrays combined, one after another, shape (rows, 1) each.

  They are traced once, and unrolled for the platform that wants them.

  Returns:
    For each array shape (rows,).
  """
  found = columns(jnp.int32(0))
  turn = lambda i, found: tuple(combine(found, columns(i)))
  found = fori_loop(1, count, turn, tuple(found), unroll=True) if count > 1 else found
  # Worked out before anything looks at them: what adds up all rows would take their place in the kernel.
  return tuple(lax.optimization_barrier([x[:, 0] for x in found]))
