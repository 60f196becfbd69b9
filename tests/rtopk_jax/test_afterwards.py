"""Zeros that are made when an array has been."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rtopk_jax._afterwards import zeros_after

AXIS = "workers"
SHAPE = (300, 7, 40)
SIZE = 300 * 7 * 40


def _drawn(seed, workers=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(workers, *SHAPE)).astype(np.float32))


def test_they_lie_where_what_the_array_was_made_of_did():
  def step(memory, gradient):
    memory = (memory + gradient).at[0, 0, 0].set(0.0)
    return memory, zeros_after(memory, SIZE).reshape(SHAPE).at[3, 2, 1].set(5.0)

  memory, gradient = _drawn(seed=0, workers=2)
  program = jax.jit(step, donate_argnums=(0, 1)).lower(memory, gradient).compile()
  found = program.memory_analysis()
  assert found.alias_size_in_bytes == 2 * gradient.nbytes
  assert found.temp_size_in_bytes < gradient.nbytes / 10
  expected = np.asarray(memory) + np.asarray(gradient)
  expected[0, 0, 0] = 0
  memory, zeros = program(memory, gradient)
  np.testing.assert_array_equal(memory, expected)
  assert zeros.dtype == jnp.float32
  assert zeros[3, 2, 1] == 5
  assert np.count_nonzero(zeros) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf, -0.0, -1.0, 1e-7])
def test_the_array_may_hold_anything(number, dtype):
  zeros = jax.jit(lambda x: zeros_after(x, 5))(jnp.full((2, 3), number, dtype))
  # Not a bit is set, which a zero with a sign has.
  assert not np.asarray(zeros).view(np.int32).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_they_are_one_for_a_whole_batch(axis):
  array = jnp.moveaxis(_drawn(seed=2, workers=3), 0, axis)
  after = lambda x: zeros_after(x, SIZE)
  zeros = jax.vmap(after, in_axes=axis, out_axes=None)(array)
  assert zeros.shape == (SIZE,)
  assert not np.any(zeros)
  added = jax.jit(jax.vmap(lambda x: after(x).reshape(SHAPE) + x, in_axes=axis))(array)
  np.testing.assert_array_equal(added, jnp.moveaxis(array, axis, 0))


def test_they_are_the_same_on_all_workers():
  workers = 4
  mesh = Mesh(np.array(jax.devices()[:workers]), (AXIS,))
  # Results that JAX does not know to be the same may not be given out as such.
  after = lambda array: zeros_after(array[0], SIZE)
  mapped = jax.shard_map(after, mesh=mesh, in_specs=P(AXIS), out_specs=P())
  zeros = jax.jit(mapped)(_drawn(seed=3, workers=workers))
  assert zeros.shape == (SIZE,)
  assert not np.any(zeros)


def test_other_platforms_do_not_wait():
  traced = jax.jit(lambda x: zeros_after(jnp.exp(x), SIZE)).trace(_drawn(seed=4)[0])
  for platform in ("cuda", "tpu"):
    assert "bitcast_convert" not in traced.lower(lowering_platforms=(platform,)).as_text()
  assert "bitcast_convert" in traced.lower(lowering_platforms=("cpu",)).as_text()
