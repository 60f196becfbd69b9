"""Trains what a config describes: ``python -m train.main --config=configs/quickstart.py --workdir=DIR``."""

from absl import app, flags
from ml_collections import config_flags

from train import train_and_evaluate

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to train, and how.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where metrics, table and picture go.")


def main(_: list[str]) -> None:
  """Runs the experiment."""
  train_and_evaluate(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
