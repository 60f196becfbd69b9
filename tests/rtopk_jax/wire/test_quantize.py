"""Values of 8, 4 and 2 bits: right on average, next to the truth, of known size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax.kernels import _bitpack
from rtopk_jax.wire import _quantize

LEVELS = {"int8": 127, "int4": 7, "int2": 1}


@functools.partial(jax.jit, static_argnums=1)
def encode(x, values, key):
  return _bitpack.join(_quantize.encode(x, values, key))


decode = jax.jit(_quantize.decode, static_argnums=(1, 2))


@pytest.mark.parametrize(
  ("width", "count", "words"),
  [
    (1, 1, 1),
    (1, 33, 2),
    (3, 70, 5 + 3),
    (7, 32, 7),
    (12, 41, 11 + 6),
    (13, 20_001, 5001 + 2501 + 626),
  ],
)
def test_numbers_of_any_width_come_back(width, count, words):
  numbers = np.random.default_rng(width).integers(0, 2**width, count).astype(np.uint32)
  code = jax.jit(lambda x: _bitpack.join(_bitpack.pack(x, width)))(numbers)
  assert code.shape == (words,) == (_bitpack.words(count, width),)
  np.testing.assert_array_equal(_bitpack.unpack(code, count, width), numbers)


def test_fields_of_a_word_are_as_far_apart_as_there_are_words():
  numbers = np.arange(1, 11, dtype=np.uint32)  # of four bits: eight to a word
  (code,) = _bitpack.pack(numbers, 4)
  assert [hex(x) for x in code.tolist()] == ["0x97531", "0xa8642"]


@pytest.mark.parametrize("values", LEVELS)
def test_rounding_is_unbiased_and_to_a_neighbour(values):
  x = np.random.default_rng(1).standard_normal(300).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), 2000)
  code = jax.jit(jax.vmap(lambda key: encode(x, values, key)))(keys)
  assert code.shape == (2000, _quantize.words(300, values))
  decoded = np.asarray(jax.jit(jax.vmap(lambda c: _quantize.decode(c, 300, values)))(code))
  scale = np.repeat([np.abs(x[:256]).max(), np.abs(x[256:]).max()], [256, 44])
  step = scale / LEVELS[values]
  assert np.all(np.abs(decoded - x) <= step * 1.001)
  # The mean of 2,000 draws: five standard deviations of at most half a step each.
  assert np.all(np.abs(decoded.mean(axis=0) - x) <= 5 * 0.5 * step / np.sqrt(2000))
  largest = np.abs(x) == scale
  expected = np.broadcast_to(x[largest], (2000, 2))
  np.testing.assert_allclose(decoded[:, largest], expected, rtol=1e-6)


def test_draws_are_even_and_unrelated():
  """Over the entries under one key, over keys for one entry, and of neighbours together."""
  keys = jax.random.split(jax.random.key(7), 4096)
  draws = np.asarray(jax.jit(jax.vmap(lambda key: _quantize._uniform(key, 0, (16, 256))))(keys))
  draws = draws.reshape(4096, 4096)
  assert draws.min() >= 0
  assert draws.max() < 1
  samples = {"entries": draws[0], "keys": draws[:, 17], "other key": draws[5]}
  for name, sample in samples.items():
    cells = np.bincount((sample * 64).astype(int), minlength=64)
    # Chi-square of 63 degrees of freedom: its mean and five standard deviations.
    assert np.sum((cells - 64.0) ** 2 / 64) < 63 + 5 * np.sqrt(2 * 63), name
  pairs = {"entries": (draws[0, :-1], draws[0, 1:]), "keys": (draws[:, 3], draws[:, 4])}
  pairs |= {"both": (draws[0], draws[1]), "far": (draws[0, :-256], draws[0, 256:])}
  for name, (a, b) in pairs.items():
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size), name


@pytest.mark.parametrize("values", LEVELS)
def test_corners(values):
  key = jax.random.key(3)
  # Of less than the smallest normal number times L, compiled code may make zero.
  for x in (np.zeros(5), [3e38, -3e38, 1.0], [2e-36, -2e-36], [2.5]):
    x = np.asarray(x, np.float32)
    decoded = np.asarray(decode(encode(x, values, key), x.size, values))
    assert np.all(np.isfinite(decoded))
    assert np.all(np.abs(decoded - x) <= np.abs(x).max())
    largest = np.abs(x) == np.abs(x).max()
    # A product with s/L may be a little off.
    np.testing.assert_allclose(decoded[largest], x[largest], rtol=1e-6)
  bad = decode(encode(np.float32([1, np.nan]), values, key), 2, values)
  assert not np.any(np.isfinite(bad))


def test_a_key_is_needed():
  slices = rtopk_jax.SparseSlices(jnp.ones(2), jnp.array([0, 3]), 5)
  with pytest.raises(ValueError, match="values='int8' are rounded at random; pass a key"):
    rtopk_jax.Wire(values="int8").encode(slices)
  with pytest.raises(ValueError, match=r'indices="block".*scope=rtopk_jax.Block'):
    rtopk_jax.Wire(indices="block").encode(slices)
