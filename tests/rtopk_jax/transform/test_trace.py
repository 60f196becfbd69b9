"""How much is traced: of what one platform does, and nothing for the others."""

import jax
import jax.numpy as jnp
import pytest

import rtopk_jax
from benchmarks import trees
from tests.rtopk_jax.harness import AXIS


@pytest.mark.parametrize(
  ("platform", "options"),
  [
    ("cpu", {"momentum": 0.9}),
    pytest.param("cpu", {"momentum": 0.9, "scope": "leaf"}, marks=pytest.mark.slow),
    pytest.param("gpu", {}, marks=pytest.mark.slow),
    pytest.param("tpu", {}, marks=pytest.mark.slow),
  ],
  indirect=["platform"],
)
def test_a_step_of_a_residual_network_is_traced_in_few_lines(platform, options):
  """Of 62 leaves with 11 million entries."""
  leaves = trees.resnet18()
  assert len(leaves) == 62
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.001), AXIS, **options)
  step = jax.vmap(lambda g: tx.update(g, tx.init(g)), axis_name=AXIS)
  gradient = [jax.ShapeDtypeStruct((2, *shape), jnp.float32) for shape in leaves]
  lines = str(jax.make_jaxpr(step)(gradient)).count("\n")
  assert lines < 12_000
