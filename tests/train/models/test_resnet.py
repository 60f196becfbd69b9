"""The residual networks: sizes that are known, and agreement with NumPy, forward and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.train.models import networks
from train import models

RESNET18 = {"stages": (2, 2, 2, 2), "width": 64, "num_classes": 10, "channels": 3, "stem": "small"}
RESNET34 = {
  "stages": (3, 4, 6, 3),
  "width": 64,
  "num_classes": 1000,
  "channels": 3,
  "stem": "imagenet",
}


def _abstract(sizes, **options):
  return nnx.eval_shape(lambda: models.ResNet(**sizes, **options, rngs=nnx.Rngs(0)))


def _parameters(network) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))


@pytest.mark.parametrize(("sizes", "count"), [(RESNET18, 11_173_962), (RESNET34, 21_797_672)])
def test_the_paper_s_sizes(sizes, count):
  assert _parameters(_abstract(sizes)) == count


def test_unknown_stem_is_refused():
  with pytest.raises(ValueError, match="stem must be one of"):
    models.ResNet((1,), 4, 10, 1, "large", nnx.Rngs(0))


STEMS = {"small": 6, "imagenet": 17}  # and the size of the images


@pytest.fixture(params=STEMS, scope="module")
def example(request):
  """A small network, its variables moved off their initial values, five images and labels."""
  make = lambda rngs: models.ResNet((1, 2), 4, 3, 2, request.param, rngs)
  rng = np.random.default_rng(0)
  init = jax.jit(
    lambda key: models.init(make, key, nnx.Param, nnx.BatchStat),
    # Code that runs once need not be fast.
    compiler_options={"xla_backend_optimization_level": 0},
  )
  params, stats = init(jax.random.key(0))
  moved = lambda x: jnp.asarray(x + 0.2 * rng.uniform(0, 1, x.shape), jnp.float32)
  params, stats = jax.tree.map(moved, (params, stats))
  size = STEMS[request.param]
  images = rng.normal(size=(5, size, size, 2)).astype(np.float32)
  return make, params, stats, images, rng.integers(0, 3, 5), request.param == "imagenet"


def _float64(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def test_logits_agree_with_numpy(example):
  make, params, stats, images, _, large = example
  network = models.rebuild(make, Param=params, BatchStat=stats)
  reference = networks.ResNet(_float64(params), _float64(stats), large_stem=large)
  logits = network(jnp.asarray(images), train=False)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, reference(images.astype(float)), rtol=1e-4, atol=1e-4)
  # In training the batch is what normalises, and running statistics move a tenth of the way to it.
  reference = networks.ResNet(_float64(params), large_stem=large)
  logits = network(jnp.asarray(images), train=True)
  np.testing.assert_allclose(logits, reference(images.astype(float)), rtol=1e-4, atol=1e-4)
  mean, var = reference.seen[0]
  for name, batch in (("mean", mean), ("var", var)):
    expected = 0.9 * np.asarray(stats["norm"][name], float) + 0.1 * batch
    np.testing.assert_allclose(getattr(network.norm, name)[...], expected, rtol=1e-4, atol=1e-5)


def test_gradients_agree_with_numpy(example):
  make, params, stats, images, labels, large = example

  def loss(params):
    network = models.rebuild(make, Param=params, BatchStat=stats)
    logits = network(jnp.asarray(images), train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()

  def reference(leaves):
    network = networks.ResNet(jax.tree.unflatten(tree, leaves), large_stem=large)
    return networks.cross_entropy(network(images.astype(float)), labels).mean()

  leaves, tree = jax.tree.flatten(_float64(params))
  gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
  rng = np.random.default_rng(1)
  scale = max(np.abs(g).max() for g in gradients)
  for i, gradient in enumerate(gradients):
    for _ in range(2):
      direction = rng.normal(size=leaves[i].shape)
      step = lambda size: reference([*leaves[:i], leaves[i] + size * direction, *leaves[i + 1 :]])
      slope = (step(1e-6) - step(-1e-6)) / 2e-6
      found = np.sum(np.asarray(gradient, float) * direction)
      assert abs(found - slope) < 1e-3 * (abs(slope) + scale)


@pytest.mark.slow
def test_bfloat16_is_a_rounded_float32(example, usual_promotion):
  make, params, stats, images, _, _ = example
  full = models.rebuild(make, Param=params, BatchStat=stats)(jnp.asarray(images), train=True)
  half = lambda rngs: models.ResNet(
    (1, 2), 4, 3, 2, "imagenet" if example[5] else "small", rngs, dtype="bfloat16"
  )
  network = models.rebuild(half, Param=params, BatchStat=stats)
  logits = network(jnp.asarray(images), train=True)
  assert logits.dtype == jnp.float32
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(nnx.state(network)))
  assert 0 < np.abs(np.asarray(logits - full)).max() < 0.1 * np.abs(full).max()
