"""Mistakes on the command line, some of them in a real process: one line, exit code 2, nothing written."""

import subprocess
import sys

import pytest

from tests.train.runs import ROOT
from train import main
from train.command import program

# What is said of a field, after "error: config.". Told by the quickstart's config.
FIELDS = {
  # numbers
  "epochs=0": "epochs must be at least 1, got 0.",
  "epochs=x": "epochs must be an integer, got 'x'.",
  "epochs=1.5": "epochs must be an integer, got '1.5'.",
  "epochs=2147483648": "epochs must be an integer of 32 bits, got 2147483648.",
  "step_epochs=(1,2147483648)": "step_epochs must be a tuple whose items are each an integer of 32 bits, got (1, "
  "2147483648).",
  "epochs": "epochs needs a value, as in --config.epochs=VALUE.",
  "batch_size=0": "batch_size must be at least 1, got 0.",
  "batch_size=-1": "batch_size must be at least 1, got -1.",
  "batch_size=1000000": "batch_size=1000000 is more than a worker's share of the data, which is 287 (1437 "
  "examples, num_workers=5).",
  "num_workers=0": "num_workers must be at least 1, got 0.",
  "num_workers=100000": "batch_size=16 is more than a worker's share of the data, which is 0 (1437 examples, "
  "num_workers=100000).",
  "micro_batches=0": "micro_batches must be at least 1, got 0.",
  "micro_batches=99": "micro_batches must be at most 17, the batches of a worker in an epoch, got 99.",
  "global_batch_size=81": "global_batch_size must be a multiple of 5, num_workers=5 times micro_batches=1, got 81.",
  "eval_batch_size=0": "eval_batch_size must be at least 1, got 0.",
  "train_examples=0": "train_examples must be at least 1 or None, got 0.",
  "train_examples=1438": "train_examples must be at most 1437, the images there are, got 1438.",
  "unroll=0": "unroll must be at least 1, got 0.",
  "data_threads=-1": "data_threads must be at least 0 and at most 1024, got -1.",
  "max_steps=0": "max_steps must be at least 1 or None, got 0.",
  "log_every=0": "log_every must be at least 1, got 0.",
  "keep_checkpoints=1": "keep_checkpoints must be at least 2, got 1.",
  "checkpoint_every=-1": "checkpoint_every must be at least 0 or None, got -1.",
  "check_every=-1": "check_every must be at least 0, got -1.",
  "max_skipped=0": "max_skipped must be at least 1, got 0.",
  "data_threads=1025": "data_threads must be at least 0 and at most 1024, got 1025.",
  "peer_timeout=0.1": "peer_timeout must be at least 2 and at most 86400, got 0.1.",
  "peer_timeout=1e9": "peer_timeout must be at least 2 and at most 86400, got 1000000000.0.",
  "profile_from=0": "profile_from must be at least 1, got 0.",
  "profile_steps=-1": "profile_steps must be at least 0, got -1.",
  "warmup_epochs=-1": "warmup_epochs must be at least 0, got -1.",
  "warmup_epochs=16": "warmup_epochs must be below config.epochs=16, got 16: nothing would be left for the "
  "density 0.01.",
  "eval_every=-1": "eval_every must be at least 0, got -1.",
  "eval_every=17 eval_at_end=false": "eval_every must be from 1 to config.epochs=16 with "
  "config.eval_at_end=False, got 17: there would be no score.",
  "eval_at_end=maybe": "eval_at_end must be True or False, got 'maybe'.",
  # the optimizer
  "learning_rate=inf": "learning_rate must be finite and at least 0, got inf.",
  "learning_rate=nan": "learning_rate must be finite and at least 0, got nan.",
  "learning_rate=1e39": "learning_rate must be finite and at least 0, got 1e+39.",
  "clip_norm=1e-50": "clip_norm must be above 0 or None, got 1e-50.",
  "learning_rate=-0.1": "learning_rate must be at least 0, got -0.1.",
  "learning_rate=fast": "learning_rate must be a number, got 'fast'.",
  "schedule=linear": "schedule must be one of cosine, step, zaremba, got 'linear'.",
  "schedule=zaremba decay=0": "decay must be above 0, got 0.0.",
  "schedule=zaremba constant_epochs=-3": "constant_epochs must be at least 1, got -3.",
  "schedule=step step_epochs=(-1,)": "step_epochs must be a tuple whose items are each at least 1, got (-1,).",
  "schedule=step step_epochs=(2,2)": "step_epochs must be a tuple that names each item once, got (2, 2).",
  "step_factor=-1": "step_factor must be at least 0, got -1.0.",
  "weight_decay=-1": "weight_decay must be at least 0, got -1.0.",
  "momentum=1": "momentum must be at least 0 and below 1, got 1.0.",
  "momentum=-0.1": "momentum must be at least 0 and below 1, got -0.1.",
  "clip_norm=0": "clip_norm must be above 0 or None, got 0.0.",
  # the exchange
  "density=0": "density must be above 0 and at most 1, got 0.0.",
  "density=1.5": "density must be above 0 and at most 1, got 1.5.",
  "density=1 warmup_epochs=0": "density=1.0 of 77754 parameters is all of them: nothing would be saved. Without "
  'compression is config.methods=("none",).',
  "density=1e-9": "density=1e-09 of 77754 parameters is 7.78e-05 of them: nothing would be sent.",
  "subsample=0.5": "subsample must be at least 1 or None, got 0.5.",
  "scope=all": "scope must be 'global', 'leaf' or a rtopk_jax.Block, got 'all'.",
  "scope=block:x": 'scope must be "global", "leaf" or "block:SIZE", got \'block:x\'.',
  "scope=block:0": 'scope must be "global", "leaf" or "block:SIZE", got \'block:0\': size must be at least 2, got 0.',
  "average=median": "average must be one of 'workers', 'senders', 'sum', 'mean', got 'median'.",
  "collective=ring": "collective must be one of all_gather, reduce_scatter, auto, hierarchical or "
  "hierarchical:NAME of them, got 'ring'.",
  "wire_values=float12": "wire_values must be one of",
  "wire_indices=int7": "wire_indices must be one of",
  "memory_dtype=int8": "memory_dtype must be a floating point dtype, such as \"bfloat16\", got 'int8'.",
  "memory_dtype=10**9": "memory_dtype must be a floating point dtype, such as \"bfloat16\", got '10**9'.",
  "memory_dtype=foo": "memory_dtype must be a floating point dtype, such as \"bfloat16\", got 'foo'.",
  "memory_decay=-1": "memory_decay must be above 0 and at most 1, got -1.0.",
  "nesterov momentum=0": "nesterov=True has no effect with momentum=0; give a momentum in (0, 1).",
  "dense=maybe": "dense must be True or False or None, got 'maybe'.",
  "error_feedback=2": "error_feedback must be True or False, got '2'.",
  # what is compared
  "methods=()": "methods must be a tuple of at least one, each one of none, rtopk, topk, randomk, got ().",
  "methods=('rtopk','qsgd')": "methods must be a tuple whose items are each one of none, rtopk, topk, randomk, "
  "got ('rtopk', 'qsgd').",
  "methods=topk,topk": "methods must be a tuple that names each item once, got ('topk', 'topk').",
  "seeds=()": "seeds must be a tuple of at least one, each at least 0 and at most 2147483647, got ().",
  "seeds=(0,0)": "seeds must be a tuple that names each item once, got (0, 0).",
  "seeds=(0,1.5)": "seeds must be a tuple whose items are each an integer, got (0, 1.5).",
  "seeds=a": "seeds must be a tuple whose items are each an integer, got ('a',).",
  "seeds=(2147483648,)": "seeds must be a tuple whose items are each at least 0 and at most 2147483647, got "
  "(2147483648,).",
  "seeds=(-1,)": "seeds must be a tuple whose items are each at least 0 and at most 2147483647, got (-1,).",
  "setting=gossip": "setting must be one of distributed, federated, got 'gossip'.",
  "local_steps=3": "local_steps must be None with config.setting='distributed', where it has no effect, got 3.",
  "participation=0": "participation must be above 0 and at most 1, got 0.0.",
  "participation=0.5": "participation must be 1.0 with config.setting='distributed', where it has no effect, got "
  "0.5.",
  "setting=federated micro_batches=2": "micro_batches must be 1 with config.setting='federated', where it has no "
  "effect, got 2.",
  "setting=federated local_steps=99": "local_steps must be at most 17, the batches of a worker in an epoch, got 99.",
  "delay=2": "delay must be at least 0 and at most 1, got 2.",
  "delay=1 collective=reduce_scatter": "collective must hand every message to everybody with config.delay=1, as all_gather "
  "does, got 'reduce_scatter'.",
  "delay=1 mesh.shards=2": "mesh.shards must be 1 with config.delay=1, which needs parameters that are whole, got 2.",
  "setting=federated participation=0.5 collective=reduce_scatter": "collective must be 'all_gather' with "
  "config.participation=0.5, got 'reduce_scatter': a worker that is absent cannot add up what others send it.",
  "outer_momentum=0.5": "outer_momentum must be 0.0 with config.setting='distributed', where it has no effect, got "
  "0.5.",
  # the mesh
  "mesh.chips=0": "mesh.chips must be at least 1, got 0.",
  "mesh.workers=0": "mesh.workers must be at least 1 or None, got 0.",
  "mesh.chip=2": "mesh.chip is not a field; did you mean config.mesh.chips?",
  "mesh={'chip':2}": "mesh.chip is not a field; did you mean config.mesh.chips?",
  "mesh=2": "mesh must be a dictionary, got '2'.",
  "mesh.fast=wire": "mesh.fast must be one of auto, slice, process, all, got 'wire'.",
  "mesh.chips=3": "batch_size must be a multiple of 3, config.mesh.chips=3 times config.mesh.shards=1, over which "
  "a worker's batch is dealt, got 16.",
  "mesh.workers=4 global_batch_size=6": "global_batch_size must be a multiple of 4, num_workers=4 times "
  "micro_batches=1, got 6.",
  "mesh.shards=2 workers=simulated": "mesh.shards must be 1 with config.workers='simulated', got 2: every shard "
  "selects by itself, and one device has all of a worker.",
  "mesh.shards=2 optimizer.name=muon momentum=0": "mesh.shards must be 1 with config.optimizer.name='muon', which "
  "needs whole matrices, got 2; chips, and local steps (config.setting='federated'), are no hindrance.",
  "collective=hierarchical": "collective must be 'all_gather' with config.mesh.chips=1, got 'hierarchical': one "
  "chip sends all.",
  "collective=auto": "bandwidth must be that of a worker's link, such as '1Gbit/s', with "
  "config.collective='auto', got None.",
  "collective=auto bandwidth=fast": "bandwidth must be bits a second, as a number or like '1Gbit/s',",
  "bandwidth=1Gbit/s": "bandwidth must be None with config.collective='all_gather', where it has no effect, got "
  "'1Gbit/s'.",
  "workers=cloud": "workers must be one of auto, devices, simulated, got 'cloud'.",
  "workers=devices": "workers must be 'simulated' or 'auto' with config.num_workers=5 and 1 devices, got 'devices'.",
  "variants={'full':3}": "variants is the config's own; config.variant chooses one of them.",
  "variant=huge": "variant must be one of full, got 'huge'.",
  # the model and the data set
  "model.width=0": "model.width must be at least 1 and at most 1048576, got 0.",
  "model.width=-4": "model.width must be at least 1 and at most 1048576, got -4.",
  "model.width=50000": "model makes blocks.0.conv1.kernel of 22,500,000,000 weights; an array that is compressed has at "
  "most 2,147,483,647.",
  "model.width=x": "model.width must be an integer, got 'x'.",
  "model.stages=()": "model.stages must be a tuple of at least one and at most 8, each at least 1 and at most 1000, "
  "got ().",
  "model.stages=(1,0)": "model.stages must be a tuple whose items are each at least 1 and at most 1000, "
  "got (1, 0).",
  "model.stages=(1,2000000000)": "model.stages must be a tuple whose items are each at least 1 and at most 1000, got",
  "model.stages=(1,1,1,1,1,1,1,1,1)": "model.stages must be a tuple of at least one and at most 8, each",
  "model.width=2000000000": "model.width must be at least 1 and at most 1048576, got 2000000000.",
  "methods=none model.width=300000": "model makes ",
  "model.dtype=float12": "model.dtype must be one of float32, bfloat16, float16, got 'float12'.",
  "model.stem=foo": "model.stem must be one of small, imagenet, got 'foo'.",
  "dataset=digit": "dataset must be one of digits, cifar10,",
  "dataset=ptb": 'model.name must be one of lstm, transformer, or "package.module:name" of one\'s own, with '
  "config.dataset='ptb', got 'resnet'.",
  "data_dir=Makefile": "data_dir must be a folder of this machine, got 'Makefile'.",
  "compilation_cache=Makefile": "compilation_cache must be a folder of this machine, got 'Makefile'.",
  "data_dir=gs://b/d": "data_dir must be a folder of this machine, got 'gs://b/d'.",
  # fields that there are not
  "learnin_rate=1": "learnin_rate is not a field; did you mean config.learning_rate?",
  "model.depth=3": "model.depth is not a field; did you mean config.model.width?",
  "modle.width=3": "modle is not a field; did you mean config.model?",
  "zzz=3": "zzz is not a field; config has average, bandwidth, batch_size,",
  "epochs.more=3": "epochs has no fields, got one of it.",
  "task_options=3": "task_options must be a dictionary, got '3'.",
  # tasks
  "task=nowhere:Task": "task must be \"package.module:name\", got 'nowhere:Task', which cannot be imported: No module "
  "named 'nowhere'.",
  "task=train.loop.run": "task must be \"package.module:name\", got 'train.loop.run'.",
  "task=train.loop.run:Nothing": "task must be \"package.module:name\", got 'train.loop.run:Nothing', which cannot be "
  "imported: module 'train.loop.run' has no attribute 'Nothing'.",
  "task=os:sep": "task must be \"package.module:name\", got 'os:sep', which is not a task: no class or function that "
  "makes one.",
  "task=os.path:join": "task must be \"package.module:name\", got 'os.path:join', which makes no task: TypeError: "
  "expected str, bytes or os.PathLike object, not ConfigDict. --traceback shows where.",
  "task=pathlib:Path": "task must be \"package.module:name\", got 'pathlib:Path', which is not a task: no class or "
  "function that makes one.",
  "task=json:dumps": "task must be \"package.module:name\", got 'json:dumps', which makes no task: TypeError: Object of "
  "type ConfigDict is not JSON serializable. --traceback shows where.",
  "task=builtins:id": "task must be \"package.module:name\", got 'builtins:id', whose task lacks score, unit, examples, "
  "source, init, loss, statistics, evaluate (train/tasks/task.py).",
}

# Of language models, by their quickstart's config.
TEXTS = {
  "model.units=-1": "model.units must be at least 1 and at most 1048576, got -1.",
  "model.units=0": "model.units must be at least 1 and at most 1048576, got 0.",
  "model.layers=0": "model.layers must be at least 1 and at most 1000, got 0.",
  "model.layers=2000000000": "model.layers must be at least 1 and at most 1000, got 2000000000.",
  "model.units=2000000000": "model.units must be at least 1 and at most 1048576, got 2000000000.",
  "model.dropout=2": "model.dropout must be at least 0 and below 1, got 2.0.",
  "model.init_scale=-1": "model.init_scale must be at least 0, got -1.0.",
  "eval_batch_size=1000000000": "eval_batch_size must be at most",
  "train_examples=1000000000": "train_examples must be at most",
  "unroll=100000": "batch_size=8 with num_workers=5 leaves streams of",
}

# The other arguments, and what is said of them after "error: ".
FLAGS = {
  "--config=configs/nothing.py": "--config=configs/nothing.py: there is no such file; configs/ has those of the "
  "project.",
  "--config=Makefile": "--config=Makefile: a config is a Python file with a function get_config.",
  "--config=train/loop/run.py": "--config=train/loop/run.py: the file has no function get_config.",
  "--config=configs/quickstart.py:distributed,rtopk": "--config=configs/quickstart.py:distributed,rtopk: "
  "configs/quickstart.py has no rows, so that nothing may follow a colon.",
  "--config=configs/ptb.py:sideways": "--config=configs/ptb.py:sideways: A row is SETTING,METHOD[,COMPRESSION], such as "
  "distributed,rtopk,0.99; got 'sideways'.",
  "--config=configs/ptb.py:distributed,rtopk,2": "--config=configs/ptb.py:distributed,rtopk,2: COMPRESSION is the share "
  "not sent,",
  "--process=1": "--coordinator is missing beside --process: a job that is not detected needs all three.",
  "--coordinator=h:1": "--processes is missing beside --coordinator: a job that is not detected needs all three.",
  "--coordinator=nonsense --processes=2 --process=1": "--coordinator must be host:port, such as 10.0.0.1:1234, got "
  "'nonsense'.",
  "--coordinator=h:x --processes=2 --process=1": "--coordinator must be host:port, such as 10.0.0.1:1234, got 'h:x'.",
  "--coordinator=h:1 --processes=2 --process=2": "--process must be at least 0 and below --processes=2, got 2.",
  "--coordinator=h:1 --processes=0 --process=0": "--processes must be at least 1, got 0.",
  "--processes=two": "Argument --processes: invalid int value: 'two'; --help lists what there is.",
  "--workdirr=x": "--workdirr=x is not an option; did you mean --workdir?",
  "--workdir=gs://bucket/run": "--workdir must be a folder of this machine, got 'gs://bucket/run'; mount it, or copy what "
  "is done there.",
  "--workdir=abfs+x://bucket/run": "--workdir must be a folder of this machine, got 'abfs+x://bucket/run'; mount it,",
  "--cluster=perhaps": "--cluster must be true or false, got 'perhaps'; --help lists what there is.",
}


# Told here by a process that has several devices, where this would run.
ALONE = {"workers=devices": FIELDS.pop("workers=devices")}
CONFIGS = {"configs/quickstart.py": FIELDS, "configs/language_quickstart.py": TEXTS}


def _refused(capsys, arguments):
  """What the program says of its arguments in this process."""
  with pytest.raises(SystemExit) as end:
    program.run(main.main, arguments)
  assert end.value.code == 2, arguments
  output = capsys.readouterr()
  assert output.out == ""
  return output.err


@pytest.mark.parametrize("config", CONFIGS)
def test_fields_are_refused_in_one_line(usual_promotion, capsys, tmp_path, config):
  workdir = tmp_path / "job"
  for fields, said in CONFIGS[config].items():
    changes = [f"--config.{field}" for field in fields.split()]
    output = _refused(capsys, [f"--workdir={workdir}", f"--config={config}", *changes])
    assert output.startswith(f"error: config.{said}"), (fields, output)
    assert output.count("\n") == 1, (fields, output)
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("config", "every"),
  [
    ("configs/quickstart.py", 60),
    ("configs/language_quickstart.py", 8),
    *(pytest.param(config, 1, marks=pytest.mark.slow) for config in CONFIGS),
  ],
)
def test_fields_are_refused_in_real_processes(zygote, tmp_path, config, every):
  workdir = tmp_path / "job"
  cases = dict(list(CONFIGS[config].items())[::every])
  if cases.keys() <= FIELDS.keys():
    cases |= ALONE
  for i, (fields, said) in enumerate(cases.items()):
    child = zygote.main(
      tmp_path / f"{i}.log",
      f"--workdir={workdir}",
      f"--config={config}",
      *(f"--config.{field}" for field in fields.split()),
    )
    code, output = child.wait(), child.output()
    assert code == 2, (fields, output)
    assert output.startswith(f"error: config.{said}"), (fields, output)
    assert output.count("\n") == 1, (fields, output)
  assert not workdir.exists()


def test_flags_are_refused_in_one_line(usual_promotion, capsys, tmp_path):
  workdir = tmp_path / "job"
  for flags, said in FLAGS.items():
    given = [] if "--config=" in flags else ["--config=configs/quickstart.py"]
    output = _refused(capsys, [f"--workdir={workdir}", *given, *flags.split()])
    assert output.startswith(f"error: {said}"), (flags, output)
    assert output.count("\n") == 1, (flags, output)
  assert not workdir.exists()


def test_a_data_set_that_is_not_there_is_told_with_its_command(usual_promotion, capsys, tmp_path):
  where = (f"--workdir={tmp_path / 'job'}", f"--config.data_dir={tmp_path}")
  output = _refused(capsys, ["--config=configs/cifar10.py", *where])
  assert output.startswith("error: cifar10 is not in ")
  assert output.count("\n") == 1
  assert "python -m data.prepare cifar10" in output


def test_what_is_missing_is_said(zygote, tmp_path):
  for arguments, said in (
    ((), "error: --config is missing, such as --config=configs/quickstart.py.\n"),
    (
      ("--config=configs/quickstart.py",),
      "error: --workdir is missing, such as --workdir=runs/quickstart.\n",
    ),
  ):
    child = zygote.main(tmp_path / f"{len(arguments)}.log", *arguments)
    assert child.wait() == 2
    assert child.output() == said


def test_traceback_is_there_for_who_asks(zygote, tmp_path):
  child = zygote.start(tmp_path / "job", "--config.density=7", "--traceback")
  assert child.wait() == 2
  *trace, last = child.output().splitlines()
  assert last == "error: config.density must be above 0 and at most 1, got 7.0."
  assert trace[0] == "Traceback (most recent call last):"


def test_bugs_keep_their_traceback(zygote, tmp_path):
  config = tmp_path / "bad.py"
  config.write_text("def get_config():\n  return 1 / 0\n")
  child = zygote.main(tmp_path / "log", f"--config={config}", f"--workdir={tmp_path / 'job'}")
  assert child.wait() == 1
  assert "ZeroDivisionError" in child.output()
  assert "Traceback" in child.output()


def test_without_a_zygote():
  """The whole program, as a user starts it."""
  run = subprocess.run(
    [
      *(sys.executable, "-m", "train.main", "--config=configs/quickstart.py"),
      *("--workdir=/nowhere/x", "--config.epochs=0"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 2
  assert run.stderr == "error: config.epochs must be at least 1, got 0.\n"
  assert run.stdout == ""
