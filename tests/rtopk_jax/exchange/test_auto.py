"""The collective that is chosen by what each would cost."""

import jax.numpy as jnp
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS


def test_auto_takes_the_faster_one_and_says_so(caplog):
  auto = rtopk_jax.Auto("1Gbit/s")
  wire = rtopk_jax.Wire()
  assert auto.choose(10_000_000, 10_000, 2, wire) == rtopk_jax.AllGather()
  assert auto.choose(10_000_000, 100_000, 512, wire) == rtopk_jax.ReduceScatter()
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, collective=auto)
  with caplog.at_level("INFO", logger="rtopk_jax"):
    rtopk_jax.wire_bytes(tx, {"w": jnp.zeros((100, 100))}, 2)
  assert "AllGather() for 1000 of 10000 entries and 2 workers" in caplog.text
  # What owners cannot do is not among the choices.
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.1), AXIS, collective=rtopk_jax.Auto(1e3), average="senders"
  )
  sent = rtopk_jax.wire_bytes(tx, {"w": jnp.zeros((100, 100))}, 512).sent
  assert sent == harness.gathered(2 * 1000)


def test_auto_goes_by_how_fast_workers_are():
  sizes, wire = (10_000_000, 100_000, 16), rtopk_jax.Wire()
  speeds = {"place": 1.0}, {"own": 1.0}
  slow_to_place, slow_to_own = (rtopk_jax.LocalSpeed(**speed) for speed in speeds)
  # An owner places what does not grow with the number of workers, but reads and chooses once more.
  assert rtopk_jax.Auto(1e9, local=slow_to_place).choose(*sizes, wire) == rtopk_jax.ReduceScatter()
  assert rtopk_jax.Auto(1e9, local=slow_to_own).choose(*sizes, wire) == rtopk_jax.AllGather()


def test_choices_may_be_a_list():
  auto = rtopk_jax.Auto(1e9, choices=[rtopk_jax.AllGather()])
  assert auto == rtopk_jax.Auto(1e9, choices=(rtopk_jax.AllGather(),))
  assert hash(auto) == hash(rtopk_jax.Auto(1e9, choices=(rtopk_jax.AllGather(),)))


AUTO = rtopk_jax.Auto(1e3)


@pytest.mark.parametrize(
  ("axes", "collective", "expected"),
  [
    (AXIS, "all_gather", ()),
    (AXIS, rtopk_jax.ReduceScatter(), ()),
    (AXIS, AUTO, (rtopk_jax.ReduceScatter(),)),
    ((AXIS, "chip"), rtopk_jax.Hierarchical("chip", AUTO), (rtopk_jax.ReduceScatter(),)),
    (AXIS, rtopk_jax.Auto(1e3, choices=[rtopk_jax.AllGather()]), (rtopk_jax.AllGather(),)),
  ],
)
def test_what_was_chosen_can_be_asked(axes, collective, expected):
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), axes, collective=collective)
  chain = optax.chain(tx, optax.sgd(0.1))
  params = {"w": jnp.zeros((100, 100)), "b": jnp.zeros(3)}
  assert rtopk_jax.chosen_collectives(chain, params, 8) == expected
