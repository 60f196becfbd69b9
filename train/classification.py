"""Image classification: what a step minimises and what an evaluation counts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data import Images
from train.models import ResNet


class Classification:
  """A network that is trained to name what an image shows.

  Args:
    config: the experiment's ``model`` section.
    images: the data set.
  """

  def __init__(self, config: Any, images: Images):
    self.config, self.images = config, images
    # Weights are drawn once: optimising that program takes longer than running it.
    self.init = jax.jit(self._init, compiler_options={"xla_backend_optimization_level": 0})
    self.evaluate = jax.jit(self._evaluate)

  def _network(self, rngs: nnx.Rngs) -> ResNet:
    return ResNet(
      stages=tuple(self.config.stages),
      width=self.config.width,
      num_classes=self.images.num_classes,
      channels=self.images.channels,
      stem=self.config.stem,
      rngs=rngs,
    )

  def _init(self, key: jax.Array) -> tuple[Any, Any]:
    """Initial weights and batch statistics."""
    _, params, stats = nnx.split(self._network(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

  def _apply(self, params: Any, stats: Any, image: jax.Array, train: bool) -> tuple[jax.Array, Any]:
    graphdef, abstract_params, abstract_stats = nnx.split(
      nnx.eval_shape(lambda: self._network(nnx.Rngs(0))), nnx.Param, nnx.BatchStat
    )
    nnx.replace_by_pure_dict(abstract_params, params)
    nnx.replace_by_pure_dict(abstract_stats, stats)
    network = nnx.merge(graphdef, abstract_params, abstract_stats, copy=True)
    logits = network(image, train)
    return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

  def loss(self, params: Any, stats: Any, batch: Any) -> tuple[jax.Array, tuple[Any, dict]]:
    """Mean cross entropy of a batch; beside it the new statistics and the share of right answers."""
    logits, stats = self._apply(params, stats, batch["image"], train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    accuracy = jnp.mean((jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32))
    return loss, (stats, {"train_loss": loss, "train_accuracy": accuracy})

  def _evaluate(self, params: Any, stats: Any, batch: Any) -> dict[str, jax.Array]:
    """Sums over the examples of a batch that are not padding."""
    logits, _ = self._apply(params, stats, batch["image"], train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    right = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
    real = batch["real"]
    return {
      "test_loss": jnp.sum(loss * real),
      "test_accuracy": jnp.sum(right * real),
      "count": jnp.sum(real),
    }

  def test_batches(self, batch_size: int):
    """The test set in batches of one size, the last one padded."""
    split = self.images.test
    for start in range(0, split.size, batch_size):
      indices = np.arange(start, start + batch_size)
      batch = split.read(np.minimum(indices, split.size - 1))
      yield {
        "image": self.images.normalise(batch["image"]),
        "label": batch["label"],
        "real": (indices < split.size).astype(np.float32),
      }
