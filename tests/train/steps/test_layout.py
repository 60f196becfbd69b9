"""Which devices a worker is, and where on them everything lies."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import default
from train import ConfigError
from train.steps import layout


@dataclasses.dataclass(frozen=True)
class Device:
  """What is known of a device that is not here."""

  id: int
  process_index: int
  slice_index: int
  platform: str
  device_kind: str = "H100"


def _hosts(count, each, slices=1, platform="gpu"):
  """Devices of some hosts, the hosts dealt to slices in order."""
  return [
    Device(host * each + i, host, host * slices // count, platform)
    for host, i in itertools.product(range(count), range(each))
  ]


def _places(mesh, name):
  """Which hosts, or slices, each worker has."""
  return [sorted({getattr(x, name) for x in own.flat}) for own in mesh.devices]


@pytest.mark.parametrize(
  ("shape", "places"),
  [
    # A worker a host, two workers a host, two hosts a worker.
    ((2, 8, 1), [[0], [1]]),
    ((4, 2, 2), [[0], [0], [1], [1]]),
    ((1, 4, 4), [[0, 1]]),
  ],
)
def test_slow_links_lie_between_workers_as_far_as_they_can(shape, places):
  mesh = layout.make_mesh(_hosts(2, 8), shape)
  assert mesh.axis_names == ("workers", "chips", "shards")
  assert mesh.devices.shape == shape
  assert _places(mesh, "process_index") == places
  assert sorted(x.id for x in mesh.devices.flat) == list(range(16))


def test_two_hosts_of_a_worker_part_its_chips_before_its_shards():
  mesh = layout.make_mesh(_hosts(4, 4), (2, 4, 2))
  hosts = np.vectorize(lambda x: x.process_index)(mesh.devices)
  assert hosts[..., 0].tolist() == hosts[..., 1].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


@pytest.mark.parametrize(
  ("fast", "places"),
  [("auto", [[0, 1], [2, 3]]), ("slice", [[0, 1], [2, 3]]), ("process", [[0, 1], [2, 3]])],
)
def test_slices_of_several_hosts(fast, places):
  mesh = layout.make_mesh(_hosts(4, 4, slices=2), (2, 8, 1), fast)
  assert _places(mesh, "process_index") == places
  assert _places(layout.make_mesh(_hosts(4, 4, slices=2), (4, 4, 1), fast), "slice_index") == [
    [0],
    [0],
    [1],
    [1],
  ]


def test_hosts_of_different_size_are_refused():
  with pytest.raises(ConfigError, match=r"fast='auto' makes groups of 4, 2 devices"):
    layout.make_mesh(_hosts(2, 4)[:6], (2, 3, 1))
  mesh = layout.make_mesh(_hosts(2, 4)[:6], (2, 3, 1), fast="all")
  assert _places(mesh, "process_index") == [[0], [0, 1]]


@pytest.mark.parametrize(
  ("shape", "said"),
  [
    ((3, 16, 1), "got 3 × 16 × 1; config.workers='simulated' computes the same on one device."),
    ((3, 1, 2), "got 3 × 1 × 2."),
  ],
)
def test_as_many_devices_as_there_are_must_be_asked_for(shape, said):
  config = default.get_config()
  config.num_workers, config.mesh.chips, config.mesh.shards = shape
  with pytest.raises(ConfigError) as error:
    layout.choose_mesh(config)
  start = "config.mesh.workers × chips × shards must be 8, the devices that there are, "
  assert str(error.value) == start + said


def test_large_parameters_lie_over_shards_by_their_longest_axis():
  mesh = layout.make_mesh(jax.devices(), (2, 2, 2))
  shapes = {"a": (64, 30), "b": (3, 30, 1200), "odd": (45, 45), "small": (20, 20), "flat": (2048,)}
  params = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
  specs = layout.param_specs(mesh, params)
  assert specs == {
    "a": P("shards"),
    "b": P(None, None, "shards"),
    "odd": P(),
    "small": P(),
    "flat": P("shards"),
  }
  assert layout.piece(mesh, params)["b"].shape == (3, 30, 600)
  # What workers have: rows of what is like a parameter, and of other things.
  rows = {
    "trace": {name: jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for name, x in params.items()},
    "a": jax.ShapeDtypeStruct((2, 30, 64), np.float32),
  }
  found = layout.specs_like(rows, params, specs)
  assert found["trace"]["b"] == P("workers", None, None, "shards")
  assert found["a"] == P("workers")


def test_batches_are_dealt_over_the_devices_of_a_worker():
  mesh = layout.make_mesh(jax.devices(), (2, 2, 2))
  batch = {
    "x": np.arange(48).reshape(2, 8, 3),
    "key": np.arange(4).reshape(2, 2),
    "start": np.arange(2),
  }
  placed = layout.place_batch(mesh, (0, 1), batch)
  for name, x in batch.items():
    np.testing.assert_array_equal(placed[name], x)
  assert placed["x"].sharding.spec == P("workers", ("chips", "shards"))
  assert placed["key"].sharding.spec == placed["start"].sharding.spec == P("workers")
