"""What a run has learnt, after the run: the same scores, the weights alone, text."""

import json
import math

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

import train
from configs import language_quickstart, quickstart
from tests.train import tiny
from tests.train.runs import lines
from train import evaluate, export, sample, train_and_evaluate
from train.checkpointing import trained
from train.errors import UserError
from train.planning import explain

pytestmark = pytest.mark.usefixtures("usual_promotion")


def _trained(tmp_path_factory, config, name):
  folder = tmp_path_factory.mktemp(name) / "job"
  config.compilation_cache = None
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    train_and_evaluate(config, str(folder))
  return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Two methods on the devices of a mesh, with statistics that are averaged; checkpoints of both epochs."""
  config = quickstart.get_config()
  config.model.stages, config.model.width, config.batch_size = (1,), 4, 143
  config.methods, config.seeds, config.epochs, config.warmup_epochs = ("rtopk", "none"), (3,), 2, 0
  config.eval_batch_size = 100
  return _trained(tmp_path_factory, config, "images")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  config = language_quickstart.get_config()
  config.model.units, config.methods, config.max_steps = 8, ("rtopk",), 5
  config.warmup_epochs = 0
  return _trained(tmp_path_factory, config, "texts")


def _printed(capsys, program, *arguments):
  capsys.readouterr()
  program.main(arguments)
  return capsys.readouterr().out


def test_scores_of_every_checkpoint_are_the_runs_own_to_the_bit(images, texts, capsys):
  for job in (images, texts):
    for record in lines(job / "metrics.jsonl"):
      figures = {name: x for name, x in record.items() if name.startswith(("test_", "valid_"))}
      assert figures
      key = {name: record[name] for name in ("method", "seed", "step")}
      arguments = [f"--{name}={value}" for name, value in key.items()]
      assert json.loads(_printed(capsys, evaluate, f"--workdir={job}", *arguments)) == key | figures
  # Without a method: of all runs.
  assert len(_printed(capsys, evaluate, f"--workdir={images}").splitlines()) == 2


def test_loaded_in_python(images):
  run = train.load_trained(str(images), "rtopk", 3)
  assert (run.method, run.seed, run.step) == ("rtopk", 3, 4)
  assert run.config.model.stages == (1,)
  assert sum(x.size for x in jax.tree.leaves(run.params)) == 398
  shapes, _ = jax.eval_shape(run.task.init, jax.random.key(0))
  assert jax.tree.structure(run.params) == jax.tree.structure(shapes)
  assert train.load_trained(str(images), "rtopk", 3, step=2).step == 2


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (dict(), r"has several runs, none seed 3, rtopk seed 3; name one by --method and --seed\."),
    (
      dict(method="topk"),
      r"^--method=topk names no run of .*, which has none seed 3, rtopk seed 3",
    ),
    (dict(seed=1), r"^--seed=1 names no run of"),
    (dict(method="none", step=3), r"--step=3 is no checkpoint of .*, which has \[2, 4\]"),
  ],
)
def test_what_is_not_there_is_said(images, arguments, said):
  with pytest.raises(UserError, match=said):
    train.load_trained(str(images), **arguments)


def test_folders_without_a_run(tmp_path):
  for program in (evaluate, sample):
    with pytest.raises(UserError, match=r"--workdir=.*nowhere is no folder that is there\."):
      program.main([f"--workdir={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match=r"--workdir=.* has no run in it"):
      program.main([f"--workdir={tmp_path}", "--method=rtopk"])


def test_exported_weights_are_the_checkpoints(images, tmp_path, capsys):
  run = train.load_trained(str(images), "rtopk", 3)
  options = (f"--workdir={images}", "--method=rtopk")
  file, folder = tmp_path / "new" / "w.safetensors", tmp_path / "w"
  assert f"step 4 is in {file}" in _printed(capsys, export, *options, f"--to={file}")
  found = load_file(file)
  np.testing.assert_array_equal(found["params.head.kernel"], run.params["head"]["kernel"])
  np.testing.assert_array_equal(found["statistics.norm.mean"], run.statistics["norm"]["mean"])
  tree = {"params": run.params, "statistics": run.statistics}
  assert len(found) == len(jax.tree.leaves(tree))
  _printed(capsys, export, *options, f"--to={folder}")
  like = jax.tree.map(np.empty_like, tree)
  restored = ocp.StandardCheckpointer().restore(folder, like)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
    np.testing.assert_array_equal(a, b)
  with pytest.raises(UserError, match="is there already"):
    export.main([*options, f"--to={file}"])


def test_text_is_made_up(texts, images, capsys):
  options = (f"--workdir={texts}", "--words=12", "--prompt=the value")
  text = _printed(capsys, sample, *options)
  assert text.startswith("the value ")
  assert len(text.replace("\n", "<eos>").split(" ")) == 14
  assert _printed(capsys, sample, *options) == text
  assert _printed(capsys, sample, *options, "--sample_seed=1") != text
  likeliest = _printed(capsys, sample, *options, "--temperature=0")
  assert _printed(capsys, sample, *options, "--temperature=0", "--sample_seed=1") == likeliest
  with pytest.raises(UserError, match="--prompt: 'zebra' is not one of"):
    sample.main([options[0], "--prompt=zebra"])
  with pytest.raises(UserError, match="not of a language model"):
    sample.main([f"--workdir={images}", "--method=none"])


def test_explained_without_training(tmp_path, capsys):
  config = quickstart.get_config()
  config.methods = ("none", "rtopk")
  explain.show(config, str(tmp_path / "job"))
  text = capsys.readouterr().out
  assert " * learning_rate = 0.05" in text
  assert "   momentum = 0.9" in text
  assert "6 runs (2 methods, 3 seeds) of 272 exchanges, 17 an epoch, each after 1 batch of" in text
  assert "77,754 parameters" in text
  # 4 bytes of each parameter.
  assert f"no compression   {4 * 77754 / 1e6:9.3f}" in text
  assert "python -m train.footprint" in text  # for the peak of a step
  assert f"{tmp_path / 'job'}/metrics.jsonl" in text
  assert not (tmp_path / "job").exists()


def test_state_in_memory_is_what_training_has(capsys):
  config = tiny.get_config()
  config.workers = "simulated"
  explain.show(config, None)
  # Weights, residual and momentum of 4 workers, their running means, counters.
  least = 4 * (130 + 2 * 4 * 130 + 4 * 12)
  (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("rTop-k")]
  assert math.isclose(float(line.split()[3]), least / 1e6, abs_tol=0.005)


def test_a_config_comes_back_as_it_was(images):
  config = trained.load_config(images)
  assert config.methods == ("rtopk", "none")
  assert config.seeds == (3,)
  assert config.data_dir is None
  assert config.dense is False
