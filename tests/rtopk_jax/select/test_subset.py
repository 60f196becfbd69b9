"""Random subsets: of exactly so many members, every one as likely as another."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rtopk_jax.kernels import here
from rtopk_jax.select import _subset
from rtopk_jax.vector._vector import Vector, places


def _draw_one(key, sizes, counts):
  # Of any vector: what is drawn from are numbers.
  vector = Vector(places([(1,)]), ((jnp.zeros(1),),), lambda x: x)
  return _subset.draw(key, sizes, counts, here().packing(vector, width=2, exact=False))


WAYS = {"by marks": _subset._by_marks, "by keys": _draw_one}


def _many(way, sizes, counts, times, seed):
  keys = jax.random.split(jax.random.key(seed), times)
  return np.asarray(jax.jit(jax.vmap(lambda key: WAYS[way](key, sizes, counts)))(keys))


# On TPUs nothing is marked. That others draw the same as CPUs is in ``test_search``.
EVERYWHERE = [
  pytest.param(
    platform, way, marks=[] if (platform, way) == ("cpu", "by marks") else pytest.mark.slow
  )
  for platform in ("cpu", "gpu", "tpu")
  for way in WAYS
  if (platform, way) != ("tpu", "by marks")
]


@pytest.mark.parametrize(("platform", "way"), EVERYWHERE, indirect=["platform"])
def test_all_subsets_are_equally_likely(platform, way):
  times = 8_000
  found = _many(way, [6], [3], times, seed=1)
  subsets = {x: i for i, x in enumerate(itertools.combinations(range(6), 3))}
  counts = np.bincount([subsets[tuple(row)] for row in found], minlength=len(subsets))
  expected = times / len(subsets)
  # The 0.999 quantile of chi-square with 19 degrees of freedom.
  assert np.sum((counts - expected) ** 2 / expected) < 43.8


@pytest.mark.parametrize(("platform", "way"), EVERYWHERE, indirect=["platform"])
def test_subsets_of_several_sets_are_independent(platform, way):
  sizes, counts, times = [5, 1, 40, 4], [2, 1, 3, 2], 6_000
  found = _many(way, sizes, counts, times, seed=2)
  assert np.all(np.diff(found, axis=1) > 0)
  begins, places = np.cumsum(sizes) - sizes, np.cumsum(counts) - counts
  chosen = []
  for begin, size, place, count in zip(begins, sizes, places, counts, strict=True):
    numbers = found[:, place : place + count] - begin
    assert numbers.min() >= 0
    assert numbers.max() < size
    times_of_each = np.bincount(numbers.reshape(-1), minlength=size)
    expected = times * count / size
    # Five standard deviations of a binomial number, of which taking without replacement has no more.
    assert np.all(np.abs(times_of_each - expected) <= 5 * math.sqrt(expected))
    chosen.append(numbers[:, 0])
  first, last = chosen[0] == 0, chosen[3] == 0
  together = np.mean(first & last) - np.mean(first) * np.mean(last)
  assert abs(together) < 5 * 0.25 / math.sqrt(times)


@pytest.mark.parametrize(
  "density", [0.03, *(pytest.param(x, marks=pytest.mark.slow) for x in (1e-5, 1e-3, 0.2))]
)
def test_large_sets_are_drawn_from_evenly(density):
  size = 200_003
  count = max(1, round(density * size))
  found = _many("by keys", [size], [count], 4, seed=3)
  assert found.shape == (4, count)
  assert np.all(np.diff(found, axis=1) > 0)
  assert found.min() >= 0
  assert found.max() < size
  assert len({tuple(row) for row in found}) == 4
  if count > 1000:
    cells = np.histogram(found.reshape(-1), bins=50, range=(0, size))[0]
    expected = 4 * count / 50
    # The 0.999 quantile of chi-square with 49 degrees of freedom.
    assert np.sum((cells - expected) ** 2 / expected) < 85.4


@pytest.mark.parametrize(
  "platform", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)], indirect=True
)
def test_where_too_few_differ_all_is_drawn_again(platform):
  size, count, times = 30, 29, 3_000
  # Of so many draws two numbers or more are missing now and then.
  missing = size * (1 - 1 / size) ** _subset.draws(size, count)
  assert 1 - (1 + missing) * math.exp(-missing) > 0.05
  found = _many("by marks", [size], [count], times, seed=4)
  assert np.all(np.diff(found, axis=1) > 0)
  left_out = size * (size - 1) // 2 - found.sum(axis=1)
  expected = times / size
  counts = np.bincount(left_out, minlength=size)
  # The 0.999 quantile of chi-square with 29 degrees of freedom.
  assert np.sum((counts - expected) ** 2 / expected) < 58.3


def test_workers_draw_by_themselves():
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def each(key):
    key = jax.random.fold_in(key, jax.lax.axis_index("data"))
    return _draw_one(key, [90_000], [300])[None]

  mapped = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=P(), out_specs=P("data")))
  found = np.asarray(mapped(jax.random.key(0)))
  alone = jax.jit(lambda i: _draw_one(jax.random.fold_in(jax.random.key(0), i), [90_000], [300]))
  np.testing.assert_array_equal(found, [alone(0), alone(1)])
  assert len(set(found[0]) & set(found[1])) < 30
