"""The example of a collective of one's own: the same as an all-gather, and its statement is what counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from examples.own_collective import Ring
from examples.own_selector import AboveThreshold
from examples.own_wire import Float8
from tests.examples import common
from tests.rtopk_jax import harness

AXIS = harness.AXIS
SHAPES = {"a": (30, 50), "b": (20,)}


def exchange(axis=AXIS, **options):
  return rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.05), axis, **{"dense": False, **options})


@pytest.mark.parametrize(
  ("mode", "workers"),
  [
    # Each mode and each number once; all with all in `make test-slow`.
    pytest.param(mode, n, marks=[] if i == j else pytest.mark.slow)
    for i, mode in enumerate(("vmap", "pmap", "shard_map"))
    for j, n in enumerate((1, 3, 8))
  ],
)
def test_it_is_an_all_gather(mode, workers):
  grads = harness.gradients(SHAPES, 2, workers, powers=False)
  options = {"momentum": 0.5, "wire": "int8", "scope": "leaf"}
  found, expected = (
    harness.run(mode, exchange(collective=x, **options), grads) for x in (Ring(), "all_gather")
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
def test_all_workers_get_the_same(mode):
  updates = common.updates_of_every_worker(exchange(collective=Ring()), SHAPES, mode)
  for x in updates.values():
    np.testing.assert_array_equal(x, np.broadcast_to(x[0], x.shape))


def test_all_three_examples_together_lose_nothing():
  tx = rtopk_jax.sparse_exchange(
    AboveThreshold(8.0, 0.1), AXIS, dense=False, collective=Ring(), wire=Float8()
  )
  common.check_conserved(tx, SHAPES)


def test_workers_may_be_absent():
  number = jax.lax.axis_index
  grads = harness.gradients(SHAPES, 1, 4)
  first = jax.tree.map(lambda g: g[0], grads)

  def updates(collective):
    tx = exchange(collective=collective)
    one = lambda g: tx.update(g, tx.init(g), present=number(AXIS) > 0)[0]
    return jax.jit(jax.vmap(one, out_axes=None, axis_name=AXIS))(first)

  jax.tree.map(np.testing.assert_array_equal, updates(Ring()), updates("all_gather"))


def test_members_of_a_fast_axis_share_what_goes_round():
  mesh = jax.make_mesh(
    (2, 2), (AXIS, "chip"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4]
  )
  axes = (AXIS, "chip")
  params = {"w": jnp.zeros((40, 30))}
  grads = harness.gradients({"w": (2, 40, 30)}, 1, 2)["w"][0]
  found = []
  for outer in (Ring(), "all_gather"):
    tx = exchange(axes, collective=rtopk_jax.Hierarchical("chip", outer))
    specs = rtopk_jax.state_specs(tx, params, axes)
    update = jax.shard_map(
      lambda g, state, tx=tx: tx.update({"w": g[0, 0]}, state),
      mesh=mesh,
      in_specs=(P(*axes), specs),
      out_specs=(P(), specs),
    )
    found.append(jax.jit(update)(grads, rtopk_jax.init(tx, params, mesh, axes)))
  jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_bytes_are_those_that_it_states(workers):
  tx = exchange(collective=Ring())
  params = jnp.zeros((100, 100))
  size = harness.gathered(2 * 500)
  counted = rtopk_jax.wire_bytes(tx, params, workers)
  stated = Ring().traffic(size, workers)
  assert counted == (stated.sent, stated.received, stated.link)
  (estimate,) = rtopk_jax.advise(
    10_000, workers, "1Gbit/s", densities=(0.05,), collectives=(Ring(),)
  ).estimates
  assert estimate.bytes == counted.link
  assert estimate.collective == "Ring()"


class Quick(Ring):
  """The same, with the bytes of one that is quicker."""

  def traffic(self, size, num_workers):
    return rtopk_jax.Traffic(1, size, size, size)


def test_auto_takes_it_where_it_says_that_it_is_quickest():
  params = {"w": jnp.zeros((100, 100))}
  chosen = lambda *choices: rtopk_jax.chosen_collectives(
    exchange(collective=rtopk_jax.Auto("1Mbit/s", choices=choices)), params, 8
  )
  assert chosen("all_gather", Quick()) == (Quick(),)
  # Of equals the first.
  assert chosen("all_gather", Ring()) == (rtopk_jax.AllGather(),)
  assert chosen(Ring(), "all_gather") == (Ring(),)
  nested = rtopk_jax.Auto("1Mbit/s", choices=(Quick(), "reduce_scatter"))
  assert chosen("all_gather", nested) == (Quick(),)
  grads = harness.gradients(SHAPES, 1, 4)
  auto = rtopk_jax.Auto("1Mbit/s", choices=("all_gather", Quick()))
  found, expected = (
    harness.run("shard_map", exchange(collective=x), grads) for x in (auto, "all_gather")
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


class Silent(rtopk_jax.Collective):
  """One that states nothing."""

  gather = Ring.gather

  def __repr__(self):
    return "Silent()"


def test_one_that_states_nothing_exchanges_but_is_refused_where_bytes_are_asked_for():
  grads = harness.gradients(SHAPES, 1, 2)
  found, expected = (
    harness.run("vmap", exchange(collective=x), grads) for x in (Silent(), "all_gather")
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  with pytest.raises(TypeError, match=r"Silent\(\) does not say how many bytes it takes"):
    rtopk_jax.wire_bytes(exchange(collective=Silent()), jnp.zeros(100), 2)
  with pytest.raises(TypeError, match=r"Silent\(\) does not say how many bytes it takes"):
    rtopk_jax.advise(1e6, 4, 1e9, collectives=[Silent()])
  with pytest.raises(TypeError, match=r"choices must say what they cost, and Silent\(\) does not"):
    rtopk_jax.Auto(1e9, choices=[Silent()])
  hierarchical = exchange((AXIS, "chip"), collective=rtopk_jax.Hierarchical("chip", Silent()))
  with pytest.raises(TypeError, match=r"Silent\(\) does not say how many bytes"):
    rtopk_jax.wire_bytes(hierarchical, jnp.zeros(100), 2)


class Narrow(Ring):
  """One that loses rows."""

  def gather(self, words, axis_name):
    return super().gather(words, axis_name)[:1]


def test_wrong_shapes_are_refused():
  with pytest.raises(
    TypeError, match=r"gather of Narrow\(\) must return uint32 words of shape \(4"
  ):
    common.updates_of_every_worker(exchange(collective=Narrow()), SHAPES, "vmap")
  with pytest.raises(TypeError, match="does not say how messages travel"):
    common.updates_of_every_worker(exchange(collective=rtopk_jax.Collective()), SHAPES, "vmap")
