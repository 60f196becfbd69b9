"""Which platform a program is traced for: that of its devices, or the one that is said."""

import jax
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax import _platform
from tests.rtopk_jax import harness


def test_it_is_that_of_the_default_device():
  assert _platform.current() == "cpu"
  with jax.default_device(jax.devices("cpu")[3]):
    assert _platform.current() == "cpu"
  # By its name there may be one that is not here.
  with jax.default_device("tpu"):
    assert _platform.current() == "tpu"
  with jax.default_device("gpu"):
    assert _platform.current() == "gpu"
  assert _platform.current() == "cpu"


def traced_on(mesh):
  """The platforms that are found inside a map over a mesh, and with the mesh set around."""
  found = []
  axes = jax.sharding.PartitionSpec(harness.AXIS)

  def worker(x):
    found.append(_platform.current())
    return x

  mapped = jax.shard_map(worker, mesh=mesh, in_specs=axes, out_specs=axes)
  jax.eval_shape(mapped, jax.ShapeDtypeStruct((4,), np.float32))
  return set(found)


def test_it_is_that_of_the_mesh_whatever_the_default_device():
  with jax.default_device("tpu"):
    assert traced_on(harness.mesh(2)) == {"cpu"}


@pytest.mark.parametrize(
  ("name", "expected"), [("cuda", "gpu"), ("rocm", "gpu"), ("TPU", "tpu"), ("neuron", "cpu")]
)
def test_a_mesh_of_devices_that_are_not_here(name, expected):
  device = jax.sharding.AbstractDevice(device_kind="any", platform=name, num_cores=None)
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.AbstractMesh((2,), (harness.AXIS,), kinds, abstract_device=device)
  assert traced_on(mesh) == {expected}
  with jax.sharding.use_abstract_mesh(mesh):
    assert _platform.current() == expected


def test_what_is_said_comes_first_and_ends_with_its_context():
  with rtopk_jax.platform("tpu"):
    assert traced_on(harness.mesh(2)) == {"tpu"}
    with rtopk_jax.platform("gpu"), jax.default_device(jax.devices("cpu")[0]):
      assert _platform.current() == "gpu"
    assert _platform.current() == "tpu"
    with pytest.raises(NameError), rtopk_jax.platform("cpu"):
      jax.lax.axis_index("nowhere")
    assert _platform.current() == "tpu"
  assert _platform.current() == "cpu"


@pytest.mark.parametrize("name", ["cuda", "TPU", None])
def test_other_names_are_refused(name):
  with (
    pytest.raises(ValueError, match="name must be one of 'cpu', 'gpu', 'tpu', got"),
    rtopk_jax.platform(name),
  ):
    pass
