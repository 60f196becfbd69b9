"""Whole steps as each platform does them, run on CPUs, against the reference in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

# Searched together; among them leaves that lie in whole tiles, by columns and in neither way, and small ones.
SHAPES = {
  "a": (300, 500),
  "b": (70, 9),
  "c": (41_000,),
  "d": (5, 3),
  "e": (64, 256),
  "empty": (0, 3),
}

# Searched, of whole tiles, and small.
# In the order in which JAX has them.
FEW_SHAPES = {name: SHAPES[name] for name in "ade"}

# Each an array of its own, by columns, of whole tiles and neither; and a small one.
ALONE = {"by columns": (2000, 132), "few": (7, 3)}
LARGE = {"tiles": (1024, 256), "by columns": (2000, 150), "neither": (150, 2000), "few": (7, 3)}

# Each of selector, scope, average and memory in one of the first two.
OPTIONS = {
  "global": {"kind": "rtop_k", "scope": "global", "momentum": 0.5, "nesterov": True},
  "leaf": {
    "kind": "top_k",
    "scope": "leaf",
    "average": "senders",
    "momentum": 0.5,
    "memory_dtype": jnp.bfloat16,
  },
  "16 bits": {"kind": "top_k", "scope": "global", "memory_dtype": jnp.bfloat16, "momentum": 0.5},
  "random": {"kind": "random_k", "scope": "global", "momentum": 0.5, "momentum_masking": False},
}


ALL = itertools.product(("cpu", "gpu", "tpu"), OPTIONS, ("vmap", "shard_map"), (SHAPES,))


# What CPUs do of all leaves together is in ``test_agreement``.
@pytest.mark.parametrize(
  ("platform", "name", "mode", "shapes"),
  [
    ("gpu", "leaf", "vmap", FEW_SHAPES),
    ("tpu", "global", "shard_map", FEW_SHAPES),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL),
  ],
  indirect=["platform"],
)
def test_steps_agree_with_the_reference(platform, name, mode, shapes):
  harness.check(mode, harness.gradients(shapes, 3, 2), density=0.01, **OPTIONS[name])


ROUNDED = {
  "all_gather": {
    "wire": rtopk_jax.Wire(values="bfloat16"),
    "scope": "leaf",
    "memory_dtype": jnp.bfloat16,
  },
  "reduce_scatter": {"collective": "reduce_scatter", "wire": rtopk_jax.Wire(values="bfloat16")},
}


@pytest.mark.parametrize(
  ("other", "name", "shapes"),
  [
    pytest.param("tpu", "all_gather", ALONE, marks=pytest.mark.slow),
    pytest.param("tpu", "all_gather", LARGE, marks=pytest.mark.slow),
    pytest.param("gpu", "all_gather", LARGE, marks=pytest.mark.slow),
    pytest.param("tpu", "reduce_scatter", LARGE, marks=pytest.mark.slow),
    pytest.param("gpu", "reduce_scatter", LARGE, marks=pytest.mark.slow),
  ],
)
def test_steps_are_the_same_on_all_platforms(other, name, shapes):
  """Also what the reference does not know: rounded messages and owners."""
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.01, 2), harness.AXIS, momentum=0.5, dense=False, **ROUNDED[name]
  )
  grads = harness.gradients(shapes, 2, 2)

  def after(platform):
    with rtopk_jax.platform(platform):
      updates, state = harness.run("vmap", tx, grads)
    return (updates, state.residual, state.momentum), state.metrics

  found, expected = after(other), after("cpu")
  jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
  # Squares are added up in another order.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found[1], expected[1])
