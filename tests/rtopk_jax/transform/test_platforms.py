"""Whole steps as each platform does them, run on CPUs, against the reference in NumPy."""

import functools

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

# Each an array of its own, of whole tiles, by columns and neither; and a small one.
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


def _cases():
  for name in ("cpu", "gpu", "tpu"):
    for options in OPTIONS:
      for mode in ("vmap", "shard_map"):
        default = {"global": "shard_map", "leaf": "vmap"}.get(options) == mode
        yield pytest.param(name, options, mode, marks=[] if default else pytest.mark.slow)


@pytest.mark.parametrize(("platform", "name", "mode"), _cases(), indirect=["platform"])
def test_steps_agree_with_the_reference(platform, name, mode):
  harness.check(mode, harness.gradients(SHAPES, 3, 2), density=0.01, **OPTIONS[name])


@pytest.mark.parametrize(
  "options",
  [
    {"wire": rtopk_jax.Wire(values="bfloat16"), "scope": "leaf", "memory_dtype": jnp.bfloat16},
    {"collective": "reduce_scatter", "wire": rtopk_jax.Wire(values="bfloat16")},
  ],
  ids=["all_gather", "reduce_scatter"],
)
def test_steps_are_the_same_on_all_platforms(options):
  """Also what the reference does not know: rounded messages and owners."""
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.01, 2), harness.AXIS, momentum=0.5, dense=False, **options
  )
  grads = harness.gradients(LARGE, 2, 2)

  def after(platform):
    jax.clear_caches()
    with rtopk_jax.platform(platform):
      updates, state = harness.run("vmap", tx, grads)
    return (updates, state.residual, state.momentum), state.metrics

  expected = after("cpu")
  for platform in ("gpu", "tpu"):
    found = after(platform)
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    # Squares are added up in another order.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, found[1], expected[1])
  jax.clear_caches()
