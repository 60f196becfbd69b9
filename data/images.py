"""Image data sets that are read by index, and what is done to images before training and evaluation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from data import augment, imagenet, prepared

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples that are read by index, from several threads at once.

  Attributes:
    size: how many there are.
    read: indices (n,) to images, as the data set's views take them, and labels (n,) int32.
  """

  size: int
  read: Callable[[np.ndarray], tuple[Any, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Images:
  """An image classification data set.

  Attributes:
    train: the training examples.
    test: the examples that are evaluated on.
    num_classes: how many labels there are.
    channels: of an image.
    mean: of each channel over the training set, on the scale of 0 to 1.
    std: likewise the standard deviation.
    augment: what training sees of n images that were read, given a generator: (n, height, width,
      channels) uint8. Networks normalise, so that a quarter of the bytes travels to the device.
    view: what evaluation sees of them.
  """

  train: Split
  test: Split
  num_classes: int
  channels: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  augment: Callable[[np.random.Generator, Any], np.ndarray]
  view: Callable[[Any], np.ndarray] = lambda images: images

  def first(self, count: int | None) -> "Images":
    """The data set with its first training examples alone; None: all, as there are if count is more."""
    size = self.train.size if count is None else min(count, self.train.size)
    return dataclasses.replace(self, train=Split(size, self.train.read))

  def train_batch(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
    """Training examples, augmented."""
    images, labels = self.train.read(indices)
    return {"image": self.augment(rng, images), "label": labels}

  def test_batch(self, indices: np.ndarray) -> Batch:
    """Test examples; an index past the end gives the last one again, and ``real`` says 0."""
    images, labels = self.test.read(np.minimum(indices, self.test.size - 1))
    real = (indices < self.test.size).astype(np.float32)
    return {"image": self.view(images), "label": labels, "real": real}


def kept(split: Split, shape: tuple[int, ...]) -> Split:
  """A split that is decoded once: what was read stays in memory, for images that are small.

  Args:
    split: of images of one size.
    shape: theirs.

  Returns:
    The same examples, images as one array.
  """
  images = np.empty((split.size, *shape), np.uint8)
  labels = np.empty(split.size, np.int32)
  known = np.zeros(split.size, bool)

  def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Two threads may read the same image at once; both write the same.
    missing = indices[~known[indices]]
    if missing.size:
      found, labels[missing] = split.read(missing)
      images[missing] = np.stack(found)
      known[missing] = True
    return images[indices], labels[indices]

  return Split(split.size, read)


def digits(data_dir: str | None = None) -> Images:
  """Handwritten digits, 1,797 images of 8×8, which scikit-learn carries with it.

  360 of them, a fifth of each class, are the test set.
  """
  del data_dir

  def read(part: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _digits()[part]
    return images[indices], labels[indices]

  return Images(
    train=Split(1437, functools.partial(read, "train")),
    test=Split(360, functools.partial(read, "test")),
    num_classes=10,
    channels=1,
    mean=(0.305433688785187,),
    std=(0.37595716498559817,),
    augment=lambda rng, x: augment.crop(rng, x, padding=1),
  )


@functools.cache
def _digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images and labels, read when the first are asked for: scikit-learn takes seconds to be imported."""
  from sklearn import datasets, model_selection

  pixels, labels = datasets.load_digits(return_X_y=True)
  images = np.round(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  labels = np.asarray(labels, np.int32)
  train, test = model_selection.train_test_split(
    np.arange(len(images)), test_size=0.2, random_state=0, stratify=labels
  )
  return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def cifar10(data_dir: str | None = None) -> Images:
  """CIFAR-10, 50,000 and 10,000 images of 32×32, as TensorFlow Datasets prepares it."""
  return Images(
    train=kept(_prepared("cifar10", "train", data_dir), (32, 32, 3)),
    test=kept(_prepared("cifar10", "test", data_dir), (32, 32, 3)),
    num_classes=10,
    channels=3,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    augment=lambda rng, x: augment.flip(rng, augment.crop(rng, x, padding=4)),
  )


def imagenet2012(data_dir: str | None = None) -> Images:
  """ImageNet (ILSVRC 2012) at 224×224, as TensorFlow Datasets prepares it; tested on its validation set."""
  return Images(
    train=_prepared("imagenet2012", "train", data_dir, encoded=True),
    test=_prepared("imagenet2012", "validation", data_dir, encoded=True),
    num_classes=1000,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    augment=imagenet.train_view,
    view=imagenet.test_view,
  )


def _prepared(name: str, split: str, data_dir: str | None, encoded: bool = False) -> Split:
  source = prepared.source(name, split, data_dir, encoded)

  def read(indices: np.ndarray) -> tuple[list[Any], np.ndarray]:
    examples = source.__getitems__([int(i) for i in indices])
    return [x["image"] for x in examples], np.array([x["label"] for x in examples], np.int32)

  return Split(len(source), read)


IMAGES = {"digits": digits, "cifar10": cifar10, "imagenet2012": imagenet2012}
