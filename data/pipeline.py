"""Which worker sees which examples, and when.

The training set is dealt to the workers once, in disjoint shares, as in the paper; each epoch a worker
goes through its share in a new order. All of it follows from the seed, so that runs of the same seed see
the same batches whatever the method.
"""

from collections.abc import Iterator

import numpy as np

from data.images import Batch, Images


def shares(size: int, num_workers: int, seed: int) -> np.ndarray:
  """The examples of each worker.

  Args:
    size: how many examples there are.
    num_workers: among how many workers they are dealt.
    seed: of the dealing.

  Returns:
    Indices, shape (num_workers, size // num_workers), none of them twice.
  """
  share = size // num_workers
  order = np.random.default_rng((seed, 0)).permutation(size)
  return order[: num_workers * share].reshape(num_workers, share)


def epoch(
  images: Images, worker_shares: np.ndarray, batch_size: int, seed: int, number: int
) -> Iterator[Batch]:
  """The batches of one epoch; what does not fill a batch is left out, another part each epoch.

  Args:
    images: the data set.
    worker_shares: what ``shares`` returned.
    batch_size: examples of one worker in one batch.
    seed: of order and augmentation.
    number: of the epoch.

  Yields:
    {"image": (num_workers, batch_size, height, width, channels) float32,
    "label": (num_workers, batch_size) int32}.
  """
  rng = np.random.default_rng((seed, 1, number))
  order = rng.permuted(worker_shares, axis=1)
  num_workers, share = worker_shares.shape
  for start in range(0, share - batch_size + 1, batch_size):
    batch = images.train.read(order[:, start : start + batch_size].reshape(-1))
    image = images.normalise(images.augment(rng, batch["image"]))
    yield {
      "image": image.reshape(num_workers, batch_size, *image.shape[1:]),
      "label": batch["label"].reshape(num_workers, batch_size),
    }
