"""Zeros in the memory of an array that has been cleared, or is not needed any more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rtopk_jax.kernels._spent_old import zeros_after, zeros_in

AXIS = "workers"
SHAPE = (300, 7, 40)


def _drawn(seed, workers=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(workers, *SHAPE)).astype(np.float32))


def test_they_are_the_array_itself():
  def step(array):
    return zeros_in(array * 0).at[3, 2, 1].set(5.0)

  array = jnp.abs(_drawn(seed=0)[0])
  program = jax.jit(step, donate_argnums=0).lower(array).compile()
  memory = program.memory_analysis()
  assert memory.alias_size_in_bytes == array.nbytes
  assert memory.temp_size_in_bytes < array.nbytes / 10
  zeros = program(array)
  assert zeros.dtype == jnp.float32
  assert zeros[3, 2, 1] == 5
  assert np.count_nonzero(zeros) == 1


def test_made_afterwards_they_lie_where_what_was_made_came_from():
  def step(memory, gradient):
    memory = (memory + gradient).at[0, 0, 0].set(0.0)
    return memory, zeros_in(zeros_after(memory)).at[3, 2, 1].set(5.0)

  memory, gradient = _drawn(seed=1, workers=2)
  program = jax.jit(step, donate_argnums=(0, 1)).lower(memory, gradient).compile()
  found = program.memory_analysis()
  assert found.alias_size_in_bytes == 2 * gradient.nbytes
  assert found.temp_size_in_bytes < gradient.nbytes / 10
  expected = np.asarray(memory) + np.asarray(gradient)
  expected[0, 0, 0] = 0
  memory, zeros = program(memory, gradient)
  np.testing.assert_array_equal(memory, expected)
  assert zeros[3, 2, 1] == 5
  assert np.count_nonzero(zeros) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=str)
@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf, -0.0, -1.0, 1e-7])
def test_afterwards_whatever_was_made(number, dtype):
  zeros = jax.jit(zeros_after)(jnp.full((2, 3), number, dtype))
  assert zeros.shape == (2, 3)
  # Not a bit is set, which a zero with a sign has.
  assert not np.asarray(zeros).view(np.int32).any()


@pytest.mark.parametrize("axis", [0, 1])
def test_they_are_one_for_a_whole_batch(axis):
  array = jnp.moveaxis(_drawn(seed=2, workers=3), 0, axis)
  zeros = jax.vmap(zeros_in, in_axes=axis, out_axes=None)(jnp.zeros_like(array))
  assert zeros.shape == SHAPE
  assert not np.any(zeros)
  added = jax.jit(jax.vmap(lambda x: zeros_in(jnp.zeros_like(x)) + x, in_axes=axis))(array)
  np.testing.assert_array_equal(added, jnp.moveaxis(array, axis, 0))


def test_they_are_the_same_on_all_workers():
  workers = 4
  mesh = Mesh(np.array(jax.devices()[:workers]), (AXIS,))
  # Results that JAX does not know to be the same may not be given out as such.
  zeros = jax.shard_map(
    lambda array: zeros_in(jnp.zeros_like(array[0])), mesh=mesh, in_specs=P(AXIS), out_specs=P()
  )(_drawn(seed=3, workers=workers))
  assert zeros.shape == SHAPE
  assert not np.any(zeros)


def test_other_platforms_make_them():
  traced = jax.jit(lambda array: zeros_in(jnp.exp(array))).trace(_drawn(seed=4)[0])
  for platform in ("cuda", "tpu"):
    assert "constant" in traced.lower(lowering_platforms=(platform,)).as_text()
  assert "constant" not in traced.lower(lowering_platforms=("cpu",)).as_text()
