"""Trains what a config describes: ``python -m train.main --config=configs/quickstart.py --workdir=DIR``.

On several hosts start it once on each; on a cluster that JAX does not detect, with ``--coordinator``,
``--processes`` and ``--process``. Started again it goes on from the last checkpoint.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from train import train_and_evaluate
from train.cluster import join

_CONFIG = config_flags.DEFINE_config_file("config", help_string="What to train, and how.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where metrics, checkpoints, table and picture go.", required=True
)
_CLUSTER = flags.DEFINE_bool("cluster", True, "Join the other processes where there is a cluster.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Address of process 0, host:port.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
_PROCESS = flags.DEFINE_integer("process", None, "The number of this one.")


def main(_: list[str]) -> None:
  """Runs the experiment."""
  logging.set_verbosity(logging.WARNING)
  if _CLUSTER.value:
    join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  train_and_evaluate(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
