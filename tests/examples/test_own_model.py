"""The example of a model and a data set of one's own: they train, are refused by name, and are short."""

import pathlib

import numpy as np
import pytest

import train
from examples import own_model
from train import train_and_evaluate
from train.command import overrides
from train.tasks.make import make_task

pytestmark = pytest.mark.usefixtures("usual_promotion")
ROOT = pathlib.Path(__file__).parents[2]
FILE = str(ROOT / "examples" / "own_model.py")


@pytest.fixture
def config():
  config = own_model.get_config()
  config.workers, config.compilation_cache = "simulated", None
  return config


def test_the_text_is_of_sums():
  corpus = own_model.sums(None)
  assert len(corpus.vocabulary) == 13
  spelt = "".join(corpus.vocabulary[i] for i in corpus.valid).split(";")[:-1]
  assert len(spelt) == 500
  for line in spelt:
    left, _, right = line.partition("=")
    assert sum(map(int, left.split("+"))) == int(right)


def test_it_trains_and_what_was_learnt_is_found_again(config, tmp_path):
  config.max_batches, config.train_examples, config.eval_batch_size = 40, 20_000, 20
  record = train_and_evaluate(config, str(tmp_path))[-1]
  # Less than a guess among 13 characters.
  assert record["train_loss"] < np.log(13)
  trained = train.load_trained(str(tmp_path))
  found = trained.task.evaluate(trained.params, trained.statistics)
  assert found["valid_loss"] == record["valid_loss"]


def test_its_fields_are_set_and_checked_by_name():
  config = overrides.load(FILE, [("model.hidden", "16"), ("density", "0.1")])
  task = make_task(config)
  assert task.unit == "characters"
  for path, value, message in (
    ("model.hidden", "0", r"config.model.hidden must be at least 1, got 0"),
    ("model.hiden", "3", r"config.model.hiden is not a field; did you mean config.model.hidden"),
    (
      "model.name",
      "resnet",
      r"config.model.name must be one of lstm, transformer, or .* of one's own",
    ),
    ("model.name", "examples.own_model:Rare", r"config.model.name .* cannot be imported"),
    ("model.name", "json:dumps", r"config.model.name='json:dumps' is no model"),
    ("dataset", "examples.own_model:products", r"config.dataset .* cannot be imported"),
    ("dataset", "os:getenv", r"config.dataset='os:getenv' must return data.Images or data.Text"),
  ):
    config = overrides.load(FILE, [(path, value)])
    config.data_dir = "somewhere"
    with pytest.raises(train.ConfigError, match=message):
      make_task(config)


def test_it_is_short():
  assert len(pathlib.Path(FILE).read_text().splitlines()) < 100
