"""rTop-k with so many workers that it would be random-k: refused, but for what cannot be helped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS
MESSAGE = (
  r"rtop_k\(0\.25\) with 4 workers .* r = d: .*density below 1/4 = 0\.25, an explicit subsample "
  r"\(rtop_k\(0\.25, subsample=…\)\), or random_k\(0\.25\)"
)


@pytest.mark.parametrize(
  ("density", "workers", "size"), [(0.25, 4, 400), (0.01, 100, 10_000), (0.5, 64, 100)]
)
def test_as_many_workers_as_make_r_all_of_d_are_refused(density, workers, size):
  with pytest.raises(ValueError, match="magnitudes would not matter"):
    rtopk_jax.rtop_k(density).counts(size, workers)
  counts = rtopk_jax.rtop_k(density).counts(size, workers - 1 if density * workers == 1 else 1)
  assert counts.r < size


@pytest.mark.parametrize(
  ("selector", "workers", "size", "counts"),
  [
    (rtopk_jax.rtop_k(1.0), 1, 100, (100, 100)),
    (rtopk_jax.rtop_k(1.0), 8, 100, (100, 100)),
    (rtopk_jax.rtop_k(0.25, subsample=4), 4, 400, (100, 400)),
    (rtopk_jax.random_k(0.25), 4, 400, (100, 400)),
    # One of a short leaf is more than its share.
    (rtopk_jax.rtop_k(0.01), 5, 3, (1, 3)),
    (rtopk_jax.rtop_k(0.25), 4, 1, (1, 1)),
  ],
)
def test_what_is_meant_is_not(selector, workers, size, counts):
  assert selector.counts(size, workers) == counts


def test_an_exchange_refuses_it_when_its_state_is_made_and_when_it_is_traced():
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.25), AXIS, dense=False)
  params, gradients = jnp.zeros(400), jnp.zeros((4, 400))
  mapped = lambda f: jax.vmap(f, out_axes=None, axis_name=AXIS)
  with pytest.raises(ValueError, match=MESSAGE):
    mapped(lambda g: tx.init(params).count + 0 * g[0].astype(jnp.int32))(gradients)
  with pytest.raises(ValueError, match=MESSAGE):
    rtopk_jax.init(tx, params, harness.mesh(4), AXIS)
  with pytest.raises(ValueError, match=MESSAGE):
    rtopk_jax.wire_bytes(tx, params, 4)
  state = jax.vmap(
    rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1), AXIS, dense=False).init,
    in_axes=None,
    out_axes=rtopk_jax.state_axes(tx, params),
    axis_name=AXIS,
    axis_size=4,
  )(params)
  axes = rtopk_jax.state_axes(tx, params)
  update = lambda g, state: tx.update(g, state)[0]
  with pytest.raises(ValueError, match=MESSAGE):
    jax.vmap(update, in_axes=(0, axes), out_axes=None, axis_name=AXIS)(gradients, state)


def test_short_leaves_are_not_the_whole():
  """Of 5 workers one entry each of a leaf of three, and 1 % of a long one."""
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), AXIS, dense=False, scope="leaf")
  grads = harness.gradients({"long": (50, 40), "short": (3,)}, 1, 5)
  updates, _ = harness.run("vmap", tx, grads)
  assert np.count_nonzero(updates["short"]) <= 3
  assert 0 < np.count_nonzero(updates["long"]) <= 100


def test_a_warm_up_may_begin_with_it():
  stages = rtopk_jax.Stages((0.5, 0.1), steps_per_stage=1)
  selector = rtopk_jax.rtop_k(stages)
  assert selector.at(0).counts(400, 4) == (200, 400)
  assert selector.at(1) == rtopk_jax.rtop_k(0.1)
  tx = rtopk_jax.sparse_exchange(selector, AXIS, dense=False)
  grads = harness.gradients({"w": (40, 10)}, 2, 4)
  updates, _ = harness.run("vmap", tx, grads)
  assert np.count_nonzero(updates["w"][1]) <= 4 * 40
  # But not end with it.
  with pytest.raises(ValueError, match="magnitudes would not matter"):
    rtopk_jax.rtop_k(rtopk_jax.Stages((0.5, 0.25), 1)).at(1).counts(400, 4)
