"""Image data sets as arrays of bytes that are read by index, and what is done to them before training."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from data import augment

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples that are read by index.

  Attributes:
    size: how many there are.
    read: indices (n,) to {"image": (n, height, width, channels) uint8, "label": (n,) int32}.
  """

  size: int
  read: Callable[[np.ndarray], Batch]


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
    augment: what is done to a batch of training images, given a generator.
  """

  train: Split
  test: Split
  num_classes: int
  channels: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  augment: Callable[[np.random.Generator, np.ndarray], np.ndarray]

  def normalise(self, images: np.ndarray) -> np.ndarray:
    """Bytes as float32 of mean 0 and standard deviation 1 for each channel."""
    mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def _in_memory(images: np.ndarray, labels: np.ndarray) -> Split:
  return Split(len(images), lambda i: {"image": images[i], "label": labels[i]})


def digits(data_dir: str | None = None) -> Images:
  """Handwritten digits, 1,797 images of 8×8, which scikit-learn carries with it.

  360 of them, a fifth of each class, are the test set.
  """
  del data_dir
  from sklearn import datasets, model_selection

  pixels, labels = datasets.load_digits(return_X_y=True)
  images = np.round(np.asarray(pixels) * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
  labels = np.asarray(labels, np.int32)
  train, test = model_selection.train_test_split(
    np.arange(len(images)), test_size=0.2, random_state=0, stratify=labels
  )
  scaled = images[train] / 255
  return Images(
    train=_in_memory(images[train], labels[train]),
    test=_in_memory(images[test], labels[test]),
    num_classes=10,
    channels=1,
    mean=(float(scaled.mean()),),
    std=(float(scaled.std()),),
    augment=lambda rng, x: augment.crop(rng, x, padding=1),
  )


def cifar10(data_dir: str | None = None) -> Images:
  """CIFAR-10, 50,000 and 10,000 images of 32×32, as TensorFlow Datasets prepares it."""
  return Images(
    train=_tfds("cifar10", "train", data_dir),
    test=_tfds("cifar10", "test", data_dir),
    num_classes=10,
    channels=3,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    augment=lambda rng, x: augment.flip(rng, augment.crop(rng, x, padding=4)),
  )


def _tfds(name: str, split: str, data_dir: str | None) -> Split:
  import tensorflow_datasets as tfds

  where = pathlib.Path(data_dir or "~/tensorflow_datasets").expanduser()
  builder = tfds.builder(name, data_dir=where, file_format="array_record")
  if not builder.data_path.exists():
    raise FileNotFoundError(
      f"{name} is not in {where}. Get it with\n\n"
      f'  python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, '
      f"data_dir={str(where)!r}, file_format='array_record').download_and_prepare()\"\n\n"
      "(this one step needs TensorFlow: pip install tensorflow), or name the folder that has it with "
      "--config.data_dir=DIR."
    )
  source: Any = tfds.data_source(
    name,
    split=split,
    builder_kwargs={"file_format": "array_record"},
    data_dir=where,
    download=False,
  )

  def read(indices: np.ndarray) -> Batch:
    examples = source.__getitems__([int(i) for i in indices])
    return {
      "image": np.stack([x["image"] for x in examples]),
      "label": np.array([x["label"] for x in examples], np.int32),
    }

  return Split(len(source), read)


_DATASETS = {"digits": digits, "cifar10": cifar10}


def load(name: str, data_dir: str | None = None) -> Images:
  """A data set by name.

  Args:
    name: "digits" or "cifar10".
    data_dir: where data sets are kept; None is ``~/tensorflow_datasets``.

  Returns:
    The data set.

  Raises:
    ValueError: for an unknown name.
    FileNotFoundError: when the data set is not there; the message says how to get it.
  """
  if name not in _DATASETS:
    raise ValueError(f"dataset must be one of {', '.join(_DATASETS)}, got {name!r}.")
  return _DATASETS[name](data_dir)
