"""A random k of r numbers for each of many rows: exactly so many, every subset as likely as another."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtopk_jax.kernels import here
from rtopk_jax.select import _ranks, _subset


def _by_keys(key, k, r):
  return _ranks._by_keys(key, k, jnp.asarray(r, jnp.int32), int(max(r)))


WAYS = {"by keys": _by_keys, "by marks": _ranks._by_marks}
# On TPUs nothing is marked.
EVERYWHERE = [
  pytest.param(platform, way, marks=[] if platform == "cpu" else pytest.mark.slow)
  for platform in ("cpu", "gpu", "tpu")
  for way in WAYS
  if (platform, way) != ("tpu", "by marks")
]


def _drawn(way, k, r, seed):
  return np.asarray(jax.jit(lambda key: WAYS[way](key, k, r))(jax.random.key(seed)))


@pytest.mark.parametrize(("platform", "way"), EVERYWHERE, indirect=["platform"])
def test_all_subsets_are_equally_likely_and_rows_draw_for_themselves(platform, way):
  rows = 8_000
  found = _drawn(way, np.full(rows, 3), np.full(rows, 6), seed=1)
  subsets = {x: i for i, x in enumerate(itertools.combinations(range(6), 3))}
  which = np.array([subsets[tuple(row)] for row in found.tolist()])
  counts = np.bincount(which, minlength=len(subsets))
  expected = rows / len(subsets)
  # The 0.999 quantile of chi-square with 19 degrees of freedom.
  assert np.sum((counts - expected) ** 2 / expected) < 43.8
  same = np.mean(which[1:] == which[:-1])
  assert abs(same - 1 / 20) < 5 * math.sqrt(1 / 20 / rows)


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_several_sizes(way):
  k, r = np.array([1, 5, 40, 40, 2]), np.array([1, 5, 700, 41, 65])
  found = _drawn(way, k, r, seed=2)
  assert found.shape == (5, 40)
  for row, count, size in zip(found, k, r, strict=True):
    numbers = row[:count]
    assert np.all(np.diff(numbers) > 0)
    assert numbers[0] >= 0
    assert numbers[-1] < size


@pytest.mark.parametrize("way", WAYS)
def test_no_number_is_favoured_in_rows_of_many_chunks(way):
  rows, k, r = 1_200, 20, 1_000
  assert rows * r > 2 * here().keys_at_once
  found = _drawn(way, np.full(rows, k), np.full(rows, r), seed=3)
  assert np.all(np.diff(found, axis=1) > 0)
  counts = np.bincount(found.reshape(-1), minlength=r)
  expected = rows * k / r
  # 999 degrees of freedom, of which drawing without replacement lowers the variance: five standard deviations.
  assert np.sum((counts - expected) ** 2 / expected) < r + 5 * math.sqrt(2 * r)
  of_rows = np.unique(found, axis=0)
  assert len(of_rows) == rows


def test_rows_where_too_few_differ_draw_again():
  size, count, rows = 30, 29, 3_000
  missing = size * (1 - 1 / size) ** _subset.draws(size, count)
  assert 1 - (1 + missing) * math.exp(-missing) > 0.05
  found = _drawn("by marks", np.full(rows, count), np.full(rows, size), seed=4)
  assert np.all(np.diff(found, axis=1) > 0)
  left_out = size * (size - 1) // 2 - found.sum(axis=1)
  counts, expected = np.bincount(left_out, minlength=size), rows / size
  # The 0.999 quantile of chi-square with 29 degrees of freedom.
  assert np.sum((counts - expected) ** 2 / expected) < 58.3


def test_most_numbers_left_out_are_not_given_a_key_each():
  """The memory that a draw of few of very many takes is a bit a number, and what a chunk needs."""
  rows, k, r = 4_096, 4, 4_096
  draw = lambda key: _ranks.draw(key, np.full(rows, k), np.full(rows, r), jnp.int32(0))
  compiled = jax.jit(draw).lower(jax.random.key(0)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < rows * r / 8 + 8 * here().keys_at_once
