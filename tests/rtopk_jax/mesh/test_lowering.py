"""Training steps lower for other platforms, for all of them at once too, and are exported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness
from tests.rtopk_jax.mesh.steps import (
  AXIS,
  OPERANDS,
  TWO,
  WORKERS,
  by_hand,
  exchange,
  of_two_axes,
  over_two_links,
  ready_made,
  vectors,
)

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  ("selector", "scope"),
  [
    pytest.param(name, scope, marks=[] if (name == "rtop_k") == (scope == "global") else SLOW)
    for name in harness.SELECTORS
    for scope in ("global", "leaf")
  ],
)
def test_it_lowers_for_gpu_and_tpu(selector, scope):
  density = rtopk_jax.Stages((0.1, 0.01), 3)
  tx = rtopk_jax.sparse_exchange(
    harness.SELECTORS[selector](density), AXIS, scope=scope, average="senders", momentum=0.9
  )
  step, arguments = by_hand(optax.chain(tx, optax.sgd(0.1)), WORKERS)
  lowered = step.trace(*arguments).lower(lowering_platforms=("cuda", "tpu"))
  assert "all_gather" in lowered.as_text()


# Above what is sorted, in leaves of whole tiles, of rows that fill none, and small ones.
LARGE_SHAPES = {"w": (512, 256), "v": (300, 150), "b": (40, 30)}


@pytest.mark.parametrize(
  "name",
  [pytest.param(x, marks=[] if x in ("int8", "owners") else pytest.mark.slow) for x in OPERANDS],
)
def test_every_code_and_collective_lowers_for_gpu_and_tpu(name):
  step, arguments = vectors(exchange(False, **OPERANDS[name]), WORKERS, LARGE_SHAPES)
  text = step.trace(*arguments).lower(lowering_platforms=("cuda", "tpu")).as_text()
  assert ("all_to_all" in text) == ("owners" in name)
  assert "all_gather" in text


@pytest.mark.parametrize(
  "outer",
  [pytest.param(rtopk_jax.AllGather(), marks=pytest.mark.slow), rtopk_jax.ReduceScatter()],
)
def test_two_kinds_of_links_lower_for_gpu_and_tpu(outer):
  tx = over_two_links(outer)
  step, arguments = vectors(tx, of_two_axes(), LARGE_SHAPES, axes=TWO)
  text = step.trace(*arguments).lower(lowering_platforms=("cuda", "tpu")).as_text()
  assert "all_reduce" in text
  assert "all_gather" in text


def test_the_ready_made_step_lowers_for_gpu_and_tpu():
  step, arguments = ready_made(optax.chain(exchange(), optax.sgd(0.1)), WORKERS)
  lowered = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda", "tpu"))
  assert "all_gather" in lowered.as_text()


def step_of_two(inputs):
  """A step of two workers, and what it is called with."""
  mesh, params = harness.mesh(2), {"w": jnp.ones((inputs, 200), jnp.float32)}
  loss_fn = lambda params, x: jnp.mean(jnp.tanh(x @ params["w"]) ** 2)
  tx = optax.chain(
    rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), AXIS, dense=False), optax.sgd(0.1)
  )
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, donate=False)
  x = np.random.default_rng(0).normal(size=(8, inputs)).astype(np.float32)
  placed = jax.device_put(params, NamedSharding(mesh, P()))
  batch = jax.device_put(x, NamedSharding(mesh, P(AXIS)))
  return step, (placed, rtopk_jax.init(tx, params, mesh, AXIS), batch)


@pytest.mark.parametrize(
  ("platform", "platforms", "inputs"),
  [
    ("tpu", ["cpu", "cuda", "tpu"], 30),
    pytest.param("cpu", ["cpu"], 30, marks=pytest.mark.slow),
    pytest.param("gpu", ["cpu", "cuda", "tpu"], 30, marks=pytest.mark.slow),
    # Searched, where the others are sorted.
    pytest.param("gpu", ["cpu", "cuda", "tpu"], 300, marks=pytest.mark.slow),
    pytest.param("tpu", ["cpu", "cuda", "tpu"], 300, marks=pytest.mark.slow),
  ],
  indirect=["platform"],
)
def test_a_step_is_exported(platform, platforms, inputs):
  """For platforms that are not here too, all of which do as the one it was traced for; run on CPUs."""
  step, arguments = step_of_two(inputs)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments
  )
  program = jax.export.export(jax.jit(lambda *x: step(*x)), platforms=platforms)(*shapes)
  assert program.platforms == tuple(platforms)
  found = program.call(*arguments)
  params, state, loss = step(*arguments)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves((params, state, loss)), strict=True):
    np.testing.assert_array_equal(x, y)
