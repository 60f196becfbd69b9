"""The study's data sets: arrays that fit in memory, with examples held out for tuning.

CIFAR-10's images are averaged over 4 × 4 pixels, so that a run of a small network takes seconds. Penn
Treebank keeps its most frequent words, the others are its "<unk>".
"""

import collections
import dataclasses
import lzma
import os
import pathlib

import numpy as np

# Held out for tuning: the last so many training images of CIFAR-10, and of scikit-learn's digits.
HELD_OUT = 5_000
DIGITS_HELD_OUT, DIGITS_TEST = 200, 500
VOCABULARY = 1_000


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples: images and labels, or words alone.

  Attributes:
    inputs: (count, features) float32, or (count,) int32 words.
    labels: (count,) int32; empty for words.
  """

  inputs: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Splits:
  """What is trained on, tuned on and scored on."""

  train: Split
  valid: Split
  test: Split


def pooled(images: np.ndarray, side: int = 4) -> np.ndarray:
  """Means over squares of pixels, flat, with CIFAR-10's mean 0 and deviation 1 by channel.

  Args:
    images: (count, height, width, 3) uint8.
    side: of a square.

  Returns:
    (count, height · width · 3 / side²) float32.
  """
  count, height, width, channels = images.shape
  squares = images.reshape(count, height // side, side, width // side, side, channels)
  means = squares.mean(axis=(2, 4), dtype=np.float32) / 255
  means -= np.array([0.4914, 0.4822, 0.4465], np.float32)
  means /= np.array([0.2470, 0.2435, 0.2616], np.float32)
  return means.reshape(count, -1)


def cifar() -> Splits:
  """CIFAR-10 from ``RTOPK_JAX_DATA`` or ~/tensorflow_datasets, kept in ~/.cache/rtopk_jax once read."""
  kept = pathlib.Path("~/.cache/rtopk_jax/study-cifar10.npz").expanduser()
  if not kept.exists():
    from data import images

    found = images.cifar10(os.environ.get("RTOPK_JAX_DATA"))
    arrays = {}
    for name, split in (("train", found.train), ("test", found.test)):
      read, labels = split.read(np.arange(split.size))
      arrays[f"{name}_inputs"], arrays[f"{name}_labels"] = pooled(read), labels
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, **arrays)
  with np.load(kept) as arrays:
    inputs, labels = arrays["train_inputs"], arrays["train_labels"].astype(np.int32)
    test = Split(arrays["test_inputs"], arrays["test_labels"].astype(np.int32))
  train, valid = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
  return Splits(Split(inputs[train], labels[train]), Split(inputs[valid], labels[valid]), test)


def digits() -> Splits:
  """scikit-learn's 1,797 digits, which need no download."""
  from sklearn.datasets import load_digits

  images, labels = load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(labels))
  inputs = ((images - images.mean()) / images.std()).astype(np.float32)[order]
  labels = labels.astype(np.int32)[order]
  part = lambda *ends: Split(inputs[slice(*ends)], labels[slice(*ends)])
  last = len(labels) - DIGITS_TEST
  return Splits(part(last - DIGITS_HELD_OUT), part(last - DIGITS_HELD_OUT, last), part(last, None))


def ptb() -> Splits:
  """Penn Treebank from the folder that ``RTOPK_JAX_PTB`` names: ptb.train.txt, or .txt.xz, and so on."""
  folder = pathlib.Path(os.environ["RTOPK_JAX_PTB"])
  texts = {}
  for name in ("train", "valid", "test"):
    plain = folder / f"ptb.{name}.txt"
    packed = lzma.decompress if not plain.exists() else bytes
    path = plain if plain.exists() else plain.with_suffix(".txt.xz")
    texts[name] = packed(path.read_bytes()).decode().replace("\n", "<eos>").split()
  counts = collections.Counter(texts["train"])
  frequent = sorted(counts, key=lambda word: (-counts[word], word))[:VOCABULARY]
  numbers = {word: i for i, word in enumerate(frequent)}
  none = np.zeros(0, np.int32)
  number = lambda words: np.array([numbers.get(w, numbers["<unk>"]) for w in words], np.int32)
  return Splits(*(Split(number(texts[name]), none) for name in ("train", "valid", "test")))
