import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from rtopk_jax import estimation
from rtopk_jax.estimation import _gradients, _networks
from tests.rtopk_jax.reference import largest

KEY = jax.random.key(1)


@functools.cache
def resnet():
  pytest.importorskip("sklearn")
  return _networks.digits_resnet(KEY, channels=4, blocks=2)


@functools.cache
def lstm():
  return _networks.text_lstm(KEY, hidden=8, embedding=4, length=6)


def cross_entropy(logits, targets):
  logits = logits - logits.max(-1, keepdims=True)
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -np.take_along_axis(logs, targets[..., None], -1).mean()


def numpy_resnet(params, images, labels):
  def conv(x, kernel):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))

  x = conv(images, params["stem"])
  for block in params["blocks"]:
    inner = conv(np.maximum(x, 0), block["first"])
    x = x + conv(np.maximum(inner, 0), block["second"]) / 2
  return cross_entropy(np.maximum(x, 0).mean((1, 2)) @ params["head"] + params["bias"], labels)


def numpy_lstm(params, inputs, targets):
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  cell = output = np.zeros((len(inputs), 8))
  losses = []
  for t in range(inputs.shape[1]):
    gates = params["embedding"][inputs[:, t]] @ params["inward"] + params["gates"]
    gates = gates + output @ params["recurrent"]
    keep, write, show, new = np.split(gates, 4, axis=1)
    cell = sigmoid(keep) * cell + sigmoid(write) * np.tanh(new)
    output = sigmoid(show) * np.tanh(cell)
    losses.append(cross_entropy(output @ params["head"] + params["bias"], targets[:, t]))
  return np.mean(losses)


@pytest.mark.parametrize(
  ("make", "reference"), [(resnet, numpy_resnet), (lstm, numpy_lstm)], ids=["resnet", "lstm"]
)
def test_networks_against_numpy(make, reference):
  task = make()
  batch = task.inputs[:5], task.targets[:5]
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), task.params)
  ours = float(jax.jit(task.loss)(task.params, *map(jnp.asarray, batch)))
  np.testing.assert_allclose(ours, reference(params, *batch), rtol=1e-5)


@pytest.mark.parametrize("make", [resnet, lstm])
def test_samples_are_gradients_along_a_training_run(make):
  task = make()
  start, end = _gradients.gradient_samples(task, (0, 60), num_workers=3, batch=8, draws=2)
  flat, restore = jax.flatten_util.ravel_pytree(task.params)
  assert (start.step, end.step) == (0, 60)
  assert start.workers.shape == (2, 3, flat.size)
  assert len(np.unique(start.workers[..., -1])) == 6  # minibatches differ

  # The held-out gradient predicts how the held-out loss changes along it.
  loss = jax.jit(lambda x: task.loss(restore(x), *map(jnp.asarray, task.held_out)))
  direction = start.held_out / np.linalg.norm(start.held_out)
  change = float(loss(flat + 0.01 * direction) - loss(flat - 0.01 * direction)) / 0.02
  np.testing.assert_allclose(change, np.linalg.norm(start.held_out), rtol=0.02)
  # Training has moved on: gradients are no longer the first ones.
  assert np.linalg.norm(end.held_out - start.held_out) > 0.1 * np.linalg.norm(start.held_out)


def test_no_text_is_in_both_parts():
  task = _networks.text_lstm(KEY)
  seen = {row.tobytes() for row in np.concatenate([task.inputs, task.targets[:, -1:]], axis=1)}
  held = [row.tobytes() for row in np.concatenate([task.held_out[0], task.held_out[1][:, -1:]], 1)]
  assert sum(row in seen for row in held) < 0.05 * len(held)  # rules of dashes repeat themselves
  assert (task.inputs[:, 1:] == task.targets[:, :-1]).all()


def test_energy_share_against_a_loop():
  gradients = np.random.default_rng(0).standard_t(2, size=(3, 50))
  share = estimation.energy_share(gradients, [1, 7, 50])
  for g, row in zip(gradients, share, strict=True):
    squares = sorted(g**2, reverse=True)
    expected = [sum(squares[:r]) / sum(squares) for r in (1, 7, 50)]
    np.testing.assert_allclose(row, expected)


def test_agreement_against_sets():
  gradients = np.random.default_rng(0).normal(size=(4, 30)) + np.linspace(0, 3, 30)
  sets = lambda r: [set(largest(g, r)) for g in gradients]
  for r, value in zip((1, 5, 30), estimation.top_agreement(gradients, [1, 5, 30]), strict=True):
    tops = sets(r)
    pairs = [len(tops[i] & tops[j]) / r for i in range(4) for j in range(i)]
    np.testing.assert_allclose(value, np.mean(pairs))


def test_independent_workers_agree_by_chance_only():
  gradients = np.random.default_rng(0).normal(size=(40, 2000))
  value = estimation.top_agreement(gradients, [200])
  np.testing.assert_allclose(value, 0.1, atol=0.01)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (
      lambda: estimation.energy_share(np.ones(3), [0]),
      ValueError,
      "counts must be from 1 to d = 3",
    ),
    (lambda: estimation.top_agreement(np.ones((2, 3)), [4]), ValueError, "counts must be from 1"),
    (lambda: estimation.top_agreement(np.ones((1, 3)), [1]), ValueError, "with n >= 2"),
    (lambda: estimation.energy_share(np.ones(3), [0.5]), TypeError, "sequence of integers"),
    (
      lambda: _gradients.gradient_samples(lstm(), (5, 2), num_workers=1, batch=1, draws=1),
      ValueError,
      "steps must be at least 5, got 2",
    ),
  ],
)
def test_bad_arguments_are_refused(call, error, message):
  with pytest.raises(error, match=message):
    call()
