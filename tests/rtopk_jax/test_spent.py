"""Zeros in the memory of an array that is needed no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rtopk_jax._spent import Spent, zeros_over

AXIS = "workers"
SHAPE = (300, 7, 40)


def _arrays(seed, workers=1):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=(workers, *SHAPE)).astype(np.float32)) for _ in range(2)]


@pytest.mark.parametrize("number", [1.0, -1.0, 0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_whatever_there_was_there_are_zeros(number, dtype):
  array = jnp.full(SHAPE, number, dtype)
  for call in (zeros_over, jax.jit(zeros_over)):
    zeros = call(Spent(array, jnp.full((2, 3), number, dtype)))
    assert zeros.shape == SHAPE
    assert zeros.dtype == jnp.float32
    # Not a bit is set, which a zero with a sign has.
    assert not np.asarray(zeros).view(np.int32).any()


def test_they_take_the_place_of_an_array_that_something_was_made_of():
  def step(made, array):
    made = made + array
    return made, zeros_over(Spent(array, made)).at[3, 2, 1].set(5.0)

  made, array = (x[0] for x in _arrays(seed=0))
  expected = np.asarray(made) + np.asarray(array)
  program = jax.jit(step, donate_argnums=(0, 1)).lower(made, array).compile()
  memory = program.memory_analysis()
  assert memory.alias_size_in_bytes == 2 * array.nbytes
  assert memory.temp_size_in_bytes < array.nbytes / 10
  made, zeros = program(made, array)
  np.testing.assert_array_equal(made, expected)
  assert zeros[3, 2, 1] == 5
  assert np.count_nonzero(zeros) == 1


def test_an_array_that_is_kept_is_not_written_over():
  made, array = (x[0] for x in _arrays(seed=1))
  before = np.array(array)
  step = jax.jit(lambda made, array: (array * 2, zeros_over(Spent(array, made))))
  doubled, zeros = step(made, array)
  np.testing.assert_array_equal(doubled, 2 * before)
  np.testing.assert_array_equal(array, before)
  assert not np.any(zeros)


def test_they_are_one_for_a_whole_batch():
  made, array = _arrays(seed=2, workers=3)
  zeros = jax.vmap(lambda *x: zeros_over(Spent(*x)), out_axes=None)(array, made)
  assert zeros.shape == SHAPE
  assert not np.any(zeros)
  zeros = jax.jit(jax.vmap(lambda x, y: zeros_over(Spent(x, y)) + y))(array, made)
  np.testing.assert_array_equal(zeros, made)


def test_they_are_the_same_on_all_workers():
  workers = 4
  mesh = Mesh(np.array(jax.devices()[:workers]), (AXIS,))
  made, array = _arrays(seed=3, workers=workers)
  # Results that JAX does not know to be the same may not be given out as such.
  zeros = jax.shard_map(
    lambda made, array: zeros_over(Spent(array[0], made[0])),
    mesh=mesh,
    in_specs=(P(AXIS), P(AXIS)),
    out_specs=P(),
  )(made, array)
  assert zeros.shape == SHAPE
  assert not np.any(zeros)


def test_other_platforms_just_make_them():
  made, array = (x[0] for x in _arrays(seed=4))
  traced = jax.jit(lambda made, array: zeros_over(Spent(array, made))).trace(made, array)
  for platform in ("cuda", "tpu"):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "select" not in text
  assert "select" in traced.lower(lowering_platforms=("cpu",)).as_text()
