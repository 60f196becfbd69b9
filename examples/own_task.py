"""A task of one's own: model, data, loss and score, trained by the whole system.

    python -m train.main --config=examples/own_task.py --workdir=DIR

The task is to fit a noisy wave with a small network. ``docs/training.md`` walks through it.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import default
from configs.schema import integer, number
from train import Score, models


class Points:
  """Batches of points of the wave; every number is a function of seed, epoch, step and worker."""

  def __init__(self, config: Any, seed: int):
    self.options, self.size, self.seed = config.task_options, config.batch_size, seed
    self.steps_per_epoch = self.options.points // (config.num_workers * config.batch_size)

  def batch(self, epoch: int, step: int, worker: int) -> dict[str, np.ndarray]:
    """Points and the values of the wave there, (batch_size, 1) float32."""
    rng = np.random.default_rng((self.seed, epoch, step, worker))
    x = rng.uniform(-2, 2, (self.size, 1)).astype(np.float32)
    noise = self.options.noise * rng.standard_normal(x.shape).astype(np.float32)
    return {"x": x, "y": np.sin(2 * x) + noise}


class Network(nnx.Module):
  """Two layers, scaled so that the learning rate need not know their width."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.hidden, self.out = nnx.Linear(1, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
    self.scale = width**-0.5

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.scale * self.out(jnp.tanh(self.hidden(x)))


class Wave:
  """The task; the config is all that it is given."""

  score = Score("test_error", "test error")
  unit = "points"
  # What it takes from the config's ``task_options`` and ``model``, checked before it is made.
  fields: ClassVar = {
    "task_options": {
      "points": integer(2000, "of an epoch", least=1),
      "noise": number(0.1, "its standard deviation", least=0),
    },
    "model": {"width": integer(256, "of the hidden layer", least=1)},
  }

  def __init__(self, config: Any):
    self.config, self.examples = config, config.batch_size
    self._make = lambda rngs: Network(config.model.width, rngs)

  def source(self, seed: int) -> Points:
    """The training batches."""
    return Points(self.config, seed)

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    """Initial weights; the model keeps nothing beside them."""
    (params,) = models.init(self._make, key, nnx.Param)
    return params, ()

  def loss(self, params: Any, model_state: Any, batch: Any) -> Any:
    """The mean square of what is missed, the state as it was, and metrics."""
    missed = models.rebuild(self._make, Param=params)(batch["x"]) - batch["y"]
    loss = jnp.mean(missed**2)
    return loss, (model_state, {"train_loss": loss})

  def statistics(self, model_state: Any) -> Any:
    """Nothing that an evaluation would need."""
    return model_state

  def evaluate(self, params: Any, statistics: Any) -> dict[str, float]:
    """The error on points that were not trained on, without noise."""
    x = jnp.linspace(-2, 2, 200).reshape(-1, 1)
    out = models.rebuild(self._make, Param=params)(x)
    return {"test_error": float(jnp.sqrt(jnp.mean((out - jnp.sin(2 * x)) ** 2)))}


def get_config() -> Any:
  """5 workers, rTop-k at 10 % against no compression."""
  config = default.get_config()
  config.task = "examples.own_task:Wave"
  config.task_options = {"points": 2000, "noise": 0.1}
  config.model = {"width": 256}
  config.methods, config.density, config.momentum = ("none", "rtopk"), 0.1, 0.0
  config.batch_size, config.epochs, config.warmup_epochs, config.learning_rate = 20, 20, 1, 1.0
  return config
