"""Random changes to batches of images, in NumPy."""

import numpy as np


def crop(rng: np.random.Generator, images: np.ndarray, padding: int) -> np.ndarray:
  """Each image moved by up to ``padding`` pixels each way, what comes into view being zero.

  Args:
    rng: where the moves come from.
    images: shape (n, height, width, channels).
    padding: pixels.

  Returns:
    Images of the same shape and dtype.
  """
  n, height, width, _ = images.shape
  padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  top, left = rng.integers(0, 2 * padding + 1, (2, n))
  rows = top[:, None] + np.arange(height)
  columns = left[:, None] + np.arange(width)
  return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def flip(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
  """Each image mirrored left to right with probability one half.

  Args:
    rng: where the choice comes from.
    images: shape (n, height, width, channels).

  Returns:
    Images of the same shape and dtype.
  """
  mirrored = rng.random(len(images)) < 0.5
  return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
