"""Numbers that a compiler must not know.

Leaves of one shape are treated alike, but for where they begin in a vector. XLA compiles a kernel once for all
places that it is used in if they are the same to the letter. So on CPUs, where compiling takes as long as a
training of a hundred steps, the beginnings are handed to a kernel as arguments and not written into it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from rtopk_jax.kernels._dispatch import here

Offset = int | jax.Array

_count: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar(
  "rtopk_jax_count", default=None
)


@contextlib.contextmanager
def hidden_by(count: jax.Array) -> Iterator[None]:
  """Within this context offsets are hidden.

  Args:
    count: an int32 scalar that is the same on all workers and never negative, which a compiler cannot know.
  """
  token = _count.set(count)
  try:
    yield
  finally:
    _count.reset(token)


def offsets(numbers: Sequence[int]) -> Sequence[Offset]:
  """Some numbers, as they are or as int32 scalars that a compiler does not know."""
  count = _count.get()
  if count is None or len(numbers) < 2:
    return list(numbers)
  return here().offsets(numbers, count)


def hide(numbers: Sequence[int], count: jax.Array) -> list[Offset]:
  """The numbers as results of a branch, of which no compiler knows that it is always taken."""
  known = [jnp.int32(number) for number in numbers]
  return jax.lax.cond(count >= 0, lambda: known, lambda: [jnp.zeros_like(x) for x in known])


def settled(x: jax.Array) -> jax.Array:
  """The same scalar, worked out before anything that reads it, and not anew in every kernel that does."""
  count = _count.get()
  return x if count is None else here().settled(x, count)


def settle(x: jax.Array, count: jax.Array) -> jax.Array:
  """The scalar as the result of a branch, which no compiler takes apart."""
  return jax.lax.cond(count >= 0, lambda x: x, jnp.zeros_like, x)


def made_once(make: Callable[[], jax.Array]) -> jax.Array:
  """What a function makes, as an array that every kernel reads, and none makes anew."""
  count = _count.get()
  return make() if count is None else here().made_once(make, count)


def make_once(make: Callable[[], jax.Array], count: jax.Array) -> jax.Array:
  """The array as the result of a branch, which no compiler takes apart."""
  return jax.lax.cond(count >= 0, make, lambda: jnp.zeros_like(make()))
