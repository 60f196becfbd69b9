"""Workers that are absent: their memory stays, they do not count, and owners cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS

AUTO = rtopk_jax.Auto(1e3)


def _with_the_first_absent(collective, inner=None):
  """The update of 8 workers, or of 8 of ``inner`` members each."""
  axes = (AXIS, "chip") if inner else AXIS
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), axes, collective=collective, dense=False)
  number = jax.lax.axis_index
  one = lambda g: tx.update(g, tx.init(g), present=number(AXIS) > 0)[0]
  grads = harness.gradients({"w": (40, 30)}, inner or 1, 8)["w"]
  if inner:
    of_chips = jax.vmap(one, 0, None, axis_name="chip")
    return jax.jit(jax.vmap(of_chips, 1, None, axis_name=AXIS))(grads)
  return jax.jit(jax.vmap(one, out_axes=None, axis_name=AXIS))(grads[0])


def test_auto_takes_what_allows_absence_where_workers_are_absent():
  expected = _with_the_first_absent("all_gather")
  np.testing.assert_array_equal(_with_the_first_absent(AUTO), expected)
  plain, chosen = (
    _with_the_first_absent(rtopk_jax.Hierarchical("chip", outer), inner=2)
    for outer in (rtopk_jax.AllGather(), AUTO)
  )
  np.testing.assert_array_equal(chosen, plain)


@pytest.mark.parametrize(
  ("collective", "inner"),
  [
    ("reduce_scatter", None),
    (rtopk_jax.Auto(1e9, choices=[rtopk_jax.ReduceScatter()]), None),
    (rtopk_jax.Hierarchical("chip", rtopk_jax.ReduceScatter()), 2),
  ],
)
def test_owners_cannot_be_absent(collective, inner):
  with pytest.raises(ValueError, match=r"present needs a collective without owners.*ReduceScatter"):
    _with_the_first_absent(collective, inner)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("mode", [pytest.param("vmap", marks=pytest.mark.slow), "shard_map"])
def test_an_absent_worker_keeps_its_memory_and_does_not_count(mode, dense):
  shapes = {"w": (20, 30), "v": (5,)}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.2), AXIS, dense=dense, momentum=0.5)
  present = jnp.array([True, False, True, True])

  class Absent:
    init = staticmethod(tx.init)

    @staticmethod
    def update(updates, state, params=None):
      here = present[jax.lax.axis_index(AXIS)]
      # What an absent worker has is nobody's concern.
      bad = jax.tree.map(lambda g: jnp.where(here, g, jnp.float32(jnp.nan)), updates)
      return tx.update(bad, state, params, present=here)

  grads = harness.gradients(shapes, 2, 4)
  updates, state = harness.run(
    mode, optax.GradientTransformation(Absent.init, Absent.update), grads
  )
  others = {name: g[:, [0, 2, 3]] for name, g in grads.items()}
  expected, after = harness.run(mode, tx, others)
  for name in shapes:
    np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)
    np.testing.assert_array_equal(state.residual[name][:, [0, 2, 3]], after.residual[name])
    np.testing.assert_array_equal(state.momentum[name][:, [0, 2, 3]], after.momentum[name])
    assert not np.any(state.residual[name][:, 1])
    assert not np.any(state.momentum[name][:, 1])
