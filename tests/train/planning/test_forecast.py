"""What a training should take, against its own arithmetic."""

import math

import pytest

import rtopk_jax
from tests.train import tiny
from train import main as program
from train.errors import UserError
from train.planning import explain, forecast
from train.planning.experiment import make_experiment

pytestmark = pytest.mark.usefixtures("usual_promotion")
LINK = "10Mbit/s"


def _experiment(**fields):
  config = tiny.get_config()
  config.workers, config.methods, config.warmup_epochs = "simulated", ("none", "rtopk"), 2
  for name, value in fields.items():
    config[name] = value
  return make_experiment(config)


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"wire_values": "int8", "wire_indices": "elias_fano"},
    {"scope": "block:64", "density": 1 / 8, "wire_indices": "block", "warmup_epochs": 0},
    {"collective": "reduce_scatter"},
  ],
)
def test_an_exchange_carries_the_bytes_that_are_sent(fields):
  """Of the model's time only the bytes are another's: those of the buffers, which are whole tiles."""
  experiment = _experiment(**fields)
  config, d = experiment.config, experiment.size
  slow, fast = (forecast.exchange(experiment, "rtopk", x) for x in ("1Mbit/s", "2Mbit/s"))
  framing = 1538 / 1448
  assert math.isclose(slow - fast, 8 * framing * experiment.costs["rtopk"][-1].link / 2e6)
  dense = rtopk_jax.advise(d, config.num_workers, LINK).dense
  assert math.isclose(forecast.exchange(experiment, "none", LINK), dense.seconds)


def test_a_training_exchanges_at_the_density_that_each_epoch_has():
  experiment = _experiment()
  plan = experiment.plan
  each = [forecast.exchange(experiment, "rtopk", LINK, stage=i) for i in range(3)]
  assert each[0] > each[1] > each[2]
  last = plan.exchanges - 2 * plan.per_epoch
  expected = plan.exchanges * 0.1 + plan.per_epoch * (each[0] + each[1]) + last * each[2]
  assert math.isclose(forecast.training(experiment, "rtopk", LINK, 0.1), expected)


def test_a_training_that_ends_in_its_warm_up():
  experiment = _experiment(max_steps=1)
  expected = 0.1 + forecast.exchange(experiment, "rtopk", LINK, stage=0)
  assert math.isclose(forecast.training(experiment, "rtopk", LINK, 0.1), expected)


def test_explained_for_a_link(capsys):
  config = tiny.get_config()
  config.workers = "simulated"
  explain.show(config, None, ("10Mbit/s", "1Gbit/s"), batch_seconds=0.25)
  text = capsys.readouterr().out
  assert "at 10Mbit/s" in text
  assert "a worker's batch takes 0.25 s beside the exchange" in text


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--bandwidth=1Gbit/s"], "--bandwidth is for --explain"),
    (["--batch_seconds=1"], "--batch_seconds is for --explain"),
    (
      ["--explain", "--batch_seconds=-1"],
      "--batch_seconds must be at least 0 and finite, got -1.0",
    ),
    (["--explain", "--batch_seconds=nan"], "--batch_seconds must be at least 0 and finite"),
    (["--explain", "--bandwidth=fast"], "--bandwidth must be bits a second.*got 'fast'"),
    (["--explain", "--bandwidth=0"], "--bandwidth must be above 0 bits a second"),
  ],
)
def test_what_is_refused(flags, message):
  with pytest.raises(UserError, match=message):
    program.parse(["--config=configs/quickstart.py", "--workdir=x", *flags])
