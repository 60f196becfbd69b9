"""What several tests of training start from."""

import pytest

from configs import quickstart
from tests.train import tiny


@pytest.fixture
def config():
  config = tiny.get_config()
  config.workers = "simulated"
  return config


@pytest.fixture
def digits():
  """The quickstart made tiny: a network of 5,122 parameters, 2 epochs of 2 steps."""
  config = quickstart.get_config()
  config.model.stages = (1, 1)
  config.model.width = 8
  config.batch_size = 143
  config.seeds = (0,)
  config.epochs = 2
  config.warmup_epochs = 1
  config.compilation_cache = None
  return config
