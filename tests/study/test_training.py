"""Runs on the digits: the same again with the same seed, and what theory says of two settings."""

import numpy as np
import pytest

from study import tasks, training, watch
from study.settings import Setting

pytestmark = pytest.mark.usefixtures("usual_promotion")

DIGITS = Setting(task="digits", epochs=2)
RTOPK = DIGITS.but(method="rtopk", compression="0.99")


def figures(setting, rate, seed=0):
  record = training.run(setting, rate, seed)
  assert record.pop("seconds") >= 0
  return record


def test_without_compression_the_update_is_the_dense_one():
  record = figures(DIGITS, 0.05)
  assert list(record["seen"]) == ["loss"]
  assert len(record["seen"]["loss"]) == 2
  assert record["seen"]["loss"][1] < record["seen"]["loss"][0] < np.log(10)
  assert record["valid"] > 70


def test_the_same_seed_gives_the_same_run_and_sum_is_n_times_the_rate():
  first = figures(RTOPK, 0.05)
  assert figures(RTOPK, 0.05) == first
  assert figures(RTOPK, 0.05, seed=1) != first
  summed = figures(RTOPK.but(average="sum"), 0.01)
  assert summed["test"] == pytest.approx(first["test"], abs=0.5)
  assert summed["seen"]["loss"] == pytest.approx(first["seen"]["loss"], rel=0.01)
  assert summed["seen"]["coverage"] == pytest.approx(first["seen"]["coverage"], rel=0.01)


@pytest.mark.slow
def test_one_batch_for_all_makes_the_workers_largest_entries_the_same():
  k = round(0.01 * tasks.load("digits").size)
  same = RTOPK.but(share="same")
  coverage = lambda s: figures(s, 0.05)["seen"]["coverage"][-1] * tasks.load("digits").size / k
  assert coverage(same.but(method="topk")) == pytest.approx(1, rel=0.01)
  assert coverage(same) > 3


@pytest.mark.parametrize("share", ["equal", "same", "classes"])
def test_orders_of_images(share):
  task = tasks.load("digits")
  labels = task.splits.train.labels
  setting = DIGITS.but(share=share)
  order = task.order(setting, 3, 0)
  assert order.shape == (len(labels) // 80, 5, 16)
  assert (task.order(setting, 3, 0) == order).all()
  assert (task.order(setting, 3, 1) != order).any()
  if share == "same":
    assert (order == order[:, :1]).all()
    return
  assert len(np.unique(order)) == order.size
  classes = [len(np.unique(labels[order[:, worker]])) for worker in range(5)]
  assert max(classes) <= 4 if share == "classes" else min(classes) == 10


def test_streams_of_text_go_on_and_are_shared_out():
  setting = Setting(task="ptb")
  order = tasks.text_order(1001, 20, 5, setting, 0, 0)
  assert order.shape == (10, 5, 4)
  assert (np.diff(order, axis=0) == 5).all()
  assert sorted(order[0].ravel()) == list(range(0, 1000, 50))
  assert (tasks.text_order(1001, 20, 5, setting, 1, 0) != order).any()


def test_a_run_ends_early_where_it_is_lost():
  assert training.diverged(float("nan"), 0, 2.3)
  assert training.diverged(2.3, 9, 2.3)
  assert not training.diverged(100.0, 8, 2.3)
  assert not training.diverged(2.2, 30, 2.3)


def test_waiting_is_counted_as_by_hand():
  """Two workers, three entries, from the residuals of three steps."""
  import jax.numpy as jnp

  state = lambda count, rows: {"count": jnp.int32(count), "residual": {"w": jnp.array(rows)}}
  gradients = {"w": jnp.ones((2, 3))}
  residuals = [
    [[0.0, 0, 0], [0, 0, 0]],
    [[0.0, 1, 1], [1, 0, 1]],  # step 1: entry 0, and entry 1
    [[1.0, 2, 0], [2, 0, 2]],  # step 2: entry 2, which waited 2, and entry 1 again, 1
    [[0.0, 3, 1], [0, 1, 3]],  # step 3: entry 0, 2 steps after; entry 0, 3
  ]
  sent_at, waits = {"w": jnp.zeros((2, 3), jnp.int32)}, []
  for i in range(3):
    before, after = state(i, residuals[i]), state(i + 1, residuals[i + 1])
    sent_at, wait = watch._wait(gradients, before, after, sent_at)
    waits.append(float(wait))
  assert waits == [1.0, 1.5, 2.5]
