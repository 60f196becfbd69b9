"""What several tests of training start from."""

import pytest

from tests.train import tiny


@pytest.fixture
def config():
  config = tiny.get_config()
  config.workers = "simulated"
  return config
