"""Trains what a config describes: ``python -m train.main --config=configs/quickstart.py --workdir=DIR``."""

from absl import app, flags, logging
from ml_collections import config_flags

from train import train_and_evaluate

_CONFIG = config_flags.DEFINE_config_file("config", help_string="What to train, and how.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where metrics, table and picture go.", required=True
)


def main(_: list[str]) -> None:
  """Runs the experiment."""
  logging.set_verbosity(logging.WARNING)
  train_and_evaluate(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
