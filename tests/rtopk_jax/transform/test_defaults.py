"""What stands for what: strings for their defaults, other words for the same, and which leaves are dense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS
SHAPES = {"w": (30, 50)}


def exchange(**options):
  return rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1), AXIS, **{"dense": False, **options})


@pytest.mark.parametrize(
  ("short", "long"),
  [
    ({"wire": "int8"}, {"wire": rtopk_jax.Wire(values="int8")}),
    ({"wire": "bfloat16"}, {"wire": rtopk_jax.Wire(values="bfloat16")}),
    ({"collective": "reduce_scatter"}, {"collective": rtopk_jax.ReduceScatter()}),
    ({"average": "mean"}, {"average": "workers"}),
  ],
)
def test_a_string_stands_for_a_default(short, long):
  grads = harness.gradients(SHAPES, 1, 2, powers=False)
  found, expected = (harness.run("vmap", exchange(**x), grads) for x in (short, long))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_collectives_by_name_within_others():
  owners = rtopk_jax.ReduceScatter()
  assert rtopk_jax.Hierarchical("chip", "reduce_scatter") == rtopk_jax.Hierarchical("chip", owners)
  by_name = rtopk_jax.Auto(1e9, choices=("all_gather", "reduce_scatter"))
  assert by_name == rtopk_jax.Auto(1e9)
  assert by_name.choose(1000, 10, 2, "int8") == rtopk_jax.AllGather()


def test_a_wire_and_collectives_by_name_in_advice():
  advise = lambda **options: rtopk_jax.advise(1e6, 16, "1Gbit/s", **options)
  assert advise(wire="int8") == advise(wire=rtopk_jax.Wire(values="int8"))
  named = advise(collectives=["reduce_scatter"])
  assert {x.collective for x in named.estimates} == {"reduce_scatter"}
  made = advise(collectives=[rtopk_jax.ReduceScatter()])
  assert [x.seconds for x in made.estimates] == [x.seconds for x in named.estimates]
  assert "ReduceScatter(slack=0.5)" in str(made)


def test_the_mean_is_the_mean_in_the_dense_exchange_too():
  grads = harness.gradients(SHAPES, 1, 4)
  updates, _ = harness.run("vmap", rtopk_jax.dense_exchange(AXIS, average="mean"), grads)
  np.testing.assert_array_equal(updates["w"], grads["w"].sum(axis=1) / np.float32(4))


@pytest.mark.parametrize(
  ("shape", "is_dense"),
  [
    ((31, 33), True),
    ((32, 32), False),
    ((1024, 1), False),
    ((1023,), True),
    ((65_535,), True),
    ((65_536,), False),
    ((1_000_000,), False),
    ((), True),
  ],
)
def test_which_leaves_are_sent_dense(shape, is_dense):
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.001), AXIS)
  sent = rtopk_jax.wire_bytes(tx, jax.ShapeDtypeStruct(shape, jnp.float32), 2).sent
  size = int(np.prod(shape))
  assert sent == (4 * size if is_dense else harness.gathered(2 * max(1, round(size / 1000))))
