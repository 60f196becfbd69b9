"""Members of sets by number, against NumPy; and entries of a vector by runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtopk_jax.kernels._bitset import GROUP, BitSet
from rtopk_jax.vector._vector import ALIGN, Vector, places


def _sets(size):
  rng = np.random.default_rng(11)
  return {
    "sparse": (rng.random(size) < 0.01) | (np.arange(size) == 7),
    "dense": rng.random(size) < 0.9,
    "all": np.ones(size, bool),
    "one end": np.arange(size) >= size - 70,
    "clusters": np.repeat(np.arange(size // 32) % 7 == 3, 32),
    "one": np.arange(size) == 5,
  }


MANY = 1 << 14

_of = jax.jit(lambda members: BitSet.of(members).words)
_locate = jax.jit(lambda words, *of: BitSet(words, 1).locate(*of), static_argnums=2)
_first = jax.jit(lambda words, count: BitSet(words, 1).first(count), static_argnums=1)


@pytest.mark.parametrize(
  ("platform", "words"),
  [
    ("cpu", 40 * GROUP),
    ("gpu", 40 * GROUP),
    ("cpu", 700 * GROUP),
    pytest.param("cpu", GROUP, marks=pytest.mark.slow),
    pytest.param("gpu", GROUP, marks=pytest.mark.slow),
    pytest.param("gpu", 700 * GROUP, marks=pytest.mark.slow),
  ],
  indirect=["platform"],
)
def test_members_by_number(platform, words):
  for name, members in _sets(32 * words).items():
    expected = np.flatnonzero(members)
    found = _of(members)
    assert found.shape == (words,)
    ranks = np.random.default_rng(1).integers(0, expected.size, 50).astype(np.int32)
    np.testing.assert_array_equal(_locate(found, ranks), expected[ranks], err_msg=name)
    # So many that a table is made.
    many = np.resize(np.arange(min(expected.size, MANY), dtype=np.int32), MANY)
    np.testing.assert_array_equal(_locate(found, many, MANY), expected[many], err_msg=name)
    if name in ("clusters", "sparse"):
      # As many as there are.
      first = _first(found, expected.size)
      np.testing.assert_array_equal(first, expected, err_msg=name)
    for count in (1, 70, 9 * words):
      if count <= expected.size:
        first = _first(found, count)
        np.testing.assert_array_equal(first, expected[:count], err_msg=name)


def test_too_few_members_are_answered_in_range():
  for members in (np.zeros(256, bool), np.arange(256) == 200):
    found = np.asarray(_first(_of(members), 90))
    assert found.shape == (90,)
    assert np.all((found >= 0) & (found < 256))


@pytest.mark.parametrize("size", [5, 48, 16 * 3 * 7, 16 * 3 * 7 + 1, 1000])
def test_every_so_many_runs(size):
  step = 3
  entries = np.arange(1, size + 1, dtype=np.float32)
  vector = Vector(places([(size,)]), ((jnp.asarray(entries), jnp.ones(size)),), lambda x, y: x * y)
  runs = np.pad(entries, (0, -size % (step * ALIGN))).reshape(-1, step, ALIGN)
  for offset in range(step):
    rows = vector.read_every(0, step, jnp.int32(offset), 0, runs.shape[0])
    np.testing.assert_array_equal(rows, runs[:, offset])
    if size > 2 * step * ALIGN:
      some = jax.jit(lambda at, i=offset: vector.read_every(0, step, jnp.int32(i), at, 1))(1)
      np.testing.assert_array_equal(some, runs[1:2, offset])
