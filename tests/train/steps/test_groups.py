"""Workers of several devices compute what workers of one do, and say little to each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from benchmarks import hlo
from configs import language_quickstart, quickstart
from tests.train import wide
from train import train_and_evaluate
from train.steps import drift, layout
from train.steps.drift import DriftError
from train.steps.methods import make_rounds
from train.steps.workers import Workers
from train.tasks.make import make_task

pytestmark = pytest.mark.usefixtures("usual_promotion")


def _started(shape, method, setting="distributed", batches=1, **fields):
  """Workers of a shape, or of one simulated device each; their state and their batches."""
  config = wide.get_config()
  config.num_workers, config.mesh.chips, config.mesh.shards = shape or (2, 1, 1)
  config.batch_size = 24 // config.num_workers
  with config.unlocked():
    config.update(setting=setting, warmup_epochs=0, dense=None, **fields)
  count = config.num_workers * config.mesh.chips * config.mesh.shards
  mesh = layout.make_mesh(jax.devices()[:count], shape) if shape else None
  task = wide.Wide(config)
  make = make_rounds(config, method, task.loss, per_epoch=10, total=30, batches=batches)
  workers = Workers(make, config.num_workers, mesh)
  state = workers.init(*task.init(jax.random.key(0)), jnp.int32(0))
  return workers, state, list(data.load(task.source(0), workers.local, 4))


def _trained(shape, method, setting="distributed", batches=1, **fields):
  """The state after two exchanges, and metrics of the last one."""
  workers, state, loaded = _started(shape, method, setting, batches, **fields)
  metrics = {}
  for i in range(2):
    taken = loaded[i * batches : (i + 1) * batches]
    state, metrics = workers.step(state, taken, jnp.int32(0))
  for spec, x in zip(*map(jax.tree.leaves, (workers.shardings(state), state)), strict=True):
    assert x.sharding.is_equivalent_to(spec, x.ndim)
  return jax.device_get((state, metrics))


def _check_equal(one, other):
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    # Sums over a batch are taken in another order.
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
  ("shape", "method", "setting", "batches"),
  [
    ((2, 4, 1), "rtopk", "distributed", 1),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ((2, 4, 1), "none", "distributed", 1),
        ((2, 4, 1), "rtopk", "distributed", 2),
        ((2, 4, 1), "rtopk", "federated", 2),
        ((2, 2, 2), "none", "distributed", 2),
        ((2, 2, 2), "none", "federated", 2),
      )
    ),
  ],
)
def test_a_worker_of_several_devices_is_one_worker(shape, method, setting, batches):
  of = lambda shape: _trained(
    shape, method, setting, batches, keep_local_optimizer=setting != "distributed"
  )
  _check_equal(of(shape), of(None))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("shape", "fewer", "fields"),
  [
    ((2, 2, 2), (2, 1, 2), {}),
    ((4, 2, 1), (4, 1, 1), {"collective": "hierarchical:reduce_scatter"}),
    ((2, 2, 2), (2, 1, 2), {"clip_norm": 0.1, "scope": "leaf", "wire_values": "bfloat16"}),
  ],
)
def test_chips_change_nothing_but_the_order_of_sums(shape, fewer, fields):
  alone = fields | ({"collective": "reduce_scatter"} if "collective" in fields else {})
  _check_equal(_trained(shape, "rtopk", **fields), _trained(fewer, "rtopk", **alone))


@pytest.mark.parametrize("shape", [(2, 2, 2), pytest.param((4, 2, 1), marks=pytest.mark.slow)])
def test_between_workers_there_are_packed_words_and_the_loss(shape):
  workers, state, loaded = _started(shape, "rtopk")
  batch = layout.place_batch(workers.mesh, workers.local, loaded[0])
  program = hlo.Program(workers.compiled_step(jnp.int32(0)).lower(state, batch).compile().as_text())
  each = shape[1] * shape[2]
  worker = {i: i // each for i in range(8)}
  crossing = [x for x in program.collectives() if x.crosses(worker)]
  words = [x for x in crossing if x.arrays[0].dtype == "u32"]
  assert words
  for x in words:
    assert x.kind == "all-gather"
    # A device of each worker: none sends what another has sent.
    assert {len(group) for group in x.groups} == {shape[0]}
  dense = 10  # the bias, which is not compressed
  for x in crossing:
    if x not in words:
      assert sum(array.entries for array in x.arrays) <= max(dense, shape[0]), str(x)


def test_a_device_that_drifts_is_named():
  workers, state, _ = _started((2, 2, 2), "none")
  x = state.params["up"]
  pieces = [np.array(s.data) for s in sorted(x.addressable_shards, key=lambda s: s.device.id)]
  pieces[6].reshape(-1).view(np.uint32)[3] ^= 1 << 20  # worker 1, chip 1, shard 0
  placed = [jax.device_put(piece, d) for piece, d in zip(pieces, jax.devices(), strict=True)]
  broken = jax.make_array_from_single_device_arrays(x.shape, x.sharding, placed)
  with pytest.raises(
    DriftError, match=r"step 7 worker 1 \(chip 1, shard 0\) .* the 7 of 8 devices"
  ):
    drift.check(workers.fingerprints({**state.params, "up": broken}), 7)
  drift.check(workers.fingerprints(state.params), 7)


def test_weights_for_an_evaluation_lie_on_the_shards_of_one_chip():
  workers, state, _ = _started((2, 2, 2), "none")
  here = workers.here(state.params)
  assert here["up"].sharding.device_set == set(jax.devices()[:2])
  np.testing.assert_array_equal(here["up"], state.params["up"])
  statistics = workers.mean(state.model_state)
  assert statistics["mean"].sharding.device_set == set(jax.devices()[:2])


def test_first_weights_are_never_whole_on_a_device_that_is_a_shard():
  """They are those of one device, and lie where the state has them from the first program on."""
  workers, _, _ = _started((2, 2, 2), "none")
  init = lambda key: ({"w": jax.random.normal(key, (8, 4096)), "b": jnp.zeros(3)}, ())
  params, _ = workers.first(init, 7)
  assert {x.data.shape for x in params["w"].addressable_shards} == {(8, 2048)}
  assert params["b"].sharding.is_fully_replicated
  np.testing.assert_array_equal(params["w"], init(jax.random.key(7))[0]["w"])


@pytest.mark.parametrize("make_config", [quickstart.get_config, language_quickstart.get_config])
def test_first_weights_of_every_kind_of_task_in_shards(make_config):
  """A program that a task compiles with options of its own is a part of the one that places the weights."""
  workers, _, _ = _started((2, 2, 2), "none")
  config = make_config()
  config.model.update({"stages": (1,)} if "stages" in config.model else {"units": 8})
  task = make_task(config)
  found = workers.first(task.init, 7)
  assert not all(x.sharding.is_fully_replicated for x in jax.tree.leaves(found[0]))
  jax.tree.map(np.testing.assert_array_equal, found, task.init(jax.random.key(7)))


@pytest.mark.slow
def test_workers_and_chips_may_change_between_two_starts(tmp_path, capsys):
  config = wide.get_config()
  config.mesh.chips, config.mesh.shards, config.warmup_epochs = 2, 2, 0
  config.epochs = 1
  train_and_evaluate(config, str(tmp_path))
  config.mesh.workers, config.mesh.chips, config.epochs = 4, 1, 2
  records = train_and_evaluate(config, str(tmp_path))
  assert "is of 2 workers and 4 go on" in capsys.readouterr().out
  # Ten steps of the first epoch were five of the second's.
  assert [x["step"] for x in records] == [10, 10]
  assert records[1]["train_loss"] < records[0]["train_loss"]
  config.mesh.workers, config.mesh.chips, config.epochs = 2, 2, 3
  train_and_evaluate(config, str(tmp_path))
  assert "is of 4 workers and 2 go on" in capsys.readouterr().out
