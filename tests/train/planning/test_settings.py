"""Configs that cannot run are refused, and what is wrong is named."""

import jax
import ml_collections
import pytest

from train import ConfigError, train_and_evaluate
from train.planning import settings
from train.tasks.make import make_task


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("batchsize", 4, "config.batchsize is not a field; did you mean config.batch_size?"),
    ("setting", "gossip", "setting must be one of distributed, federated, got 'gossip'"),
    ("local_steps", 3, "config.local_steps must be None with config.setting='distributed'"),
    ("participation", 0.5, "config.participation must be 1.0 with config.setting='distributed'"),
    ("global_batch_size", 12, "config.global_batch_size must be a multiple of 5"),
    ("keep_checkpoints", 1, "keep_checkpoints must be at least 2, got 1"),
    ("methods", ("rtopk", "qsgd"), r"got \('rtopk', 'qsgd'\)"),
    ("seeds", (), "config.seeds must be a tuple of at least one"),
    ("schedule", "linear", "schedule must be one of cosine, step, zaremba, got 'linear'"),
    ("unroll", 0, "unroll must be at least 1, got 0"),
    ("warmup_epochs", 2, "config.warmup_epochs must be below config.epochs=2, got 2"),
    ("max_steps", 0, "config.max_steps must be at least 1"),
    ("epochs", 0, "epochs must be at least 1, got 0"),
  ],
)
def test_impossible_configs_are_refused(digits, field, value, message):
  digits[field] = value
  with pytest.raises(ValueError, match=message):
    settings.check(digits)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("workers", "cloud", "workers must be one of auto, devices, simulated"),
    ("num_workers", 2000, "a worker's share of the data, which is 0 .*num_workers=2000"),
    ("micro_batches", 3, "config.micro_batches must be at most 2, the batches of a worker"),
    ("density", 1e-4, "density=0.0001 of 5122 parameters is 0.512 of them: nothing would be sent"),
    ("density", 1.0, "density=1.0 of 5122 parameters is all of them"),
    ("collective", "ring", "collective must be one of"),
    ("wire_values", "float12", "values must be one of"),
    ("scope", "block:x", 'scope must be "global", "leaf" or "block:SIZE", got'),
    ("task", "nowhere:Task", "got 'nowhere:Task', which cannot be imported"),
    ("task", "train.loop.run", 'task must be "package.module:name"'),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_compiles(
  digits, tmp_path, field, value, message
):
  digits.warmup_epochs = 0
  digits[field] = value
  with jax.disable_jit(), pytest.raises(ValueError, match=message):
    train_and_evaluate(digits, str(tmp_path / "job"))
  assert not (tmp_path / "job").exists()


def test_wrong_types_are_refused(digits):
  wrong = ml_collections.ConfigDict(digits.to_dict() | {"momentum": "0.9"})
  with pytest.raises(ConfigError, match=r"config.momentum must be a number, got '0.9'"):
    settings.check(wrong)


def test_unknown_data_set_is_refused(digits):
  digits.dataset = "mnist"
  with pytest.raises(ValueError, match=r"dataset must be one of digits, .*, got 'mnist'"):
    make_task(digits)
