"""Fixtures of the tests of the library."""

import jax
import pytest

import rtopk_jax


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def platform(request):
  """The platform that a test's programs are traced for; they run on CPUs.

  Each in turn, or those that a test names by ``indirect`` parameters.
  """
  # What was traced for one platform JAX would use again for another.
  is_other = request.param != "cpu"
  if is_other:
    jax.clear_caches()
  with rtopk_jax.platform(request.param):
    yield request.param
  if is_other:
    jax.clear_caches()
