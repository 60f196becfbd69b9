"""A task of a user's own, small enough to be trained many times, and its config.

python -m train.main --config=tests/train/tiny.py --workdir=DIR
"""

import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from train import Score

INPUTS, OUTPUTS, EXAMPLES = 12, 10, 240


class Source:
  """Noisy linear data; every number is a function of seed, epoch, step and worker."""

  def __init__(self, config: Any, seed: int):
    self.options, self.size, self.seed = config.task_options, config.batch_size, seed
    self.steps_per_epoch = EXAMPLES // (config.num_workers * config.batch_size)

  def batch(self, epoch: int, step: int, worker: int) -> dict[str, np.ndarray]:
    time.sleep(self.options.pause)
    rng = np.random.default_rng((self.seed, epoch, step, worker))
    x = rng.standard_normal((self.size, INPUTS)).astype(np.float32)
    number = epoch * self.steps_per_epoch + step
    if self.options.bad_from <= number < self.options.bad_until and worker == 1:
      x[0, 0] = np.nan
    # For tests of processes that have other data than the rest.
    x += np.float32(os.environ.get("TINY_SHIFT", 0))
    return {"x": x, "y": np.tanh(x @ weights()) + 0.1 * rng.standard_normal((self.size, OUTPUTS))}


def weights() -> np.ndarray:
  """What is to be found."""
  return np.random.default_rng(7).standard_normal((INPUTS, OUTPUTS)) / 3


class Tiny:
  """One layer, whose inputs are centred by a running mean."""

  score = Score("test_loss", "test loss")
  unit = "examples"

  def __init__(self, config: Any):
    self.config, self.examples = config, config.batch_size
    self.traced = 0

  def source(self, seed: int) -> Source:
    return Source(self.config, seed)

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    params = {
      "w": jax.random.normal(key, (INPUTS, OUTPUTS)) / 4,
      "b": jnp.zeros(OUTPUTS, jnp.float32),
    }
    return params, {"mean": jnp.zeros(INPUTS, jnp.float32)}

  def loss(self, params: Any, model_state: Any, batch: Any) -> Any:
    self.traced += 1
    mean = model_state["mean"] + (batch["x"].mean(axis=0) - model_state["mean"]) / 8
    out = jnp.tanh((batch["x"] - mean[None]) @ params["w"] + params["b"][None])
    loss = jnp.mean((out - batch["y"].astype(jnp.float32)) ** 2)
    return loss, ({"mean": mean}, {"train_loss": loss})

  def statistics(self, model_state: Any) -> Any:
    return model_state

  def evaluate(self, params: Any, statistics: Any) -> dict[str, float]:
    x = np.random.default_rng(5).standard_normal((64, INPUTS))
    w, b, mean = (np.asarray(a, np.float64) for a in (params["w"], params["b"], statistics["mean"]))
    return {
      "test_loss": float(np.mean((np.tanh((x - mean) @ w + b) - np.tanh(x @ weights())) ** 2))
    }


def get_config() -> Any:
  """4 workers, 3 epochs of 10 steps."""
  config = default.get_config()
  config.task = "tests.train.tiny:Tiny"
  config.task_options = {"pause": 0.0, "bad_from": 0, "bad_until": 0}
  config.num_workers, config.batch_size = 4, 6
  config.methods, config.density = ("rtopk",), 0.1
  config.epochs, config.warmup_epochs, config.learning_rate = 3, 1, 0.3
  config.log_every, config.check_every = 1, 5
  config.compilation_cache = None
  return config
