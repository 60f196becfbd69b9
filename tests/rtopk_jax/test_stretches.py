"""Arrays written over a chunk at a time, against NumPy on whole arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rtopk_jax.kernels import _chunks_old
from rtopk_jax.kernels._chunks_old import write_over

AXIS = "workers"
# Less than a chunk, one, several, and some that are no whole number of them.
SHAPES = [(1,), (1000,), (1 << 14,), (2, 1 << 14), (33, 1000), (1, (1 << 14) + 1), (7, 11, 1013)]


def _drawn(shape, count, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=shape).astype(np.float32) for _ in range(count)]


def _momentum(momentum, residual, gradient):
  del residual
  return momentum * np.float32(0.5) + gradient


def _residual(momentum, residual, gradient):
  del gradient
  return residual + momentum


RULES = (_momentum, _residual, None)


def _expected(momentum, residual, gradient):
  momentum = _momentum(momentum, residual, gradient)
  return momentum, _residual(momentum, residual, gradient), np.zeros_like(gradient)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_rule_sees_what_the_others_made(shape):
  arrays = _drawn(shape, 3)
  made = jax.jit(lambda *x: write_over(x, RULES))(*arrays)
  for x, expected in zip(made, _expected(*arrays), strict=True):
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x, expected.reshape(-1))


def test_cleared_is_cleared_whatever_there_was():
  array = np.full(40_000, np.nan, np.float32)
  array[::2], array[::3] = -np.inf, -0.0
  (cleared,) = jax.jit(lambda x: write_over([x], [None]))(array)
  # Not a bit is set, which a zero with a sign has.
  assert not np.asarray(cleared).view(np.int32).any()


@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf, -0.0, -1.0])
def test_numbers_that_rules_wait_for_may_be_any(number):
  arrays = [np.full((3, 20_000), number, np.float32) for _ in range(3)]
  made = jax.jit(lambda *x: write_over(x, RULES))(*arrays)
  for x, expected in zip(made, _expected(*arrays), strict=True):
    np.testing.assert_array_equal(x, expected.reshape(-1))


@pytest.mark.parametrize("shape", [(5, 1 << 14), (3, 3, 70, 130)], ids=str)
def test_nothing_is_copied_that_is_donated(shape):
  arrays = [jnp.asarray(x) for x in _drawn(shape, 3)]
  size = arrays[0].nbytes
  step = lambda *x: [y.reshape(shape) for y in write_over(x, RULES)]
  program = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*arrays).compile()
  assert program.memory_analysis().alias_size_in_bytes == 3 * size
  assert program.memory_analysis().temp_size_in_bytes < size / 10


def test_what_is_needed_later_is_copied():
  momentum, residual, gradient = _drawn((50_000,), 3)
  step = jax.jit(lambda *x: (write_over(x, RULES), x[2] * 2))
  made, doubled = step(momentum, residual, gradient)
  np.testing.assert_array_equal(doubled, 2 * gradient)
  np.testing.assert_array_equal(made[1], _expected(momentum, residual, gradient)[1])


def test_rules_of_each_example_of_a_batch():
  arrays = _drawn((3, 40_000), 3)
  taken = np.array([True, False, True])

  def step(taken, *arrays):
    rule = lambda *x: jnp.where(taken, _residual(*x), x[1])
    return write_over(arrays, (_momentum, rule, None))

  made = jax.jit(jax.vmap(step))(taken, *arrays)
  momentum, residual, zeros = _expected(*arrays)
  expected = momentum, np.where(taken[:, None], residual, arrays[1]), zeros
  for x, y in zip(made, expected, strict=True):
    np.testing.assert_array_equal(x, y)


def test_for_devices_of_one_core(monkeypatch):
  devices = jax.local_device_count()
  for count, quicker in ((1, True), (2 * devices - 1, True), (2 * devices, False)):
    monkeypatch.setattr(_chunks_old, "cores", lambda count=count: count)
    assert _chunks_old.are_quicker(1 << 20) == quicker
    assert not _chunks_old.are_quicker(1000)


def test_arrays_of_one_worker_and_of_all():
  """A rule may make of what is the same on all workers what is not."""
  workers = 4
  mesh = Mesh(np.array(jax.devices()[:workers]), (AXIS,))
  (shared,), (own,) = _drawn((20_000,), 1), _drawn((workers, 20_000), 1, seed=1)
  rules = (lambda shared, own: shared + own, lambda shared, own: own * 2)
  step = jax.shard_map(
    lambda shared, own: [x[None] for x in write_over([shared, own[0]], rules)],
    mesh=mesh,
    in_specs=(P(), P(AXIS)),
    out_specs=P(AXIS),
  )
  added, doubled = jax.jit(step)(shared, own)
  np.testing.assert_array_equal(added, shared + own)
  np.testing.assert_array_equal(doubled, 2 * own)
