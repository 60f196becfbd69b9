"""Image classification: what a step minimises and what an evaluation counts."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.core import Tracer
from jax.experimental import multihost_utils

import data
from train import models
from train.tasks import named
from train.tasks.task import Score

_FIGURES = ("test_loss", "test_accuracy")


class Classification:
  """A network that is trained to name what an image shows.

  Args:
    config: the experiment.
    images: the data set.
  """

  score = Score("test_accuracy", "test accuracy", percent=True)
  unit = "images"

  def __init__(self, config: Any, images: data.Images):
    self.config, self.images = config, images
    self.examples = config.batch_size
    self._model = named.find("config.model.name", config.model.name, models.IMAGE_MODELS)
    # Weights are drawn once: optimising that program takes longer than running it.
    self._init_alone = jax.jit(self._init, compiler_options={"xla_backend_optimization_level": 0})
    self._evaluate = jax.jit(self._sums)

  def source(self, seed: int) -> data.Source:
    """Each worker's share of the training images."""
    return data.ImageSource(self.images, self.config.num_workers, self.config.batch_size, seed)

  def _network(self, rngs: nnx.Rngs) -> Any:
    return self._model(
      **named.sizes(self.config),
      num_classes=self.images.num_classes,
      channels=self.images.channels,
      rngs=rngs,
    )

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    """Initial weights and batch statistics; a program of its own, or a part of the one that is being traced."""
    # A part of another program cannot have options of the compiler.
    return self._init(key) if isinstance(key, Tracer) else self._init_alone(key)

  def _init(self, key: jax.Array) -> tuple[Any, Any]:
    params, stats = models.init(self._network, key, nnx.Param, nnx.BatchStat)
    return params, stats

  def _apply(
    self, params: Any, stats: Any, images: jax.Array, train: bool
  ) -> tuple[jax.Array, Any]:
    network = models.rebuild(self._network, Param=params, BatchStat=stats)
    mean, std = (
      jnp.array(x, jnp.float32).reshape(1, 1, 1, -1) for x in (self.images.mean, self.images.std)
    )
    logits = network((images.astype(jnp.float32) / 255 - mean) / std, train)
    return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

  def loss(
    self, params: Any, model_state: Any, batch: Any
  ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """Mean cross entropy of a batch; beside it the new statistics and the share of right answers."""
    logits, stats = self._apply(params, model_state, batch["image"], train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    accuracy = jnp.mean((jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32))
    return loss, (stats, {"train_loss": loss, "train_accuracy": accuracy})

  def _sums(self, params: Any, stats: Any, batch: Any) -> dict[str, jax.Array]:
    """Sums over the examples of a batch that are not padding."""
    logits, _ = self._apply(params, stats, batch["image"], train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    right = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
    real = batch["real"]
    return {"test_loss": jnp.sum(loss * real), "test_accuracy": jnp.sum(right * real)}

  def statistics(self, model_state: Any) -> Any:
    """The batch statistics, which are each worker's own in training."""
    return model_state

  def evaluate(self, params: Any, statistics: Any) -> dict[str, float]:
    """Loss and accuracy on the test set, of which every process takes its part of the batches."""
    size, processes = self.images.test.size, jax.process_count()
    loaded: Iterable[Any] = data.load_test(
      self.images,
      min(size, self.config.eval_batch_size),
      part=(jax.process_index(), processes),
    )
    sums: list[dict[str, jax.Array]] = []
    for batch in loaded:
      sums.append(self._evaluate(params, statistics, batch))
      # The device has the next batch while the one before is waited for, and no more than that.
      jax.block_until_ready(sums[-2:][0])
    found = np.array([[x[name] for name in _FIGURES] for x in jax.device_get(sums)], np.float32)
    if processes > 1:
      found = _of_all(found.reshape(-1, len(_FIGURES)), -(-size // self.config.eval_batch_size))
    # In the order of the batches, whoever took them: the same to the bit with any number of processes.
    return {name: float(np.sum(found[:, i])) / size for i, name in enumerate(_FIGURES)}


def _of_all(found: np.ndarray, batches: int) -> np.ndarray:
  """Sums of all batches, of which this process has every nth."""
  processes = jax.process_count()
  mine = np.zeros((-(-batches // processes), found.shape[1]), found.dtype)
  mine[: len(found)] = found
  gathered = np.asarray(multihost_utils.process_allgather(mine))
  return gathered.swapaxes(0, 1).reshape(-1, found.shape[1])[:batches]
