"""Which leaves are compressed, and what happens to the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS = harness.AXIS, 2
# 1,024, 1,023, 2,000, 65,536, 0 and 1 entries
SHAPES = {
  "large": (32, 32),
  "small": (31, 33),
  "vector": (2000,),
  "long": (1 << 16,),
  "empty": (0, 5),
  "scalar": (),
}


def sent_dense(dense):
  """The names of the leaves whose update is the plain mean: ones, where a sum has zeros and twos."""
  grads = {name: np.ones((1, WORKERS, *shape), np.float32) for name, shape in SHAPES.items()}
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.random_k(0.1), AXIS, dense=dense, scope="leaf", average="sum"
  )
  updates, state = harness.run("vmap", tx, grads)
  names = {name for name in SHAPES if updates[name].size and np.all(updates[name] == 1)}
  for name in names:
    assert not np.any(state.residual[name]), "the residual of a dense leaf is zeros"
  assert updates["empty"].shape == (1, 0, 5)
  return names


@pytest.mark.parametrize(
  ("dense", "names"),
  [
    (None, {"small", "vector", "scalar"}),  # under 1,024 entries, or 65,536 of one dimension
    (True, {"large", "small", "vector", "long", "scalar"}),
    pytest.param(False, set(), marks=pytest.mark.slow),
    (
      {
        "large": True,
        "small": False,
        "vector": False,
        "long": False,
        "empty": False,
        "scalar": True,
      },
      {"large", "scalar"},
    ),
    pytest.param(
      lambda path, leaf: path[0].key == "small" or leaf.ndim == 0,
      {"small", "scalar"},
      marks=pytest.mark.slow,
    ),
  ],
  ids=["default", "all", "none", "tree", "function"],
)
def test_dense_leaves(dense, names):
  # A scalar alone is sent whole by either path, and its sum over two workers is 2.
  assert sent_dense(dense) == names


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_nothing_but_empty_leaves(scope):
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, dense=False, scope=scope)
  updates, state = harness.run("vmap", tx, {"a": np.ones((1, WORKERS, 0, 5), np.float32)})
  assert updates["a"].shape == (1, 0, 5)
  np.testing.assert_array_equal(state.count, [1])


def test_global_selects_over_all_leaves_and_leaf_in_each():
  grads = {
    "big": np.full((1, WORKERS, 20), 5.0, np.float32),
    "little": np.ones((1, WORKERS, 20), np.float32),
  }
  exchange = lambda scope: rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.1), AXIS, dense=False, scope=scope
  )
  count = lambda updates: {name: np.count_nonzero(x) for name, x in updates.items()}
  assert count(harness.run("vmap", exchange("global"), grads)[0]) == {"big": 4, "little": 0}
  assert count(harness.run("vmap", exchange("leaf"), grads)[0]) == {"big": 2, "little": 2}


def test_a_single_array_is_a_tree_too():
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.5), AXIS, dense=False)
  one = lambda g: tx.update(g, tx.init(g))[0]
  mapped = jax.jit(jax.vmap(one, out_axes=None, axis_name=AXIS))
  updates = mapped(jnp.array([[4.0, 1.0], [2.0, 8.0]]))
  np.testing.assert_array_equal(updates, [2.0, 4.0])


def test_a_vector_whose_places_int32_cannot_count_is_refused():
  # 2³¹ - 1 entries in all, and a few places between the leaves.
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.5), AXIS, dense=False)
  shape = lambda *shape: jax.ShapeDtypeStruct((WORKERS, *shape), jnp.float32)
  grads = {"one": shape(1), "two": shape(2**30 - 1), "three": shape(2**30 - 1)}
  step = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], out_axes=None, axis_name=AXIS)
  with pytest.raises(ValueError, match=r'2147483679 places.*scope="leaf"'):
    jax.eval_shape(step, grads)
