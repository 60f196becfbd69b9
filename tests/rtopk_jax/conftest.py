"""Fixtures of the tests of the library."""

import jax
import pytest

import rtopk_jax


@pytest.fixture
def platform(request):
  """The platform that a test's programs are traced for, by ``indirect`` parameters; they run on CPUs."""
  jax.clear_caches()
  with rtopk_jax.platform(request.param):
    yield request.param
  jax.clear_caches()
