"""What several tests of training start from."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import quickstart
from tests.train import tiny
from tests.train.runs import Zygote


@pytest.fixture(autouse=True, scope="package")
def compiled(tmp_path_factory):
  """Programs are compiled once: many tests train the same network."""
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  yield
  jax.config.update("jax_compilation_cache_dir", None)
  # Else JAX goes on with the folder that it knows, and with the names of what was compiled first.
  compilation_cache.reset_cache()


@pytest.fixture(scope="package")
def zygote(tmp_path_factory):
  """Where real processes come from; they share what they compile."""
  zygote = Zygote(tmp_path_factory.mktemp("cache"))
  yield zygote
  zygote.close()


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
