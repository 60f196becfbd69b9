"""The residual networks: sizes that are known, and a block worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.models import ResNet


def _parameters(**sizes) -> int:
  network = nnx.eval_shape(lambda: ResNet(**sizes, rngs=nnx.Rngs(0)))
  return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))


def test_resnet18_for_cifar10():
  sizes = {"stages": (2, 2, 2, 2), "width": 64, "num_classes": 10, "channels": 3, "stem": "small"}
  assert _parameters(**sizes) == 11_173_962


def test_resnet34_for_imagenet():
  sizes = {"stages": (3, 4, 6, 3), "width": 64, "num_classes": 1000, "channels": 3}
  assert _parameters(**sizes, stem="imagenet") == 21_797_672


def test_imagenet_stem_shrinks_eightfold_before_the_last_stages():
  network = ResNet((1, 1), 4, 7, 3, "imagenet", nnx.Rngs(0))
  assert network(jnp.zeros((2, 32, 32, 3)), train=False).shape == (2, 7)


def test_unknown_stem_is_refused():
  with pytest.raises(ValueError, match="stem must be one of"):
    ResNet((1,), 4, 10, 1, "large", nnx.Rngs(0))


def _convolve(x, kernel, stride):
  size = kernel.shape[0]
  pad = size // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  height = (x.shape[1] - size) // stride + 1
  out = np.zeros((x.shape[0], height, height, kernel.shape[-1]))
  for i in range(height):
    for j in range(height):
      patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
      out[:, i, j] = np.einsum("nhwc,hwco->no", patch, kernel)
  return out


def _normalise(x):
  return (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)


def test_network_agrees_with_numpy():
  network = ResNet((1, 1), 4, 3, 2, "small", nnx.Rngs(0))
  images = np.random.default_rng(0).normal(size=(5, 6, 6, 2))
  kernel = lambda conv: np.asarray(conv.kernel[...], np.float64)

  x = np.maximum(_normalise(_convolve(images, kernel(network.stem), 1)), 0)
  for block, stride in zip(network.blocks, (1, 2), strict=True):
    y = np.maximum(_normalise(_convolve(x, kernel(block.conv1), stride)), 0)
    y = _normalise(_convolve(y, kernel(block.conv2), 1))
    if stride == 2:
      x = _normalise(_convolve(x, kernel(block.conv_shortcut), stride))
    x = np.maximum(x + y, 0)
  expected = x.mean(axis=(1, 2)) @ np.asarray(network.head.kernel[...], np.float64)

  logits = network(jnp.asarray(images, jnp.float32), train=True)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
