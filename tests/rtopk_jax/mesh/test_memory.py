"""What a compiled step reads and writes, and how much memory it takes."""

import math
import re

import jax
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo
from tests.rtopk_jax import harness
from tests.rtopk_jax.mesh.steps import AXIS, WORKERS, exchange, ready_made, vectors

_SELECTOR = rtopk_jax.rtop_k(0.001, 4)


def compiled_step(options, workers, donated, selector=_SELECTOR):
  """A step of leaves that are searched, most of them large, and its entries.

  What is donated comes first, the state before the gradient: its memory goes to the first result of its size.
  """
  shapes = {"w": (1000, 700), "v": (3, 3, 256, 256), "u": (300, 900), "b": (1000,), "c": (30, 30)}
  tx = rtopk_jax.sparse_exchange(selector, AXIS, dense=False, **options)
  step, (gradient, state) = vectors(tx, workers, shapes)
  state_first = lambda state, gradient: step(gradient, state)[::-1]
  lowered = jax.jit(state_first, donate_argnums=donated).lower(state, gradient)
  return lowered.compile(), sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize(
  ("options", "passes"),
  [
    pytest.param({"momentum": 0.9, "clip_norm": 1.0}, 11, marks=pytest.mark.slow),
    pytest.param({"momentum": 0.9}, 10, marks=pytest.mark.slow),
    ({}, 6),
  ],
  ids=["clip", "momentum", "residual"],
)
def test_passes_over_all_entries(options, passes):
  """Those that ``rtopk_jax/transform/_step.py`` counts, and up to four more for words and small leaves."""
  step, size = compiled_step(options, WORKERS, donated=(0, 1))
  program = hlo.Program(step.as_text())
  assert passes <= sum(moved for moved, _ in program.moved(turns=True)) / (4 * size) <= passes + 4
  assert program.sorts() == []
  # Nothing of the length of a gradient is stored beside it.
  assert step.memory_analysis().temp_size_in_bytes < 1.25 * size


def test_random_k_stores_no_sum_of_gradient_and_memory():
  """Its statistics take a read of their own, and its draws a byte an entry."""
  step, size = compiled_step({}, WORKERS, (0, 1), rtopk_jax.random_k(0.001))
  program = hlo.Program(step.as_text())
  assert sum(moved for moved, _ in program.moved(turns=True)) / (4 * size) <= 6 + 5
  assert step.memory_analysis().temp_size_in_bytes < 3 * size


def test_a_delayed_step_changes_its_memory_in_place():
  """It takes no more memory than a step at once, but for the messages in flight."""
  step, size = compiled_step({"delay": 1, "momentum": 0.9}, WORKERS, donated=(0, 1))
  assert step.memory_analysis().temp_size_in_bytes < 1.25 * size
  assert not re.search(r"f32\[(1,)?(1000,700|3,3,256,256)\]\S* copy\(", step.as_text())


@pytest.mark.slow
def test_a_gradient_that_is_kept_is_copied_once():
  """The update takes no more memory than it did anyway."""
  step, size = compiled_step({}, WORKERS, donated=(0,))
  program = hlo.Program(step.as_text())
  assert sum(moved for moved, _ in program.moved(turns=True)) / (4 * size) <= 6 + 2 + 3
  assert step.memory_analysis().temp_size_in_bytes < 1.25 * size


@pytest.mark.slow
@pytest.mark.parametrize(
  "options", [{}, {"momentum": 0.9, "clip_norm": 1.0}], ids=["residual", "clip"]
)
def test_the_mean_takes_the_memory_of_a_gradient_that_is_donated(options):
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.001, 4), AXIS, dense=False, **options)
  shapes = {"w": (1000, 700), "v": (3, 3, 256, 256)}
  _, (gradient, state) = vectors(tx, WORKERS, shapes)
  specs = jax.tree.map(lambda x: P(AXIS) if x.ndim > 1 else P(), state)

  def exchange(state, gradient):
    updates, state = tx.update(jax.tree.map(lambda x: x[0], gradient), state)
    return state, jax.tree.map(lambda x: x[None], updates)

  rows = (specs, P(AXIS))
  mapped = jax.shard_map(exchange, mesh=harness.mesh(WORKERS), in_specs=rows, out_specs=rows)
  step = jax.jit(mapped, donate_argnums=(0, 1)).lower(state, gradient).compile()
  # No second half of a gradient is stored beside it, and no leaf is copied.
  assert step.memory_analysis().temp_size_in_bytes < 2 * sum(map(math.prod, shapes.values()))
  leaves = [",".join(map(str, (1, *shape))) for shape in shapes.values()]
  assert not [x for x in leaves if re.search(rf"f32\[{x}\]\S* copy\(", step.as_text())]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bytes_an_entry"), [("float16", 1), ("bfloat16", 3)])
def test_a_residual_of_16_bits_is_not_worked_on_in_float32(dtype, bytes_an_entry):
  """One of bfloat16 is written to as bits, of which CPUs make a copy."""
  step, size = compiled_step({"memory_dtype": dtype}, WORKERS, donated=(0,))
  assert step.memory_analysis().temp_size_in_bytes < bytes_an_entry * size


def test_parameters_and_state_are_donated():
  step, (weights, state, batch) = ready_made(optax.chain(exchange(), optax.sgd(0.1)), WORKERS)
  weights, state, _ = step(weights, state, batch)
  step(weights, state, batch)
  assert all(x.is_deleted() for x in jax.tree.leaves((weights, state[0].residual)))
