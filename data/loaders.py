"""Which worker sees what, and when; and the threads that have it ready before the step asks for it.

A training set is dealt to the workers once, in disjoint shares, as in the paper. All that is random (the
dealing, the order of each epoch, augmentation, the keys of dropout) is a function of the seed, the epoch,
the step and the worker. So runs of the same seed see the same batches whatever the method, a process can
make the batches of its own workers alone, and where an iterator stands is a single number.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from data import streams
from data.images import Batch, Images

if TYPE_CHECKING:
  # Imported where it is used: it takes a second, and a mistake in a config is told without it.
  import grain

_DEAL, _ORDER, _BATCH = range(3)  # what a generator is for: no two draw the same numbers


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
  order = np.random.default_rng((seed, _DEAL)).permutation(size)
  return order[: num_workers * share].reshape(num_workers, share)


class Source(Protocol):
  """Batches by number.

  Attributes:
    steps_per_epoch: batches of a worker in an epoch.
  """

  steps_per_epoch: int

  def batch(self, epoch: int, step: int, worker: int) -> Batch:
    """One worker's batch of one step; called from several threads."""
    ...


class ImageSource:
  """Each worker's share of images, in a new order each epoch.

  What does not fill a batch is left out, another part each epoch.

  Args:
    images: the data set.
    num_workers: among whom it is dealt.
    batch_size: images of one worker in one batch.
    seed: of dealing, order and augmentation.

  Raises:
    ValueError: when a share does not fill a batch.
  """

  def __init__(self, images: Images, num_workers: int, batch_size: int, seed: int):
    self.images, self.batch_size, self.seed = images, batch_size, seed
    self.shares = shares(images.train.size, num_workers, seed)
    share = self.shares.shape[1]
    if batch_size > share:
      raise ValueError(
        f"batch_size={batch_size} is more than a worker's share of the data, which is {share} "
        f"({images.train.size} examples, num_workers={num_workers})."
      )
    self.steps_per_epoch = share // batch_size
    self._order = functools.lru_cache(maxsize=2 * num_workers)(self._order_of)

  def _order_of(self, epoch: int, worker: int) -> np.ndarray:
    rng = np.random.default_rng((self.seed, _ORDER, epoch, worker))
    return rng.permutation(self.shares[worker])

  def batch(self, epoch: int, step: int, worker: int) -> Batch:
    """{"image": (batch_size, height, width, channels) uint8, "label": (batch_size,) int32}."""
    chosen = self._order(epoch, worker)[step * self.batch_size :][: self.batch_size]
    rng = np.random.default_rng((self.seed, _BATCH, epoch, worker, step))
    return self.images.train_batch(chosen, rng)


class StreamSource:
  """A text cut into contiguous streams, ``batch_size`` of them a worker's; every epoch reads it again.

  Args:
    words: the text, shape (n,), int32.
    num_workers: among whom it is cut.
    batch_size: streams of one worker.
    unroll: words of a stream in one batch.
    seed: of the keys of dropout.

  Raises:
    ValueError: when the text is too short for one batch.
  """

  def __init__(self, words: np.ndarray, num_workers: int, batch_size: int, unroll: int, seed: int):
    self.unroll, self.seed = unroll, seed
    cut = streams.cut(words, num_workers * batch_size)
    self.steps_per_epoch = streams.windows(cut, unroll)
    if self.steps_per_epoch < 1:
      raise ValueError(
        f"batch_size={batch_size} with num_workers={num_workers} leaves streams of {cut.shape[1]} words, "
        f"too few for unroll={unroll} and a word after them."
      )
    self.streams = cut.reshape(num_workers, batch_size, -1)

  def batch(self, epoch: int, step: int, worker: int) -> Batch:
    """What ``streams.window`` gives, and {"key": (2,) uint32, random}."""
    rng = np.random.default_rng((self.seed, _BATCH, epoch, worker, step))
    key = rng.integers(0, 2**32, 2, np.uint32)
    return {**streams.window(self.streams[worker], self.unroll, step), "key": key}


class WindowSource:
  """Windows that begin anywhere in a worker's part of a text, for models that carry nothing from one to the next.

  Each worker has a contiguous part. An epoch has as many batches as would read the part once.

  Args:
    words: the text, shape (n,), int32.
    num_workers: among whom it is cut.
    batch_size: windows of one worker in one batch.
    unroll: words of a window.
    seed: of where they begin, and of the keys of dropout.

  Raises:
    ValueError: when a part is too short for one batch.
  """

  def __init__(self, words: np.ndarray, num_workers: int, batch_size: int, unroll: int, seed: int):
    self.batch_size, self.unroll, self.seed = batch_size, unroll, seed
    self.parts = streams.cut(words, num_workers)
    length = self.parts.shape[1]
    self.steps_per_epoch = (length - 1) // (batch_size * unroll)
    if self.steps_per_epoch < 1:
      raise ValueError(
        f"unroll={unroll} times batch_size={batch_size} and a word after them is more than a worker's part of the "
        f"text, which is {length} (num_workers={num_workers})."
      )

  def batch(self, epoch: int, step: int, worker: int) -> Batch:
    """{"input": (batch_size, unroll) int32, "target": likewise, each the word after, "key": (2,) uint32, random}."""
    rng = np.random.default_rng((self.seed, _BATCH, epoch, worker, step))
    part = self.parts[worker]
    starts = rng.integers(0, len(part) - self.unroll, self.batch_size)
    read = part[starts[:, None] + np.arange(self.unroll + 1)]
    key = rng.integers(0, 2**32, 2, np.uint32)
    return {"input": read[:, :-1], "target": read[:, 1:], "key": key}


class _Rows:
  """The batches of some workers, one after another, for Grain to read by index."""

  def __init__(self, source: Source, workers: Sequence[int], steps: int):
    self.source, self.workers, self.steps = source, tuple(workers), steps

  def __len__(self) -> int:
    return self.steps * len(self.workers)

  def __getitem__(self, index: Any) -> Batch:
    step, place = divmod(int(index), len(self.workers))
    epoch, step = divmod(step, self.source.steps_per_epoch)
    return self.source.batch(epoch, step, self.workers[place])


def load(
  source: Source,
  workers: Sequence[int],
  steps: int,
  *,
  start: int = 0,
  threads: int = 2,
  ahead: int = 2,
) -> "grain.IterDataset[Batch]":
  """The batches of some workers, prepared in threads ahead of who asks for them.

  Args:
    source: of batches.
    workers: whose; in a run of several processes, those of this one.
    steps: how many batches, over as many epochs as that takes.
    start: how many of them are left out at the beginning: where a run that was interrupted goes on, with
      these or with other workers.
    threads: that read, decode and augment.
    ahead: how many steps may lie ready.

  Returns:
    A Grain data set. Its batches are the workers' stacked: arrays (len(workers), …). Its iterator has
    ``get_state`` and ``set_state``, and Grain's checkpoint handlers for Orbax save and restore it.
  """
  import grain

  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(threads, ahead * len(workers))
  )
  rows = grain.MapDataset.source(_Rows(source, workers, steps))[start * len(workers) :]
  return rows.to_iter_dataset(options).batch(len(workers), drop_remainder=True)


class _TestBatches:
  """A test set in batches of one size, the last one padded, for Grain to read by index."""

  def __init__(self, images: Images, batch_size: int):
    self.images, self.batch_size = images, batch_size

  def __len__(self) -> int:
    return -(-self.images.test.size // self.batch_size)

  def __getitem__(self, index: Any) -> Batch:
    start = int(index) * self.batch_size
    return self.images.test_batch(np.arange(start, start + self.batch_size))


def load_test(
  images: Images,
  batch_size: int,
  *,
  part: tuple[int, int] = (0, 1),
  threads: int = 2,
  ahead: int = 2,
) -> "grain.IterDataset[Batch]":
  """A test set in order, in batches of one size, prepared in threads.

  Args:
    images: the data set.
    batch_size: examples of a batch; the last one is padded.
    part: i and n for batches i, i + n, i + 2 n …
    threads: that read and decode.
    ahead: how many batches may lie ready.

  Returns:
    A Grain data set of {"image": …, "label": …, "real": (batch_size,) float32, 0 where it is padding}.
  """
  import grain

  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))
  first, step = part
  batches = grain.MapDataset.source(_TestBatches(images, batch_size))
  return batches[first::step].to_iter_dataset(options)
