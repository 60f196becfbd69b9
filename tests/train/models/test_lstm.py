"""The LSTM: its size, and agreement with NumPy, forward and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.train.models import networks
from train import models
from train.models import lstm

SIZES = {"vocabulary": 11, "units": 6, "layers": 2, "init_scale": 0.5}


def _make(dropout=0.0, dtype="float32"):
  return lambda rngs: models.LSTM(**SIZES, dropout=dropout, dtype=dtype, rngs=rngs)


@pytest.fixture
def example():
  """Parameters, words, carry."""
  (params,) = models.init(_make(), jax.random.key(0), nnx.Param)
  rng = np.random.default_rng(0)
  words = rng.integers(0, 11, (3, 5)).astype(np.int32)
  carry = rng.normal(size=(2, 2, 3, 6)).astype(np.float32)
  return params, words, carry


def _float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_the_paper_s_size():
  make = lambda: models.LSTM(
    vocabulary=10_000, units=1500, layers=2, dropout=0.65, init_scale=0.04, rngs=nnx.Rngs(0)
  )
  params = nnx.state(nnx.eval_shape(make), nnx.Param)
  # The embedding is the output's too: 15 M. A layer has two matrices of 9 M, and a bias for each of its
  # 6,000 gates. The output has a bias for each word.
  expected = 15_000_000 + 2 * (2 * 9_000_000 + 6_000) + 10_000
  assert sum(x.size for x in jax.tree.leaves(params)) == expected == 51_022_000


def test_parameters_start_uniformly(example):
  values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(example[0])])
  assert values.min() > -0.5
  assert values.max() < 0.5
  np.testing.assert_allclose([values.mean(), values.std()], [0, 0.5 / np.sqrt(3)], atol=0.03)


def _ones(params, words):
  return np.ones((3, words.shape[1], words.shape[0], params["embedding"].shape[1]))


def test_logits_and_carry_agree_with_numpy(example):
  params, words, carry = example
  network = models.rebuild(_make(), Param=params)
  logits, after = jax.jit(network)(jnp.asarray(words), jnp.asarray(carry))
  expected, expected_after, _ = networks.lstm(_float64(params), words, carry, _ones(params, words))
  assert logits.dtype == after.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(after, expected_after, rtol=1e-5, atol=1e-5)


def test_a_text_in_two_parts_is_the_text_in_one(example):
  params, words, carry = example
  network = models.rebuild(_make(), Param=params)
  whole, after = network(jnp.asarray(words), jnp.asarray(carry))
  first, between = network(jnp.asarray(words[:, :2]), jnp.asarray(carry))
  second, after_both = network(jnp.asarray(words[:, 2:]), between)
  np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(after_both, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.65])
def test_gradients_agree_with_numpy(example, dropout, monkeypatch):
  params, words, carry = example
  rng = np.random.default_rng(1)
  masks = _ones(params, words)
  if dropout:
    masks = (rng.random(masks.shape) < 1 - dropout) / (1 - dropout)
    # The model is given these masks in the place of random ones, in the order in which it asks.
    given = iter(masks)
    dropped = lambda x, rate, key: x * jnp.asarray(next(given), jnp.float32)
    monkeypatch.setattr(lstm, "dropout", dropped)
  targets = rng.integers(0, 11, words.shape)

  def loss(params):
    network = models.rebuild(_make(dropout), Param=params)
    logits, _ = network(jnp.asarray(words), jnp.asarray(carry), jax.random.key(0))
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(targets)).sum()

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  exact = _float64(params)
  logits, _, tape = networks.lstm(exact, words, carry, masks)
  np.testing.assert_allclose(value, networks.cross_entropy(logits, targets).sum(), rtol=1e-5)
  shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  d_logits = shares - np.eye(11)[targets]
  expected = networks.lstm_gradients(exact, words, masks, tape, d_logits)
  assert jax.tree.structure(gradients) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_dropout_keeps_the_mean_and_follows_the_key():
  x = jnp.ones((200, 300))
  dropped = lstm.dropout(x, 0.65, jax.random.key(1))
  assert set(np.unique(dropped).tolist()) == {0.0, float(np.float32(1 / np.float32(0.35)))}
  np.testing.assert_allclose(np.mean(dropped), 1, atol=0.02)
  np.testing.assert_array_equal(dropped, lstm.dropout(x, 0.65, jax.random.key(1)))
  assert (dropped != lstm.dropout(x, 0.65, jax.random.key(2))).any()


def test_dropout_is_between_layers_only(example):
  """With everything dropped but what goes from one time to the next, words make no difference."""
  params, words, carry = example
  rate = 1 - 1e-9
  network = models.rebuild(_make(rate), Param=params)
  _, after = network(jnp.asarray(words), jnp.asarray(carry), jax.random.key(0))
  other = (words + 1) % 11
  _, same = network(jnp.asarray(other), jnp.asarray(carry), jax.random.key(0))
  np.testing.assert_array_equal(after, same)
  masks = 0 * _ones(params, words)
  _, expected, _ = networks.lstm(_float64(params), words, carry, masks)
  np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


def test_no_key_is_no_dropout(example):
  params, words, carry = example
  with_rate = models.rebuild(_make(0.65), Param=params)
  without = models.rebuild(_make(0.0), Param=params)
  a, _ = with_rate(jnp.asarray(words), jnp.asarray(carry))
  b, _ = without(jnp.asarray(words), jnp.asarray(carry), jax.random.key(0))
  np.testing.assert_array_equal(a, b)


def test_bfloat16_is_a_rounded_float32(example):
  params, words, carry = example
  arguments = jnp.asarray(words), jnp.asarray(carry)
  full, _ = models.rebuild(_make(), Param=params)(*arguments)
  half, after = models.rebuild(_make(dtype="bfloat16"), Param=params)(*arguments)
  assert half.dtype == after.dtype == jnp.float32
  assert 0 < np.abs(np.asarray(half - full)).max() < 0.05


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_dropout_is_refused(rate):
  with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got"):
    _make(rate)(nnx.Rngs(0))
