"""Shares, epochs and augmentation against what is known about them."""

import os

import numpy as np
import pytest

import data
from data import augment


@pytest.fixture(scope="module")
def digits():
  return data.load("digits")


def test_shares_are_disjoint_and_equal():
  shares = data.shares(size=103, num_workers=5, seed=7)
  assert shares.shape == (5, 20)
  assert len(set(shares.reshape(-1).tolist())) == 100
  assert shares.min() >= 0
  assert shares.max() < 103


def test_shares_follow_the_seed():
  np.testing.assert_array_equal(data.shares(50, 2, seed=1), data.shares(50, 2, seed=1))
  assert (data.shares(50, 2, seed=1) != data.shares(50, 2, seed=2)).any()


def test_epoch_shows_each_worker_its_own_share_once(digits):
  # Every image becomes its own index, so that what a worker saw can be read off.
  shown = data.Images(
    train=data.images.Split(
      40,
      lambda i: {"image": np.broadcast_to(i[:, None, None, None], (len(i), 2, 2, 1)), "label": i},
    ),
    test=digits.test,
    num_classes=10,
    channels=1,
    mean=(0.0,),
    std=(1.0,),
    augment=lambda rng, images: images,
  )
  shares = data.shares(40, 4, seed=0)
  batches = list(data.epoch(shown, shares, batch_size=3, seed=0, number=0))
  assert len(batches) == 3
  assert batches[0]["image"].shape == (4, 3, 2, 2, 1)
  labels = np.concatenate([batch["label"] for batch in batches], axis=1)
  for worker in range(4):
    assert len(set(labels[worker])) == 9
    assert set(labels[worker]) <= set(shares[worker])
  np.testing.assert_allclose(
    batches[0]["image"][..., 0, 0, 0], batches[0]["label"] / 255, rtol=1e-6
  )


def test_epochs_differ_and_repeat(digits):
  shares = data.shares(digits.train.size, 5, seed=0)
  first = lambda number: next(data.epoch(digits, shares, 16, seed=3, number=number))
  np.testing.assert_array_equal(first(0)["image"], first(0)["image"])
  assert (first(0)["label"] != first(1)["label"]).any()


def test_digits_are_normalised(digits):
  assert (digits.train.size, digits.test.size) == (1437, 360)
  batch = digits.train.read(np.arange(digits.train.size))
  assert batch["image"].shape == (1437, 8, 8, 1)
  assert set(batch["label"]) == set(range(10))
  images = digits.normalise(batch["image"])
  assert images.dtype == np.float32
  assert abs(images.mean()) < 1e-4
  assert abs(images.std() - 1) < 1e-4


class _Fixed:
  """Gives known numbers where a generator would give random ones."""

  def __init__(self, moves=None, uniforms=None):
    self.moves, self.uniforms = moves, uniforms

  def integers(self, low, high, size):
    assert np.shape(self.moves) == size
    assert low <= np.min(self.moves)
    assert np.max(self.moves) < high
    return np.array(self.moves)

  def random(self, n):
    return np.array(self.uniforms[:n])


def test_crop_moves_pixels():
  image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
  moved = augment.crop(_Fixed(moves=[[0], [2]]), image, padding=1)
  # Down by one, left by one: the first row and the last column are new, and zero.
  np.testing.assert_array_equal(moved[0, ..., 0], [[0, 0, 0], [2, 3, 0], [5, 6, 0]])
  assert moved.dtype == np.uint8
  unmoved = augment.crop(_Fixed(moves=[[1], [1]]), image, padding=1)
  np.testing.assert_array_equal(unmoved, image)


def test_flip_mirrors_some():
  images = np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1)
  flipped = augment.flip(_Fixed(uniforms=[0.9, 0.1]), images)
  np.testing.assert_array_equal(flipped[0], images[0])
  np.testing.assert_array_equal(flipped[1, :, :, 0], [[8, 7, 6], [11, 10, 9]])


def test_unknown_data_set_is_refused():
  with pytest.raises(ValueError, match="dataset must be one of digits, cifar10, got 'mnist'"):
    data.load("mnist")


def test_missing_cifar10_says_how_to_get_it(tmp_path):
  with pytest.raises(FileNotFoundError, match="download_and_prepare"):
    data.load("cifar10", str(tmp_path))


def test_real_cifar10():
  where = os.environ.get("RTOPK_JAX_DATA")
  if not where:
    pytest.skip("RTOPK_JAX_DATA does not name a folder with tensorflow_datasets' cifar10")
  cifar10 = data.load("cifar10", where)
  assert (cifar10.train.size, cifar10.test.size) == (50_000, 10_000)
  batch = cifar10.train.read(np.arange(0, 50_000, 25))
  assert batch["image"].shape == (2000, 32, 32, 3)
  means = batch["image"].mean(axis=(0, 1, 2)) / 255
  np.testing.assert_allclose(means, cifar10.mean, atol=0.01)
