"""The study's data: nothing is both trained on and scored."""

import os
import pathlib

import numpy as np
import pytest

from study import data


def test_pooling_is_the_mean_of_squares_of_pixels():
  images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
  pooled = data.pooled(images).reshape(2, 2, 2, 3)
  mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
  square = images[1, 4:, :4].reshape(16, 3).mean(0) / 255
  np.testing.assert_allclose(pooled[1, 1, 0], (square - mean) / std, rtol=1e-5)


def test_digits_are_split_into_three():
  splits = data.digits()
  sizes = [len(part.labels) for part in (splits.train, splits.valid, splits.test)]
  assert sizes == [1097, 200, 500]
  images = [part.inputs for part in (splits.train, splits.valid, splits.test)]
  rows = {row.tobytes() for part in images for row in part}
  assert len(rows) == sum(sizes)


def has_texts():
  folder = os.environ.get("RTOPK_JAX_PTB")
  return folder and any(pathlib.Path(folder).glob("ptb.train.txt*"))


@pytest.mark.skipif(not has_texts(), reason="RTOPK_JAX_PTB names no folder with Penn Treebank")
def test_penn_treebank_keeps_its_frequent_words():
  splits = data.ptb()
  assert [len(part.inputs) for part in (splits.train, splits.valid, splits.test)] == [
    929_589,
    73_760,
    82_430,
  ]
  counts = np.bincount(splits.train.inputs)
  assert len(counts) == data.VOCABULARY
  assert counts.min() > 0


@pytest.mark.skipif(
  not pathlib.Path("~/.cache/rtopk_jax/study-cifar10.npz").expanduser().exists(),
  reason="the study has not read CIFAR-10 on this machine",
)
def test_cifar10_holds_out_5000_images():
  splits = data.cifar()
  assert [len(part.labels) for part in (splits.train, splits.valid, splits.test)] == [
    45_000,
    5_000,
    10_000,
  ]
  assert abs(splits.train.inputs.mean()) < 0.05
