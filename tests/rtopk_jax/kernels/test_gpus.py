"""What is done on GPUs, run on CPUs: it finds, sends and remembers the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax.kernels._bitset import BitSet
from tests.rtopk_jax import harness
from tests.rtopk_jax.select import test_search

pytestmark = [
  pytest.mark.parametrize("platform", ["gpu"], indirect=True),
  pytest.mark.usefixtures("platform"),
]


@pytest.mark.parametrize("packing", test_search.FORMS[:2])
@pytest.mark.parametrize("count", [pytest.param(437, marks=pytest.mark.slow), 20_000])
def test_large_vectors(count, packing):
  test_search.test_large_vectors(count, packing)


@pytest.mark.parametrize("size", [1, 17, 1000])
def test_small_vectors(size):
  test_search.test_small_vectors(size, test_search.FORMS[0])


@pytest.mark.parametrize(("count", "packing"), [(300, 1), (20_000, 0)])
def test_a_sample_that_misleads_costs_no_exactness(count, packing):
  test_search.test_a_sample_that_misleads_costs_no_exactness(count, test_search.FORMS[packing])


def test_exact_cuts():
  test_search.test_exact_cuts_of_several_lists_at_once()
  for count in (0, 1, 3, 599, 600):
    test_search.test_exact_cuts_among_keys_that_equal_the_bounds(count)


@pytest.mark.parametrize("kind", [pytest.param("one", marks=pytest.mark.slow), "each", "joined"])
def test_pieces(kind):
  test_search.test_pieces_are_searched_as_one_vector_and_as_groups(test_search.SHAPES, 0.003, kind)


@pytest.mark.parametrize("kind", ["one", "joined"])
def test_long_leaves(kind):
  test_search.test_leaves_longer_than_what_is_read_at_a_time(kind, test_search.FORMS[1])


@pytest.mark.parametrize("density", [0.001, 0.05])
@pytest.mark.parametrize("make", [rtopk_jax.top_k, rtopk_jax.rtop_k, rtopk_jax.random_k])
def test_selectors(make, density):
  selector = make(density, 3) if make is rtopk_jax.rtop_k else make(density)
  rng = np.random.default_rng(4)
  vector = rng.laplace(size=500_001).astype(np.float32)
  found = jax.jit(selector)(jnp.asarray(vector), jax.random.key(0))
  k, r = selector.counts(vector.size)
  indices = np.asarray(found.indices)
  assert indices.size == k
  assert np.all(np.diff(indices) > 0)
  large = np.argsort(-np.abs(vector), kind="stable")[:r]
  assert np.isin(indices, large).all()
  np.testing.assert_array_equal(found.values, vector[indices])


def test_first_members():
  rng = np.random.default_rng(6)
  members = rng.random(32 * 8 * 50) < 0.1
  first = jax.jit(lambda x: BitSet.of(x).first(300))(jnp.asarray(members))
  np.testing.assert_array_equal(first, np.flatnonzero(members)[:300])


SHAPES = {"a": (300, 500), "b": (70, 9), "c": (41_000,), "d": (5, 3), "empty": (0, 3)}


@pytest.mark.parametrize("mode", ["shard_map", pytest.param("vmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  "options",
  [
    {"kind": "rtop_k", "scope": "global", "momentum": 0.5},
    {"kind": "top_k", "scope": "leaf", "average": "senders"},
    {"kind": "top_k", "scope": "global", "memory_dtype": jnp.bfloat16, "momentum": 0.5},
    pytest.param(
      {"kind": "random_k", "scope": "global", "momentum": 0.5, "momentum_masking": False},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_steps_agree_with_the_reference(mode, options):
  grads = harness.gradients(SHAPES, 3, 2)
  harness.check(mode, grads, density=0.01, **options)


def test_groups_draw_what_they_draw_elsewhere():
  rng = np.random.default_rng(7)
  leaves = [jnp.asarray(rng.laplace(size=shape).astype(np.float32)) for shape in SHAPES.values()]
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01, 3), harness.AXIS, scope="leaf", dense=False)

  def update():
    step = lambda leaves: tx.update(leaves, tx.init(leaves))[0]
    return jax.jit(jax.vmap(step, axis_name=harness.AXIS))([x[None] for x in leaves])

  here = update()
  jax.clear_caches()
  with rtopk_jax.platform("cpu"):
    elsewhere = update()
  for a, b in zip(here, elsewhere, strict=True):
    np.testing.assert_array_equal(a, b)
  assert sum(np.count_nonzero(x) for x in here) > 1000
