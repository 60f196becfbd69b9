"""What tests of the real data sets start from."""

import os

import pytest


@pytest.fixture(scope="module")
def real():
  """The folder of the real data sets."""
  where = os.environ.get("RTOPK_JAX_DATA")
  if not where:
    pytest.skip("RTOPK_JAX_DATA does not name a folder with tensorflow_datasets' data sets")
  return where
