"""Programs traced under ``rtopk_jax.platform``, beside those that were traced before."""

import jax
import jax.numpy as jnp
import pytest

import rtopk_jax

# Long enough to be searched, which platforms do in different ways.
_SHAPES = (jax.ShapeDtypeStruct((50_000,), jnp.float32), jax.eval_shape(jax.random.key, 0))


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_one_function_is_traced_for_each_platform(name):
  select = jax.jit(lambda x, key: rtopk_jax.top_k(0.01)(x, key).indices)
  program = lambda: str(select.trace(*_SHAPES).jaxpr)
  before = program()
  with rtopk_jax.platform(name):
    during = program()
    with rtopk_jax.platform("cpu"):
      assert program() == before
    assert program() == during
  assert during != before
  assert program() == before


def test_it_is_over_when_an_error_ends_it():
  select = jax.jit(lambda x, key: rtopk_jax.top_k(0.01)(x, key).indices)
  before = str(select.trace(*_SHAPES).jaxpr)
  with pytest.raises(KeyError), rtopk_jax.platform("gpu"):
    raise KeyError
  assert str(select.trace(*_SHAPES).jaxpr) == before


def test_another_platform_is_refused():
  with pytest.raises(ValueError, match=r"name must be one of 'cpu', 'gpu', 'tpu', got 'cuda'"):
    rtopk_jax.platform("cuda").__enter__()
