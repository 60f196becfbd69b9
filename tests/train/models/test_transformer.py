"""The transformer: its size, agreement with NumPy, and that no word sees what comes after it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.train.models import networks
from train import models

SIZES = {"vocabulary": 11, "layers": 2, "heads": 2, "width": 8, "init_scale": 0.5}


def _make(**options):
  return lambda rngs: models.Transformer(**SIZES, **options, rngs=rngs)


def _words(seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 11, (3, 6)), jnp.int32)


@functools.cache
def _params(tied=True):
  (params,) = models.init(_make(tied=tied), jax.random.key(0), nnx.Param)
  return params


def _logits(params, words, key=None, **options):
  return models.rebuild(_make(**options), Param=params)(words, (), key)[0]


def test_the_size_of_nanogpt_s_on_a_cpu():
  make = lambda: models.Transformer(65, 4, 4, 128, nnx.Rngs(0))
  params = jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param))
  # 65 rows, 12 squares of the width in each layer, and 9 norms.
  expected = 65 * 128 + 4 * 12 * 128**2 + 9 * 128
  assert sum(x.size for x in params) == expected == 795_904


@pytest.mark.parametrize("tied", [True, False])
def test_logits_agree_with_numpy(tied):
  params, words = _params(tied), _words()
  assert ("head" in params) != tied
  logits = jax.jit(functools.partial(_logits, tied=tied, rotation_base=50.0))(params, words)
  exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  expected = networks.transformer(exact, np.asarray(words), heads=2, base=50.0)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_no_word_sees_what_comes_after_it():
  words = _words()
  logits = jax.jit(_logits)
  before = logits(_params(), words)
  after = logits(_params(), words.at[:, 4].set((words[:, 4] + 1) % 11))
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert (before[:, 4:] != after[:, 4:]).any(axis=-1).all()


@pytest.mark.slow
def test_a_layer_computed_twice_has_the_same_gradient():
  def gradient(params, remat):
    loss = lambda params: jnp.sum(jnp.sin(_logits(params, _words(), remat=remat)))
    return jax.grad(loss)(params)

  programs = [jax.make_jaxpr(lambda p, r=r: gradient(p, r))(_params()) for r in (False, True)]
  assert ["checkpoint" in str(x) or "remat" in str(x) for x in programs] == [False, True]
  plain, again = (jax.jit(gradient, static_argnums=1)(_params(), r) for r in (False, True))
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("usual_promotion")  # JAX's attention relies on it
def test_bfloat16_is_a_rounded_float32():
  logits = _logits(_params(), _words())
  rounded = jax.jit(functools.partial(_logits, dtype="bfloat16"))(_params(), _words())
  assert rounded.dtype == jnp.float32
  assert 0 < np.abs(rounded - logits).max() < 0.1 * np.abs(logits).max()


def test_dropout_follows_the_key_and_needs_one():
  drop = jax.jit(functools.partial(_logits, dropout=0.5))
  key = jax.random.key(1)
  np.testing.assert_allclose(
    drop(_params(), _words()), _logits(_params(), _words()), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_array_equal(drop(_params(), _words(), key), drop(_params(), _words(), key))
  other = drop(_params(), _words(), jax.random.key(2))
  assert (drop(_params(), _words(), key) != other).any()


def test_a_width_that_heads_cannot_share_is_refused():
  with pytest.raises(ValueError, match=r"model.width must be a multiple of 6, twice the heads"):
    models.Transformer(11, 1, 3, 8, nnx.Rngs(0))
