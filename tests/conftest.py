"""Fixtures that tests of several packages ask for."""

import jax
import pytest

import rtopk_jax


@pytest.fixture
def usual_promotion():
  """The usual promotion of dtypes, for code of others that relies on it.

  ``optax.adam`` and what is built on it raise a float decay to an int32 count, and Flax, Equinox and
  most training code multiply arrays of mixed dtypes; strict promotion refuses both.
  """
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def platform(request):
  """The platform that a test's programs are traced for; they run on CPUs.

  Each in turn, or those that a test names by ``indirect`` parameters.
  """
  with rtopk_jax.platform(request.param):
    yield request.param
