"""What a command line may change of a config, and how it is written."""

import pytest

from train.command.program import overrides

QUICKSTART = "configs/quickstart.py"


def _config(*arguments, file=QUICKSTART):
  rest, changes = overrides.split(arguments)
  assert rest == []
  return overrides.load(file, changes)


@pytest.mark.parametrize(
  ("argument", "field", "value"),
  [
    ("--config.epochs=3", "epochs", 3),
    ("--config.learning_rate=1", "learning_rate", 1.0),
    ("--config.learning_rate=1e-3", "learning_rate", 1e-3),
    ("--config.methods=rtopk,topk", "methods", ("rtopk", "topk")),
    ("--config.methods=('none',)", "methods", ("none",)),
    ("--config.methods=none", "methods", ("none",)),
    ("--config.seeds=[0, 1]", "seeds", (0, 1)),
    ("--config.seeds=7", "seeds", (7,)),
    ("--config.step_epochs=()", "step_epochs", ()),
    ("--config.nesterov", "nesterov", True),
    ("--config.nesterov=TRUE", "nesterov", True),
    ("--config.error_feedback=0", "error_feedback", False),
    ("--noconfig.error_feedback", "error_feedback", False),
    ("--config.dense=None", "dense", None),
    ("--config.compilation_cache=None", "compilation_cache", None),
    ("--config.max_steps=4", "max_steps", 4),
    ("--config.mesh.workers=4", "mesh.workers", 4),
    ("--config.mesh.workers=None", "mesh.workers", None),
    ("--config.mesh={'chips': 2}", "mesh.chips", 2),
    ("--config.max_steps=none", "max_steps", None),
    ("--config.data_dir=/a=b", "data_dir", "/a=b"),
    ("-config.epochs=3", "epochs", 3),
  ],
)
def test_values(argument, field, value):
  found = _config(argument)
  for name in field.split("."):
    found = found[name]
  assert found == value
  assert type(found) is type(value)


def test_a_value_may_be_the_next_word():
  words = [
    "--config.epochs",
    "3",
    "--config.weight_decay",
    ".5",
    "--config.nesterov",
    "--workdir=x",
  ]
  rest, changes = overrides.split(words)
  assert rest == ["--workdir=x"]
  config = overrides.load(QUICKSTART, changes)
  assert (config.epochs, config.weight_decay, config.nesterov) == (3, 0.5, True)


def test_the_last_one_counts():
  config = _config(
    "--config.seeds=(0,1)", "--config.seeds=(5,)", "--config.epochs=2", "--config.epochs=3"
  )
  assert (config.seeds, config.epochs) == ((5,), 3)


def test_nested_fields_and_fields_of_a_task():
  assert _config("--config.model.stages=2,2", "--config.model.width=8").model.stages == (2, 2)
  tiny = lambda *arguments: _config(*arguments, file="tests/train/tiny.py")
  assert tiny("--config.task_options.pause=1").task_options.pause == 1.0
  options = tiny("--config.task_options={'bad_from': 3, 'name': 'x'}").task_options
  assert (options.bad_from, options.name, options.pause) == (3, "x", 0.0)
  # What a task knows that no config names; it checks it itself.
  options = tiny("--config.task_options.depth=3", "--config.task_options.name=wave").task_options
  assert (options.depth, options.name) == (3, "wave")


def test_rows():
  assert _config(file="configs/ptb.py:federated,rtopk,0.95").density == 0.05
