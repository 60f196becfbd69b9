"""The training system: one loop for every method, task and way of having workers.

Programs are modules of this folder: ``main`` trains, ``tables`` runs the tables of the paper, ``footprint``
measures a step, and ``evaluate``, ``export`` and ``sample`` use what was learnt. ``errors`` is what all of
it may raise. The rest is in folders, each of which imports only from those above it:

    command        a command line becomes a config
    models         networks
    tasks          a network, a training set and a test set
    steps          n workers: what each does by itself, and the exchange
    checkpointing  the folder of a job, and what is saved in it
    processes      several processes that train together
    reporting      terminal, metrics, table and picture
    planning       a config becomes an experiment; what it would take
    loop           every method and seed, step by step
    paper          the tables of the paper

To follow a run, begin with ``loop/job.py``.
"""

import importlib
from typing import Any

from train.errors import ConfigError as ConfigError
from train.errors import UserError as UserError

# What needs JAX and all the rest is imported when it is asked for: a mistake on a command line is found without.
_LATER = {
  "train_and_evaluate": "train.loop.job",
  "load_trained": "train.checkpointing.trained",
  "Score": "train.tasks.task",
  "Task": "train.tasks.task",
}


def __getattr__(name: str) -> Any:
  if name not in _LATER:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_LATER[name]), name)
