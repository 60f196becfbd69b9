"""What lies in tiles, as on TPUs: words of columns of leaves in all shapes, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax.kernels._tiles import TiledBitSet
from rtopk_jax.select import _search
from rtopk_jax.select._keys import magnitude_keys
from tests.rtopk_jax.harness import check_mapped
from tests.rtopk_jax.vectors import (
  PACKINGS,
  TILED_SHAPES,
  by_position,
  laplace,
  largest_positions,
  vector_of,
)

pytestmark = [
  pytest.mark.parametrize("platform", ["tpu"], indirect=True),
  pytest.mark.usefixtures("platform"),
]

COUNT = sum(map(np.prod, TILED_SHAPES))
GROUPS = [[i] for i in range(len(TILED_SHAPES))]


def _leaves(kind):
  rng = np.random.default_rng(7)
  leaves = [rng.laplace(size=shape).astype(np.float32) for shape in TILED_SHAPES]
  if kind == "ties":
    leaves = [np.round(x) for x in leaves]
  if kind == "zeros":
    leaves = [np.where(rng.random(x.shape) < 0.001, x, 0).astype(np.float32) for x in leaves]
  return leaves


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _found(leaves, kind, counts, packing):
  packed = PACKINGS[packing](vector_of(leaves, kind))
  found, statistics = _search.largest(packed, counts, magnitude_keys)
  positions = found.locate(jnp.arange(sum(counts), dtype=jnp.int32))
  return positions, packed.take(positions), statistics.square


def _check(leaves, kind, counts, groups, packing):
  positions, values, square = _found(leaves, kind, tuple(counts), packing)
  expected = largest_positions(leaves, groups, counts)
  np.testing.assert_array_equal(positions, expected)
  np.testing.assert_array_equal(values, by_position(leaves)[expected])
  np.testing.assert_allclose(square, sum(np.sum(x**2) for x in leaves), rtol=1e-5)


@pytest.mark.parametrize(
  ("count", "packing"),
  [
    (700, "tiles"),
    pytest.param(700, "exact tiles", marks=pytest.mark.slow),
    pytest.param(1, "tiles", marks=pytest.mark.slow),
    pytest.param(COUNT - 1, "tiles", marks=pytest.mark.slow),
  ],
)
def test_one_vector(count, packing):
  for kind in ("plain", "ties", "zeros"):
    _check(_leaves(kind), "one", [count], [range(len(TILED_SHAPES))], packing)


@pytest.mark.parametrize(
  ("kind", "packing"),
  [
    ("each", "tiles"),
    ("joined", "exact tiles"),
    pytest.param("joined", "tiles", marks=pytest.mark.slow),
  ],
)
def test_groups(kind, packing):
  counts = [max(1, int(np.prod(shape)) // 9) for shape in TILED_SHAPES]
  counts[1], counts[6] = 1, 7000
  for values in ("plain", "ties"):
    _check(_leaves(values), kind, counts, GROUPS, packing)


@pytest.mark.slow
def test_vmap_and_shard_map_agree():
  selector = rtopk_jax.rtop_k(0.01, 5)
  keys = jax.random.split(jax.random.key(0), 2)
  vectors = jnp.stack([laplace(140_003), jnp.zeros(140_003)])  # one needs more turns than the other
  check_mapped(lambda v, k: selector(v, k).indices, vectors, keys)


def test_members_are_counted_row_by_row():
  members = np.random.default_rng(0).random((37, 512)) < 0.1
  numbers = np.flatnonzero(members)
  ranks = jnp.arange(numbers.size, dtype=jnp.int32)
  found = jax.jit(lambda x, ranks: TiledBitSet.of(x).locate(ranks))(members, ranks)
  np.testing.assert_array_equal(found, numbers)
