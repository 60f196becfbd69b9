"""Checkpoints that are damaged, of another config, of other workers or another layout."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from tests.train import tiny
from tests.train.runs import leaves, lines, same_end, sealed, state
from train import ConfigError, UserError, train_and_evaluate
from train.checkpointing import elastic, integrity
from train.steps.totals import Totals
from train.steps.workers import RunState

pytestmark = pytest.mark.usefixtures("usual_promotion")


@pytest.fixture
def config():
  return tiny.get_config()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run, with checkpoints of steps 20 and 30."""
  folder = tmp_path_factory.mktemp("trained") / "job"
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    train_and_evaluate(_simulated(), str(folder))
  return folder


def _simulated():
  config = tiny.get_config()
  config.workers, config.warmup_epochs = "simulated", 0
  return config


def _cut(path):
  with open(path, "r+b") as file:
    file.truncate(path.stat().st_size // 2)


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def _largest(folder):
  return max((x for x in folder.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)


@pytest.mark.parametrize(
  ("harm", "said"),
  [
    (_flip, "Checkpoint 30 has other bytes in "),
    pytest.param(_cut, "Checkpoint 30 has ", marks=pytest.mark.slow),
    pytest.param(lambda path: path.unlink(), "Checkpoint 30 lacks ", marks=pytest.mark.slow),
  ],
)
def test_a_damaged_checkpoint_is_not_used_and_that_is_said(trained, tmp_path, capsys, harm, said):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  run = job / "runs" / "rtopk-0"
  harm(_largest(run / "checkpoints" / "30" / "state"))
  train_and_evaluate(_simulated(), str(job))
  output = capsys.readouterr().out
  assert said in output
  assert "goes on at step 20 of 30" in output
  assert (run / "damaged" / "30").is_dir()
  same_end(trained, job)


def test_a_checkpoint_without_digests_is_read_in_whole_and_used(trained, tmp_path, capsys):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  run = job / "runs" / "rtopk-0"
  (run / "digests" / "30.json").unlink()
  train_and_evaluate(_simulated(), str(job))
  output = capsys.readouterr().out
  assert "Checkpoint 30 had no digests yet; all of it can be read, and it is used." in output
  assert "was finished at step 30" in output
  assert (run / "digests" / "30.json").read_bytes()
  same_end(trained, job)


@pytest.mark.parametrize(
  "harm", [_cut, pytest.param(lambda path: path.unlink(), marks=pytest.mark.slow)]
)
def test_a_checkpoint_without_digests_that_cannot_be_read_is_not_used(
  trained, tmp_path, capsys, harm
):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  run = job / "runs" / "rtopk-0"
  (run / "digests" / "30.json").unlink()
  harm(_largest(run / "checkpoints" / "30" / "state"))
  train_and_evaluate(_simulated(), str(job))
  output = capsys.readouterr().out
  assert "Checkpoint 30 was not complete" in output
  assert "goes on at step 20 of 30" in output
  same_end(trained, job)


@pytest.mark.parametrize(
  "content",
  [b'{"files": ', *(pytest.param(x, marks=pytest.mark.slow) for x in (b"", b"\x00\xff", b"[]"))],
)
def test_damaged_digests_are_those_of_a_damaged_checkpoint(trained, tmp_path, capsys, content):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  (job / "runs" / "rtopk-0" / "digests" / "30.json").write_bytes(content)
  train_and_evaluate(_simulated(), str(job))
  assert "Checkpoint 30 has damaged digests; it is now in" in capsys.readouterr().out
  same_end(trained, job)


def test_all_checkpoints_damaged_stops_until_a_flag_begins_again(trained, tmp_path, capsys):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  for number in (20, 30):
    _flip(_largest(job / "runs" / "rtopk-0" / "checkpoints" / str(number) / "state"))
  # It does not begin again by being started again, either.
  for _ in range(2):
    with pytest.raises(UserError, match=r"All checkpoints of .*rtopk-0 are damaged.*--start_over"):
      train_and_evaluate(_simulated(), str(job))
  capsys.readouterr()
  train_and_evaluate(_simulated(), str(job), start_over=True)
  assert "goes on" not in capsys.readouterr().out
  assert (job / "runs.before" / "rtopk-0" / "damaged" / "30").is_dir()
  same_end(trained, job)


def test_few_damaged_checkpoints_are_kept(trained, tmp_path):
  run = tmp_path / "run"
  for number in range(5):
    shutil.copytree(trained / "runs" / "rtopk-0" / "checkpoints" / "30", run / "checkpoints" / "30")
    (run / "checkpoints" / "30").rename(run / "checkpoints" / str(number))
  said = []
  assert integrity.last_whole(run, lambda number: False, {}, said.append) is None
  assert len(said) == 5
  assert len(list((run / "damaged").iterdir())) == 2
  assert integrity.had_some(run)


@pytest.mark.parametrize(
  "content", [b"7", None, *(pytest.param(x, marks=pytest.mark.slow) for x in (b"", b"\x00\xff"))]
)
def test_a_damaged_config_is_known_from_beside_the_checkpoint(trained, tmp_path, capsys, content):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  path = job / "config.json"
  path.unlink() if content is None else path.write_bytes(content)
  config = _simulated()
  config.density = 0.2
  with pytest.raises(ConfigError, match=r"config.density was 0.1 and is 0.2"):
    train_and_evaluate(config, str(job))
  train_and_evaluate(_simulated(), str(job))
  assert f"{path} is damaged or gone; the copy beside the last checkpoint is used." in (
    capsys.readouterr().out
  )
  assert path.read_bytes() == (trained / "config.json").read_bytes()


def test_without_any_config_nothing_is_guessed(trained, tmp_path):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  (job / "config.json").write_bytes(b"")
  for path in (job / "runs" / "rtopk-0" / "digests").iterdir():
    path.write_text(json.dumps(json.loads(path.read_text())["files"]))  # as they once were
  with pytest.raises(UserError, match=r"nothing else says of which config.*--start_over"):
    train_and_evaluate(_simulated(), str(job))


@pytest.mark.parametrize(
  "harm", ["cut", *(pytest.param(x, marks=pytest.mark.slow) for x in ("binary", "gone"))]
)
def test_damaged_metrics_of_steps_are_told_and_the_run_goes_on(trained, tmp_path, capsys, harm):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  run = job / "runs" / "rtopk-0"
  shutil.rmtree(run / "checkpoints" / "30")
  (run / "digests" / "30.json").unlink()
  path = run / "steps.jsonl"
  whole = path.read_bytes().splitlines(keepends=True)
  content = {
    "binary": b"".join(whole[:7]) + b"\xff\x00\n",
    "cut": b"".join(whole[:7]) + whole[7][:9],
  }
  path.unlink() if harm == "gone" else path.write_bytes(content[harm])
  train_and_evaluate(_simulated(), str(job))
  kept = 0 if harm == "gone" else 7
  assert f"steps.jsonl is damaged: {kept} of 20 lines are whole" in capsys.readouterr().out
  steps = [x["step"] for x in lines(path)]
  assert steps == [*range(1, kept + 1), *range(21, 31)]
  assert (run / "steps.jsonl.damaged").exists() == (harm != "gone")


def test_a_config_of_another_run_is_refused(trained, tmp_path):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  config = _simulated()
  config.density, config.momentum = 0.2, 0.5
  with pytest.raises(
    ValueError, match=r"density was 0.1 and is 0.2; config.momentum was 0.9 and is 0.5"
  ):
    train_and_evaluate(config, str(job))


def test_a_finished_run_is_not_trained_again(trained, tmp_path, capsys):
  job = tmp_path / "job"
  shutil.copytree(trained, job)
  before = (job / "metrics.jsonl").read_text()
  config = _simulated()
  config.log_every = 7  # does not matter
  train_and_evaluate(config, str(job))
  assert "was finished at step 30 of 30" in capsys.readouterr().out
  assert (job / "metrics.jsonl").read_text() == before


def _relative(a, b):
  return np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)


@pytest.mark.parametrize(
  ("first", "then"),
  [("simulated", "devices"), pytest.param("devices", "simulated", marks=pytest.mark.slow)],
)
def test_checkpoints_open_in_the_other_layout(trained, tmp_path, capsys, first, then):
  job, config = tmp_path / "job", _simulated()
  config.workers, config.max_steps = first, 20
  train_and_evaluate(config, str(job))
  saved = state(job / "runs" / "rtopk-0")
  config.workers, config.max_steps = then, 21
  config.learning_rate = tiny.get_config().learning_rate
  train_and_evaluate(config, str(job))
  assert "goes on at step 20 of 21" in capsys.readouterr().out
  after = state(job / "runs" / "rtopk-0")
  for a, b in zip(leaves(saved), leaves(after), strict=True):
    assert a.shape == b.shape
  # One step later the weights are near, and the memory of 4 workers is there.
  w = [x["params"]["w"] for x in (saved, after)]
  assert 0 < _relative(w[1], w[0]) < 0.3


@pytest.mark.parametrize(
  ("old", "new"),
  [(4, 2), pytest.param(2, 4, marks=pytest.mark.slow), pytest.param(5, 3, marks=pytest.mark.slow)],
)
def test_other_workers_go_on(tmp_path, capsys, config, old, new):
  job = tmp_path / "job"
  config.num_workers, config.max_steps, config.workers = old, 13, "simulated"
  config.warmup_epochs = 0
  train_and_evaluate(config, str(job))
  per_epoch = {n: tiny.EXAMPLES // (n * 6) for n in (old, new)}
  capsys.readouterr()
  config.num_workers, config.max_steps = new, None
  config.workers = "devices" if new == 2 else "simulated"
  train_and_evaluate(config, str(job))
  output = capsys.readouterr().out
  epoch, within = divmod(13, per_epoch[old])
  step = epoch * per_epoch[new] + within * per_epoch[new] // per_epoch[old]
  assert f"The checkpoint is of {old} workers and {new} go on" in output
  assert f"goes on at step {step} of {3 * per_epoch[new]}" in output
  # Numbers of checkpoints only rise; the rows are the new workers'.
  assert sealed(job) == max(3 * per_epoch[new], 3 * per_epoch[new] + 13 - step)
  end = state(job / "runs" / "rtopk-0")
  assert all(x.shape[0] == new for x in leaves(end["model_state"]))
  records = lines(job / "metrics.jsonl")
  assert records[-1]["step"] == 3 * per_epoch[new]
  assert records[-1]["test_loss"] < records[0]["test_loss"]
  # And once more with the same workers: nothing to do.
  train_and_evaluate(config, str(job))
  assert "was finished" in capsys.readouterr().out


def test_resizing_keeps_means_and_the_place_in_the_epoch():
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1), "workers", momentum=0.9)
  rng = np.random.default_rng(0)
  params = {"w": np.zeros((6, 3), np.float32)}
  rows = lambda: {"w": rng.standard_normal((5, 6, 3)).astype(np.float32)}
  opt_state = jax.tree.map(np.asarray, tx.init(params))._replace(
    residual=rows(), momentum=rows(), count=np.int32(7)
  )
  state_of_5 = RunState(params, opt_state, {"mean": rng.standard_normal((5, 2))})
  said = []
  totals = Totals(num_workers=5, per_epoch=4, step=7, sent_bytes=70)
  new, after = elastic.resize(state_of_5, totals, 3, 8, said.append)
  # Epoch 1, step 3 of 4, is step 6 of 8.
  assert (after.step, after.per_epoch, after.num_workers, after.shift) == (14, 8, 3, 0)
  assert after.sent_bytes == 70
  assert new.opt_state.count == 14
  for name in ("residual", "momentum"):
    a, b = (getattr(x.opt_state, name)["w"].astype(np.float64) for x in (new, state_of_5))
    assert a.shape == (3, 6, 3)
    np.testing.assert_allclose(a.mean(axis=0), b.mean(axis=0), rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(
    new.model_state["mean"].mean(axis=0), state_of_5.model_state["mean"].mean(axis=0)
  )
  assert "5 workers and 3 go on" in said[0]
  # Fewer steps an epoch: numbers of checkpoints go on upwards.
  _, back = elastic.resize(new, after, 5, 4, said.append)
  assert (back.step, back.shift) == (7, 7)


def test_other_shapes_are_refused_by_name():
  with pytest.raises(ValueError, match=r"\['w'\] has shape \(2,\) in the checkpoint, and \(3,\)"):
    elastic.place({"w": np.zeros(2)}, {"w": jax.ShapeDtypeStruct((3,), jnp.float32)})
