"""Language modelling through the real loop, and its loss and perplexity against NumPy."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import data
from configs import language_quickstart, variants
from tests.train.models import networks
from train import models, train_and_evaluate
from train.planning import settings
from train.steps.layout import choose_mesh
from train.steps.methods import make_rounds
from train.steps.workers import Workers
from train.tasks.language import Language
from train.tasks.make import make_task


@pytest.fixture(autouse=True)
def _promotion(usual_promotion):
  """The schedules of optax need the usual promotion."""


@pytest.fixture
def config():
  """The quickstart made tiny: 8 units, no dropout."""
  config = language_quickstart.get_config()
  config.model.units = 8
  config.model.dropout = 0.0
  config.batch_size, config.unroll, config.eval_batch_size = 2, 6, 3
  config.compilation_cache = None
  return config


@pytest.fixture
def text():
  """400, 50 and 62 words of a vocabulary of 13, each of which follows from the one before."""
  follow = np.random.default_rng(0).permutation(13)
  words = [5]
  for _ in range(511):
    words.append(int(follow[words[-1]]))
  words = np.array(words, np.int32)
  return data.Text(words[:400], words[400:450], words[450:], tuple("abcdefghijklm"))


def _exact(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _logits(params, words, carry):
  masks = np.ones((3, words.shape[1], words.shape[0], params["embedding"].shape[1]))
  logits, carry, _ = networks.lstm(params, words, carry, masks)
  return logits, carry


def test_loss_is_summed_over_time_and_averaged_over_streams(config, text):
  task = Language(config, text)
  params, silence = task.init(jax.random.key(0))
  source = task.source(seed=0)
  assert source.steps_per_epoch == 6
  carry = np.zeros_like(silence)
  state = silence
  exact = _exact(params)
  loss_of = jax.jit(task.loss)
  for epoch, step in ((0, 0), (0, 1), (1, 0)):
    batch = source.batch(epoch, step, worker=3)
    # The hidden state is that after the window before; an epoch begins with silence.
    logits, after = _logits(exact, batch["input"], carry if step else np.zeros_like(carry))
    losses = networks.cross_entropy(logits, batch["target"])
    loss, (state, metrics) = loss_of(params, state, batch)
    np.testing.assert_allclose(loss, losses.sum() / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["train_loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(state, after, rtol=1e-4, atol=1e-6)
    carry = after


def test_perplexity_is_of_the_whole_text(config, text):
  task = Language(config, text)
  params, silence = task.init(jax.random.key(1))
  found = task.evaluate(params, silence)
  for name, words in (("valid", text.valid), ("test", text.test)):
    # Three streams, whose length is no multiple of the window's.
    streams = words[: 3 * (len(words) // 3)].reshape(3, -1)
    logits, _ = _logits(_exact(params), streams[:, :-1], np.zeros((2, 2, 3, 8)))
    loss = networks.cross_entropy(logits, streams[:, 1:]).mean()
    np.testing.assert_allclose(found[f"{name}_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found[f"{name}_perplexity"], np.exp(loss), rtol=1e-5)


def test_dropout_is_off_in_evaluation_and_follows_the_batch_in_training(config, text):
  config.model.dropout = 0.5
  task = Language(config, text)
  params, silence = task.init(jax.random.key(0))
  assert task.evaluate(params, silence) == task.evaluate(params, silence)
  source = task.source(seed=0)
  loss = jax.jit(lambda batch: task.loss(params, silence, batch)[0])
  batch = source.batch(0, 0, worker=0)
  assert loss(batch) == loss(batch)
  assert loss(batch) != loss({**batch, "key": source.batch(0, 0, worker=1)["key"]})


@pytest.fixture
def window_config(config):
  """A tiny transformer in place of the LSTM."""
  config.model = ConfigDict(
    dict(
      {name: field.default for name, field in models.transformer.FIELDS.items()},
      name="transformer",
      layers=1,
      heads=2,
      width=8,
    )
  )
  return config


def test_a_model_that_carries_nothing_reads_windows(window_config, text):
  task = Language(window_config, text)
  source = task.source(seed=0)
  assert isinstance(source, data.WindowSource)
  params, state = task.init(jax.random.key(0))
  assert state == ()
  exact = _exact(params)
  batch = source.batch(0, 0, worker=1)
  logits = networks.transformer(exact, batch["input"], 2, 1e4)
  loss, (state, metrics) = jax.jit(task.loss)(params, (), batch)
  # The mean over time, too.
  mean = networks.cross_entropy(logits, batch["target"]).mean()
  np.testing.assert_allclose([loss, metrics["train_loss"]], mean, rtol=1e-5)
  assert state == ()
  # Evaluation reads windows side by side, to the last word of each of 3 streams.
  streams = text.valid[:48].reshape(3, -1)
  losses = [
    networks.cross_entropy(
      networks.transformer(exact, streams[:, i : min(i + 6, 15)], 2, 1e4),
      streams[:, i + 1 : i + 7],
    )
    for i in range(0, 15, 6)
  ]
  found = task.evaluate(params, ())
  np.testing.assert_allclose(found["valid_loss"], np.concatenate(losses, axis=1).mean(), rtol=1e-5)


def test_a_window_model_makes_up_text_of_what_fits_the_window(window_config, text):
  task = Language(window_config, text)
  params, _ = task.init(jax.random.key(3))
  prompt = [1, 2, 3, 4, 5, 6, 7, 8]
  found = task.sample(params, prompt, 4, jax.random.key(0), temperature=0)
  known, exact = prompt, _exact(params)
  for number in found:
    logits = networks.transformer(exact, np.array([known[-6:]]), 2, 1e4)
    assert number == logits[0, -1].argmax()
    known = [*known, number]
  assert task.sample(params, [1], 3, jax.random.key(0), temperature=0) != []


def test_characters_are_scored_by_their_loss(window_config, text):
  characters = dataclasses.replace(text, unit="characters")
  task = Language(window_config, characters)
  assert (task.unit, task.score.key) == ("characters", "valid_loss")
  assert task.score.key in task.evaluate(task.init(jax.random.key(0))[0], ())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "rtopk"])
def test_simulated_workers_do_what_devices_do(config, text, method):
  config.model.dropout = 0.3
  task = Language(config, text)
  make = make_rounds(config, method, task.loss, per_epoch=6, total=12, batches=1)
  states = []
  for kind in ("simulated", "devices"):
    config.workers = kind
    workers = Workers(make, 5, choose_mesh(config))
    state = workers.init(*task.init(jax.random.key(0)), jnp.int32(0))
    for batch in data.load(task.source(seed=0), workers.local, steps=7):
      state, metrics = workers.step(state, (batch,), jnp.int32(0))
    assert float(metrics["skipped_steps"]) == 0
    states.append(jax.device_get(state))
  simulated, devices = states
  assert simulated.model_state.shape == (5, 2, 2, 2, 8)
  assert jax.tree.structure(simulated) == jax.tree.structure(devices)
  for a, b in zip(jax.tree.leaves(simulated), jax.tree.leaves(devices), strict=True):
    assert a.shape == b.shape
    # Gradients of two programs differ in rounding, and an entry at the threshold may go either way.
    assert np.mean(np.abs(a - b) <= 1e-4 + 1e-3 * np.abs(b)) > 0.98


@pytest.mark.slow
def test_compares_methods_on_python_s_docs(config, tmp_path):
  config.methods, config.epochs, config.warmup_epochs, config.max_steps = (
    ("none", "rtopk"),
    1,
    0,
    30,
  )
  config.batch_size, config.density, config.learning_rate = 8, 0.1, 0.5
  config.eval_batch_size = 50
  records = train_and_evaluate(config, str(tmp_path))
  assert [r["method"] for r in records] == ["none", "rtopk"]
  for record in records:
    # From a guess among 1,000 words to how frequent they are.
    assert record["test_perplexity"] < 600
    np.testing.assert_allclose(record["test_perplexity"], np.exp(record["test_loss"]))
    assert record["words_per_second"] > 0
    assert 0 <= record["seconds_waiting_for_data"] < record["seconds"]
  assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")
  assert "| method | test perplexity |" in (tmp_path / "results.md").read_text()
  assert json.loads((tmp_path / "config.json").read_text())["model"]["units"] == 8


CONFIGS = {
  "quickstart": 77_754,
  "cifar10": 11_173_962,
  "imagenet": 21_797_672,
  "ptb": 51_022_000,
  "language_quickstart": 131_048,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_describes_a_network(name, text):
  config = variants.settle(importlib.import_module(f"configs.{name}").get_config())
  settings.check(config)
  if name in ("quickstart", "language_quickstart"):
    task = make_task(config)
  elif name == "ptb":
    vocabulary = tuple(map(str, range(10_000)))
    task = Language(config, data.Text(text.train, text.valid, text.test, vocabulary))
  else:
    from train.tasks.classification import Classification

    split = data.Split(10**6, lambda i: (i, i))
    classes = {"cifar10": 10, "imagenet": 1000}[name]
    unit = (1.0,) * 3
    images = data.Images(split, split, classes, 3, unit, unit, augment=lambda rng, x: x)
    task = Classification(config, images)
  params, _ = jax.eval_shape(task.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params)) == CONFIGS[name]
