"""The tiny task with a hidden layer, whose matrices are large enough to be sharded, and its config.

python -m train.main --config=tests/train/wide.py --workdir=DIR
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.train import tiny

WIDTH = 256


class Wide(tiny.Tiny):
  """Two layers."""

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    first, second = jax.random.split(key)
    params = {
      "up": jax.random.normal(first, (tiny.INPUTS, WIDTH)) / 4,
      "down": jax.random.normal(second, (WIDTH, tiny.OUTPUTS)) / 16,
      "b": jnp.zeros(tiny.OUTPUTS, jnp.float32),
    }
    return params, {"mean": jnp.zeros(tiny.INPUTS, jnp.float32)}

  def loss(self, params: Any, model_state: Any, batch: Any) -> Any:
    self.traced += 1
    mean = model_state["mean"] + (batch["x"].mean(axis=0) - model_state["mean"]) / 8
    hidden = jnp.tanh((batch["x"] - mean[None]) @ params["up"])
    out = hidden @ params["down"] + params["b"][None]
    loss = jnp.mean((out - batch["y"].astype(jnp.float32)) ** 2)
    return loss, ({"mean": mean}, {"train_loss": loss})

  def evaluate(self, params: Any, statistics: Any) -> dict[str, float]:
    x = np.random.default_rng(5).standard_normal((64, tiny.INPUTS))
    up, down, b = (np.asarray(params[name], np.float64) for name in ("up", "down", "b"))
    out = np.tanh((x - np.asarray(statistics["mean"])) @ up) @ down + b
    return {"test_loss": float(np.mean((out - np.tanh(x @ tiny.weights())) ** 2))}


def get_config() -> Any:
  """2 workers, 3 epochs of 10 steps."""
  config = tiny.get_config()
  config.task = "tests.train.wide:Wide"
  config.num_workers, config.batch_size, config.learning_rate = 2, 12, 0.1
  return config
