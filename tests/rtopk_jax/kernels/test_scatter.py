"""Entries of leaves set at positions, on every platform, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtopk_jax.kernels import _scatter
from rtopk_jax.vector._vector import places
from tests.rtopk_jax.vectors import TILED_SHAPES, some_positions

WHERE = places(TILED_SHAPES)
POSITIONS = some_positions(TILED_SHAPES, 900)


def _leaves(dtype=np.float32):
  rng = np.random.default_rng(7)
  return [rng.laplace(size=shape).astype(dtype) for shape in TILED_SHAPES]


def _set(leaves, positions, values):
  """Copies of leaves with values at positions, one after another."""
  written = [np.array(x) for x in leaves]
  for position, value in zip(positions, values, strict=True):
    for place, x in zip(WHERE, written, strict=True):
      if place.first <= position < place.first + place.size:
        x.reshape(-1)[position - place.first] = value
  return written


@pytest.mark.parametrize("kind", ["values", "a scalar", "zeros"])
def test_entries_are_put_to_leaves(platform, kind):
  keep = POSITIONS % 3 > 0
  values = np.sin(POSITIONS.astype(np.float32)) if kind == "values" else np.float32(0)
  zeros = kind == "zeros"
  put = jax.jit(
    lambda leaves, positions, values, keep: _scatter.put(
      leaves, WHERE, positions, values, keep=keep, are_zero=zeros
    )
  )
  found = put(_leaves(), POSITIONS, values, keep)
  expected = _set(_leaves(), POSITIONS[keep], np.broadcast_to(values, keep.shape)[keep])
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_leaves_of_16_bits_keep_what_is_finite_finite(platform, dtype):
  leaves = [x.astype(dtype) for x in _leaves(jnp.dtype(dtype))]
  values = np.where(POSITIONS % 2 > 0, np.float32(3e38), np.float32(-1.5))
  put = jax.jit(lambda leaves, *x: _scatter.put(leaves, WHERE, *x))
  most = np.float32(jnp.finfo(dtype).max)
  expected = _set(leaves, POSITIONS, np.clip(values, -most, most))
  for x, y in zip(put(leaves, POSITIONS, values), expected, strict=True):
    assert x.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(x.astype("float32"), y.astype("float32"))


def test_entries_are_put_to_what_is_made_of_leaves(platform):
  """The function works on leaves in any shape; positions mean what they do elsewhere."""
  values = np.sin(POSITIONS.astype(np.float32))

  def function(where, lists):
    both = [a + 2 * b for a, b in zip(*lists, strict=True)]
    put = _scatter.put(both, where, jnp.asarray(POSITIONS[::2]), jnp.asarray(values[::2]))
    return [put, lists[1], []]

  leaves = _leaves()
  made, same, nothing = jax.jit(lambda x: _scatter.in_folds(WHERE, [x, x], function))(leaves)
  expected = _set([3 * x for x in leaves], POSITIONS[::2], values[::2])
  for x, y in zip(made, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6)
  for x, y in zip(same, leaves, strict=True):
    np.testing.assert_array_equal(x, y)
  assert nothing == []
