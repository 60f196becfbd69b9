"""Shares, orders, processes and iterator states against what is known about them."""

import itertools
import threading

import numpy as np
import pytest

import data


@pytest.fixture(scope="module")
def digits():
  return data.IMAGES["digits"]()


@pytest.fixture(scope="module")
def numbered():
  """40 images, each of which shows its own number, plus noise from the generator in a corner."""

  def shown(rng, numbers):
    images = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 2, 2, 1)).astype(np.uint8)
    images = images.copy()
    images[:, 0, 0, 0] = rng.integers(0, 256, len(numbers))
    return images

  split = data.Split(40, lambda i: (i, i.astype(np.int32)))
  return data.Images(split, split, 10, 1, mean=(0.0,), std=(1.0,), augment=shown)


def _batches(source, workers, steps, **options):
  return list(data.load(source, workers, steps, **options))


def _assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name], b[name])


def test_shares_are_disjoint_and_equal():
  shares = data.shares(size=103, num_workers=5, seed=7)
  assert shares.shape == (5, 20)
  assert len(set(shares.reshape(-1).tolist())) == 100
  assert shares.min() >= 0
  assert shares.max() < 103


def test_shares_follow_the_seed():
  np.testing.assert_array_equal(data.shares(50, 2, seed=1), data.shares(50, 2, seed=1))
  assert (data.shares(50, 2, seed=1) != data.shares(50, 2, seed=2)).any()


def test_an_epoch_shows_each_worker_its_own_share_once(numbered):
  source = data.ImageSource(numbered, num_workers=4, batch_size=3, seed=0)
  assert source.steps_per_epoch == 3
  shares = data.shares(40, 4, seed=0)
  batches = _batches(source, range(4), steps=6)
  assert batches[0]["image"].shape == (4, 3, 2, 2, 1)
  assert batches[0]["image"].dtype == np.uint8
  for epoch in (batches[:3], batches[3:]):
    labels = np.concatenate([batch["label"] for batch in epoch], axis=1)
    for worker in range(4):
      assert len(set(labels[worker])) == 9
      assert set(labels[worker]) <= set(shares[worker])
  for batch in batches:
    np.testing.assert_array_equal(batch["image"][..., 1, 1, 0], batch["label"])


def test_epochs_and_seeds_differ_and_repeat(numbered):
  def labels(seed):
    batches = _batches(data.ImageSource(numbered, 4, 5, seed), range(4), steps=4)
    return np.stack([batch["label"] for batch in batches])

  np.testing.assert_array_equal(labels(3), labels(3))
  assert (labels(3)[:2] != labels(3)[2:]).any()
  assert (labels(3) != labels(4)).any()


def _sources(numbered):
  return {
    "images": data.ImageSource(numbered, num_workers=4, batch_size=3, seed=1),
    "streams": data.StreamSource(np.arange(200, dtype=np.int32), 4, 2, 5, seed=1),
  }


@pytest.mark.parametrize("kind", ["images", "streams"])
@pytest.mark.parametrize("threads", [1, 4])
def test_batches_do_not_depend_on_processes_or_threads(numbered, kind, threads):
  source = _sources(numbered)[kind]
  alone = _batches(source, range(4), steps=7)
  assert len(alone) == 7
  for processes in (2, 4):
    share = 4 // processes
    parts = [
      _batches(source, range(p * share, (p + 1) * share), steps=7, threads=threads)
      for p in range(processes)
    ]
    for whole, *pieces in zip(alone, *parts, strict=True):
      _assert_same(whole, {name: np.concatenate([x[name] for x in pieces]) for name in whole})


@pytest.mark.parametrize("kind", ["images", "streams"])
@pytest.mark.parametrize("seen", [0, 1, 4])
def test_state_is_restored_in_the_middle_of_an_epoch(numbered, kind, seen):
  source = _sources(numbered)[kind]
  iterator = iter(data.load(source, range(4), steps=7))
  for _ in range(seen):
    next(iterator)
  state = iterator.get_state()
  rest = list(iterator)
  assert len(rest) == 7 - seen
  # In a new iterator, which has prepared other batches already.
  again = iter(data.load(_sources(numbered)[kind], range(4), steps=7))
  next(again)
  again.set_state(state)
  for a, b in zip(rest, again, strict=True):
    _assert_same(a, b)


def test_orbax_saves_where_an_iterator_stands(numbered, tmp_path, usual_promotion):
  import grain
  import orbax.checkpoint as ocp

  source = _sources(numbered)["images"]
  iterator = iter(data.load(source, range(4), steps=7))
  for _ in range(4):
    next(iterator)
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.save(4, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
    manager.wait_until_finished()
    rest = list(iterator)
    again = iter(data.load(source, range(4), steps=7))
    restore = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(again))
    restored = manager.restore(4, args=restore)["data"]
  for a, b in zip(rest, restored, strict=True):
    _assert_same(a, b)


def test_batches_are_ready_before_they_are_asked_for(numbered):
  made = [threading.Event() for _ in range(8)]
  threads = set()

  class Watched(data.ImageSource):
    def batch(self, epoch, step, worker):
      threads.add(threading.current_thread())
      result = super().batch(epoch, step, worker)
      made[epoch * self.steps_per_epoch + step].set()
      return result

  iterator = iter(data.load(Watched(numbered, 2, 5, seed=0), range(2), steps=8, ahead=3))
  next(iterator)
  # Nobody asks for the next three: they come by themselves, by other threads than this one.
  assert all(event.wait(timeout=20) for event in made[:4])
  assert threading.current_thread() not in threads
  assert len(list(iterator)) == 7


def test_errors_of_the_source_reach_who_asks(numbered):
  class Broken(data.ImageSource):
    def batch(self, epoch, step, worker):
      if step == 1:
        raise OSError("unreadable")
      return super().batch(epoch, step, worker)

  iterator = iter(data.load(Broken(numbered, 2, 5, seed=0), range(2), steps=4))
  next(iterator)
  with pytest.raises(OSError, match="unreadable"):
    next(iterator)


def test_streams_are_contiguous_and_begin_again_each_epoch():
  words = np.arange(2 * 3 * 12 + 5, dtype=np.int32)
  source = data.StreamSource(words, num_workers=2, batch_size=3, unroll=4, seed=0)
  assert source.steps_per_epoch == 2
  batches = _batches(source, range(2), steps=4)
  for batch in batches:
    assert batch["input"].shape == batch["target"].shape == (2, 3, 4)
    np.testing.assert_array_equal(batch["target"], batch["input"] + 1)
  assert [batch["start"].tolist() for batch in batches] == [[s, s] for s in (True, False) * 2]
  read = np.concatenate([batch["input"] for batch in batches[:2]], axis=-1)
  starts = 12 * np.arange(6).reshape(2, 3, 1)  # disjoint: each stream is the next 12 words
  np.testing.assert_array_equal(read, starts + np.arange(8))
  np.testing.assert_array_equal(batches[0]["input"], batches[2]["input"])


def test_windows_begin_anywhere_in_a_worker_s_own_part():
  words = np.arange(101, dtype=np.int32)
  source = data.WindowSource(words, num_workers=2, batch_size=3, unroll=4, seed=0)
  assert source.steps_per_epoch == 49 // 12
  found = [[source.batch(e, s, w) for e in range(20) for s in range(4)] for w in (0, 1)]
  for worker, batches in enumerate(found):
    read = np.stack([x["input"] for x in batches])
    starts = read[..., 0]
    np.testing.assert_array_equal(read, starts[..., None] + np.arange(4))
    np.testing.assert_array_equal([x["target"] for x in batches], read + 1)
    # From the first place to the last that has four words and one after them.
    assert (starts.min(), starts.max()) == (50 * worker, 50 * worker + 45)
  again = source.batch(1, 2, 0)
  np.testing.assert_array_equal(again["input"], found[0][4 + 2]["input"])
  with pytest.raises(ValueError, match=r"unroll=50 .* part of the text, which is 50"):
    data.WindowSource(words, 2, 1, 50, seed=0)


def test_keys_of_dropout_are_all_different():
  source = data.StreamSource(np.zeros(200, np.int32), 4, 2, 5, seed=1)
  keys = np.concatenate([batch["key"] for batch in _batches(source, range(4), steps=8)])
  assert keys.shape == (32, 2)
  assert len({tuple(key) for key in keys.tolist()}) == 32
  other = data.StreamSource(np.zeros(200, np.int32), 4, 2, 5, seed=2)
  assert (next(iter(data.load(other, range(4), 1)))["key"] != keys[:4]).all()


def test_the_paper_s_rounds_an_epoch():
  words = np.zeros(929_589, np.int32)
  assert data.StreamSource(words, 5, 20, 35, seed=0).steps_per_epoch == 265
  split = data.Split(50_000, lambda i: (i, i))
  images = data.Images(split, split, 10, 3, (0.0,), (1.0,), augment=lambda rng, x: x)
  assert data.ImageSource(images, 5, 128, seed=0).steps_per_epoch == 78


def test_too_little_data_is_refused(numbered):
  message = "batch_size=11 is more than a worker's share of the data, which is 10"
  with pytest.raises(ValueError, match=message):
    data.ImageSource(numbered, num_workers=4, batch_size=11, seed=0)
  with pytest.raises(ValueError, match="leaves streams of 5 words, too few for unroll=5"):
    data.StreamSource(np.zeros(40, np.int32), 4, 2, 5, seed=1)


def test_the_test_set_comes_once_and_in_order(numbered):
  batches = list(data.load_test(numbered, batch_size=16, threads=3))
  assert [batch["real"].sum() for batch in batches] == [16, 16, 8]
  labels = np.concatenate([batch["label"] for batch in batches])
  np.testing.assert_array_equal(labels, [*range(40), *itertools.repeat(39, 8)])
  np.testing.assert_array_equal(batches[1]["image"], np.arange(16, 32))


def test_small_images_are_decoded_once():
  asked = []

  def read(indices):
    asked.extend(indices.tolist())
    return [np.full((2, 2, 1), i, np.uint8) for i in indices], indices.astype(np.int32) + 1

  kept = data.images.kept(data.Split(9, read), (2, 2, 1))
  for indices in ([3, 5, 3], [5, 8], [0, 3, 8]):
    images, labels = kept.read(np.array(indices))
    np.testing.assert_array_equal(images[:, 1, 1, 0], indices)
    np.testing.assert_array_equal(labels, np.array(indices) + 1)
  assert sorted(set(asked)) == [0, 3, 5, 8]
  assert asked.count(5) == asked.count(8) == 1


def test_digits_are_known(digits):
  assert (digits.train.size, digits.test.size) == (1437, 360)
  images, labels = digits.train.read(np.arange(digits.train.size))
  assert images.shape == (1437, 8, 8, 1)
  assert images.dtype == np.uint8
  assert set(labels) == set(range(10))
  scaled = images / 255
  np.testing.assert_allclose([scaled.mean(), scaled.std()], [*digits.mean, *digits.std])


@pytest.mark.parametrize(
  ("name", "short"),
  [
    ("cifar10", "cifar10"),
    ("imagenet2012", "imagenet"),
    ("ptb", "ptb"),
    ("tiny_shakespeare_words", "tiny_shakespeare"),
  ],
)
def test_a_missing_data_set_says_how_to_get_it(tmp_path, name, short):
  with pytest.raises(FileNotFoundError, match=f"python -m data.prepare {short} --data_dir="):
    (data.IMAGES | data.TEXTS)[name](str(tmp_path))


def test_real_cifar10(real):
  cifar10 = data.IMAGES["cifar10"](real)
  assert (cifar10.train.size, cifar10.test.size) == (50_000, 10_000)
  images, labels = cifar10.train.read(np.arange(0, 50_000, 5))
  assert images.shape == (10_000, 32, 32, 3)
  assert set(labels) == set(range(10))
  np.testing.assert_allclose(images.mean(axis=(0, 1, 2)) / 255, cifar10.mean, atol=0.003)
  np.testing.assert_allclose(images.std(axis=(0, 1, 2)) / 255, cifar10.std, atol=0.003)
  batch = next(iter(data.load(data.ImageSource(cifar10, 5, 128, seed=0), range(5), steps=1)))
  assert batch["image"].shape == (5, 128, 32, 32, 3)


def test_real_imagenet_sample(real):
  images = data.IMAGES["imagenet2012"](real)
  batch = next(iter(data.load(data.ImageSource(images, 2, 8, seed=0), range(2), steps=1)))
  assert batch["image"].shape == (2, 8, 224, 224, 3)
  assert batch["image"].std() > 30  # photographs
  seen = next(iter(data.load_test(images, batch_size=16)))
  assert seen["image"].shape == (16, 224, 224, 3)
  means = seen["image"].mean(axis=(0, 1, 2)) / 255
  np.testing.assert_allclose(means, images.mean, atol=0.15)
