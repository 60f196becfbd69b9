"""Adding up messages, leaf by leaf, on every platform, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtopk_jax.exchange import _reduce
from rtopk_jax.exchange._message import Contributions
from rtopk_jax.vector._vector import places

# Among them one that lies in whole tiles, one by columns, and some in neither way.
SHAPES = [(70, 40), (3,), (9, 5, 3, 3), (1,), (16, 256), (200, 30)]
WORKERS = 3


def _messages(where, count, seed):
  """Ascending positions and small whole values, so that sums are exact and some of them cancel."""
  rng = np.random.default_rng(seed)
  there = np.concatenate([place.first + np.arange(place.size) for place in where])
  positions = [np.sort(rng.choice(there, count, replace=False)) for _ in range(WORKERS)]
  values = rng.integers(-1, 2, (WORKERS, count))
  return np.array(positions, np.int32), values.astype(np.float32)


def _dense(where, positions, values):
  vector = np.zeros(where[-1].first + where[-1].size, np.float64)
  vector[positions] = values
  return [vector[place.first : place.first + place.size].reshape(place.shape) for place in where]


def reduced(where, positions, values, keep, weights, average):
  def run(positions, values, keep, weights):
    read = lambda worker: (positions[worker], values[worker])
    return _reduce.reduce(Contributions(WORKERS, read), where, keep, weights, average)

  return jax.jit(run)(positions, values, jnp.bool_(keep), weights)


# The last is more than is added in one turn. Averages differ in what is done with the sums.
@pytest.mark.parametrize(
  ("count", "average"), [(40, "workers"), (2900, "workers"), (2900, "senders"), (1, "sum")]
)
def test_means_of_messages(platform, count, average):
  where = places(SHAPES)
  positions, values = _messages(where, count, seed=count)
  for weights in (None, np.float32([1, 0, 1])):
    means, nonzero = reduced(where, positions, values, True, weights, average)
    factors = np.ones(WORKERS) if weights is None else weights
    parts = [_dense(where, p, f * v) for p, v, f in zip(positions, values, factors, strict=True)]
    sent = [_dense(where, p, f) for p, f in zip(positions, factors, strict=True)]
    touched = 0
    for i, mean in enumerate(means):
      expected = sum(part[i] for part in parts)
      touched += np.count_nonzero(expected)
      if average == "workers":
        expected = expected / factors.sum()
      if average == "senders":
        expected = expected / np.maximum(sum(part[i] for part in sent), 1)
      assert mean.shape == where[i].shape
      np.testing.assert_allclose(mean, expected, rtol=1e-6)
    assert nonzero == touched


def test_what_is_not_kept_is_not_added(platform):
  where = places(SHAPES)
  positions, values = _messages(where, 300, seed=0)
  means, nonzero = reduced(where, positions, values, False, None, "workers")
  assert nonzero == 0
  assert not any(np.any(mean) for mean in means)


def test_more_senders_than_a_byte_counts():
  where, count = places([(40,)]), 300
  read = lambda worker: (jnp.int32([7, 30]), jnp.float32([1, -2]))
  contributions = Contributions(count, read)
  run = lambda keep: _reduce.reduce(contributions, where, keep, None, "senders")
  (mean,), nonzero = jax.jit(run)(jnp.bool_(True))
  np.testing.assert_array_equal(mean, np.float32([0] * 7 + [1] + [0] * 22 + [-2] + [0] * 9))
  assert nonzero == 2


def test_a_batch_of_sums():
  where = places(SHAPES)
  messages = [_messages(where, 300, seed) for seed in range(2)]
  positions, values = (np.stack(x) for x in zip(*messages, strict=True))

  def run(positions, values):
    read = lambda worker: (positions[worker], values[worker])
    return _reduce.reduce(Contributions(WORKERS, read), where, jnp.bool_(True), None, "workers")

  means, nonzero = jax.jit(jax.vmap(run))(positions, values)
  for row in range(2):
    alone, count = reduced(where, positions[row], values[row], True, None, "workers")
    assert nonzero[row] == count
    for mean, one in zip(means, alone, strict=True):
      np.testing.assert_array_equal(mean[row], one)
