"""Texts cut for truncated backpropagation through time.

A text becomes ``count`` streams of equal length, each of them contiguous; a batch takes the next words of
every stream, so that the hidden state after one batch is the state before the next.
"""

import numpy as np


def cut(words: np.ndarray, count: int) -> np.ndarray:
  """A text as contiguous streams; what does not fill them is left out.

  Args:
    words: the text, shape (n,).
    count: how many streams.

  Returns:
    Shape (count, n // count).
  """
  length = len(words) // count
  return words[: count * length].reshape(count, length)


def windows(streams: np.ndarray, unroll: int) -> int:
  """How many batches of ``unroll`` words there are; each word has the next one for its target."""
  return (streams.shape[1] - 1) // unroll


def window(streams: np.ndarray, unroll: int, number: int) -> dict[str, np.ndarray]:
  """A batch.

  Args:
    streams: what ``cut`` returned.
    unroll: words of each stream.
    number: which one.

  Returns:
    {"input": (count, unroll) int32, "target": likewise, each the word after, "start": () bool, whether the
    streams begin here}.
  """
  start = number * unroll
  return {
    "input": streams[:, start : start + unroll],
    "target": streams[:, start + 1 : start + 1 + unroll],
    "start": np.array(number == 0),
  }
