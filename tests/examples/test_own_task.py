"""The example of a task of one's own, by the system's own programs, as its docs walk through it."""

import json
import pathlib

import numpy as np
import pytest

import train
from examples import own_task
from train import evaluate, train_and_evaluate

pytestmark = pytest.mark.usefixtures("usual_promotion")

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config():
  config = own_task.get_config()
  config.compilation_cache = None
  return config


def test_it_learns_the_wave_and_is_evaluated_again(config, tmp_path, capsys):
  config.epochs = 3
  records = train_and_evaluate(config, str(tmp_path))
  for method in config.methods:
    errors = [x["test_error"] for x in records if x["method"] == method]
    assert errors[-1] < errors[0]
    trained = train.load_trained(str(tmp_path), method)
    assert trained.task.evaluate(trained.params, trained.statistics)["test_error"] == errors[-1]
    assert np.isfinite(trained.params["hidden"]["kernel"]).all()
  capsys.readouterr()
  evaluate.main([f"--workdir={tmp_path}", "--method=rtopk"])
  found = json.loads(capsys.readouterr().out)
  assert found == {"method": "rtopk", "seed": 0, "step": 60, "test_error": errors[-1]}


def test_its_fields_are_checked(config, tmp_path):
  config.task_options.noise = -1.0
  with pytest.raises(
    train.ConfigError, match=r"config.task_options.noise must be at least 0, got -1"
  ):
    train_and_evaluate(config, str(tmp_path / "job"))
  config.task_options.noise = 0.1
  config.model = {"with": 3}
  with pytest.raises(
    train.ConfigError, match=r"config.model.with .* did you mean config.model.width"
  ):
    train_and_evaluate(config, str(tmp_path / "job"))
  assert not (tmp_path / "job").exists()


def test_it_is_short():
  assert len((ROOT / "examples" / "own_task.py").read_text().splitlines()) < 100
