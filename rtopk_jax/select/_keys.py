"""Keys to select by: magnitudes and random numbers as int32, and the largest of them by a library's top-k.

Magnitudes are compared as the integers their bits spell, because XLA flushes subnormal floats to zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry_2x32

# Up to this size a sort takes little memory (5 bytes an entry, 16 for random-k), and compiles in a tenth of the time.
SORT_BELOW = 40_000
# What all NaN are taken for. Keys stay below 2³¹ by so much that differences of any two fit into int32.
LARGEST_KEY = 0x7F80_0001
_THREEFRY = "threefry2x32"
# Groups that a vector may have. The key of the last number is for the rounding of values.
MOST_GROUPS = 1 << 24
# A number above all random keys.
RANDOM_BELOW = 1 << 30
# float32 as bits: the smallest normal number, and infinity.
_MIN_NORMAL = np.uint32(0x0080_0000)
_INFINITY = np.uint32(0x7F80_0000)


def derived_key(
  seed: int | jax.Array, step: jax.Array, member: jax.Array, group: jax.typing.ArrayLike
) -> jax.Array:
  """The PRNG key of a group of a worker's entries in a step.

  One call of the generator, which takes four numbers of 32 bits; ``jax.random.fold_in`` is a call for each. All
  kinds of maps and all settings of JAX get the same key.

  Args:
    seed: an integer of 32 bits.
    step: the number of the step.
    member: a number of the worker's own.
    group: the number of the group.

  Returns:
    A Threefry key.
  """
  high, low = jax.random.key_data(jax.random.key(seed, impl=_THREEFRY))
  word = lambda x: jnp.asarray(x).astype(jnp.uint32)
  keypair = jnp.stack([low, high ^ word(step)])
  words = threefry_2x32(keypair, jnp.stack([word(member), word(group)]))
  return jax.random.wrap_key_data(words, impl=_THREEFRY)


def magnitude_keys(vector: jax.Array) -> jax.Array:
  """int32 numbers in the order of the entries' magnitudes, all NaN being one."""
  width = 8 * vector.dtype.itemsize
  bits = lax.bitcast_convert_type(vector, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
  return jnp.minimum(bits & np.uint32((1 << (width - 1)) - 1), np.uint32(LARGEST_KEY)).astype(
    jnp.int32
  )


def random_keys(key: jax.Array, count: int) -> jax.Array:
  """Random int32 numbers to draw by, of 30 bits each: hardly ever equal."""
  # Of a multiple of many, since on CPUs an odd count takes several times as long.
  bits = jax.random.bits(key, (-(-count // 128) * 128,), jnp.uint32)[:count]
  return (bits >> np.uint32(2)).astype(jnp.int32)


def top_k_of_keys(keys: jax.Array, count: int) -> jax.Array:
  """``lax.top_k`` of int32 keys by way of floats, for which backends have something faster than a sort.

  A key of -1, for what is not there, is below all others. Keys below the smallest normal number would be flushed
  to zero. They become negative normal numbers, the smaller the further from zero.

  Args:
    keys: int32, of one axis.
    count: how many are taken.

  Returns:
    The indices of the largest keys, the largest first; of equal keys, the lowest index first.
  """
  bits = keys.astype(jnp.uint32)
  tiny = lax.bitcast_convert_type(np.uint32(0xBF80_0000) + (_MIN_NORMAL - bits), jnp.float32)
  floats = lax.bitcast_convert_type(jnp.minimum(bits, _INFINITY), jnp.float32)
  floats = jnp.where(bits < _MIN_NORMAL, tiny, floats)
  return lax.top_k(jnp.where(keys < 0, -jnp.inf, floats), count)[1]
