"""Arrays of one size written over entry by entry, a stretch of all of them at a time.

What a worker keeps of a leaf, and the update, are made of the same arrays one after another. Made a leaf at a time, each
array would come from memory anew for each of them. A stretch stays in a CPU's cache until all has been made of it, so
that each array comes from memory once and goes back once.

That is for a worker that has one core. XLA's CPU backend deals a leaf out to all cores, but runs loops one after another,
on one core each.

An array that somebody needs later is copied first, and the copy written over.
"""

import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax import _axis
from rtopk_jax._loops import fori_loop
from rtopk_jax.kernels._spent_old import zero_of

# Entries of each array, which take far longer than a loop's turn does; those of three arrays fit into small caches.
_STRETCH = 1 << 14

# An array of fewer entries stays in a cache for as long as it is needed, and takes no loop to be compiled.
_LONG = 1 << 17

# What makes the new entries of an array out of those of all arrays, one by one.
Rule = Callable[..., jax.Array]


def are_quicker(size: int) -> bool:
  """Whether loops over stretches take less time than kernels over whole arrays, of so many entries at most."""
  # Other platforms are not asked: this makes a client for CPUs, which they may have none of.
  is_long = size >= _LONG and jax.default_backend() == "cpu"
  return is_long and cores() < 2 * jax.local_device_count()


def cores() -> int:
  """How many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def write_over(arrays: Sequence[jax.Array], rules: Sequence[Rule | None]) -> list[jax.Array]:
  """Arrays after rules.

  Args:
    arrays: of the same size.
    rules: one for each, applied in order: it sees what those before it have made of their arrays. None clears one.

  Returns:
    The arrays, flat, in their dtypes.
  """
  # What a rule makes may vary over the axes of all arrays.
  for like in arrays:
    arrays = [_axis.varying_like(x, like) for x in arrays]
  size = arrays[0].size
  length = min(_STRETCH, size)

  def stretch(number, made):
    made = list(made)
    # The last one is as long as the others, and passes over what has been dealt with.
    begin = jnp.minimum(number * length, size - length)
    rest = lax.iota(jnp.int32, length) >= number * length - begin
    for i, rule in enumerate(rules):
      entries = [lax.dynamic_slice(x, (begin,), (length,)) for x in made]
      new = jnp.zeros_like(entries[i]) if rule is None else rule(*entries).astype(made[i].dtype)
      if rule is not None and size % length:
        new = jnp.where(rest, new, entries[i])
      made[i] = lax.dynamic_update_slice(made[i], new, (begin,))
      # The next rule begins when this one has ended: a compiler that did not see that would copy the whole array.
      begin += zero_of(lax.dynamic_slice(made[i], (begin,), (1,)))
    return made

  return fori_loop(0, -(-size // length), stretch, [x.reshape(-1) for x in arrays])
