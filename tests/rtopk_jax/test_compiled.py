"""What the compiled program of a whole training step sends, and that it lowers for other platforms."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS = harness.AXIS, 4
SHAPES = {"w1": (40, 64), "b1": (64,), "w2": (64, 30), "b2": (30,)}
DENSE_ENTRIES = 64 + 30  # of the biases, which are sent dense by default
BYTES = {"f32": 4, "u32": 4, "s32": 4, "pred": 1}
COLLECTIVE = re.compile(
  r"= (\(?[^=()]*\)?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-\w+)(-start)?\("
)


def params():
  return {name: jnp.full(shape, 0.01, jnp.float32) for name, shape in SHAPES.items()}


def loss_fn(params, x):
  hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
  return jnp.mean((hidden @ params["w2"] + params["b2"][None] - 1) ** 2)


def ready_made(tx, workers):
  mesh = harness.mesh(workers)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS)
  return step, (params(), rtopk_jax.init(tx, params(), mesh, AXIS), jnp.ones((16, 40)))


def by_hand(tx, workers, check_vma=True):
  mesh = harness.mesh(workers)
  specs = rtopk_jax.state_specs(tx, params(), AXIS)

  def worker(weights, state, x):
    loss, gradient = rtopk_jax.local_value_and_grad(loss_fn, AXIS)(weights, x)
    updates, state = tx.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state, jax.lax.pmean(loss, AXIS)

  step = jax.shard_map(
    worker,
    mesh=mesh,
    in_specs=(P(), specs, P(AXIS)),
    out_specs=(P(), specs, P()),
    check_vma=check_vma,
  )
  return jax.jit(step), (params(), rtopk_jax.init(tx, params(), mesh, AXIS), jnp.ones((16, 40)))


def by_hand_unchecked(tx, workers):
  return by_hand(tx, workers, check_vma=False)


STEPS = [ready_made, by_hand, by_hand_unchecked]


def collectives(text):
  """(operation, [bytes of each result]) of every collective in a compiled program."""
  found = []
  for shapes, operation, _ in COLLECTIVE.findall(text):
    sizes = [
      BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
      for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    found.append((operation, sizes))
  return found


def sizes_of(text, operation):
  return [size for name, sizes in collectives(text) if name == operation for size in sizes]


def exchange(dense=None, **options):
  selector = rtopk_jax.rtop_k(0.01, subsample=4)
  options = {"momentum": 0.9, "clip_norm": 1.0, **options}
  return rtopk_jax.sparse_exchange(selector, AXIS, dense=dense, **options)


def compiled(step, arguments):
  return step.lower(*arguments).compile().as_text()


@pytest.mark.parametrize("build", STEPS)
@pytest.mark.parametrize(("scope", "dense"), [("global", None), ("leaf", False)])
def test_one_gather_for_all_that_is_sparse(build, scope, dense):
  tx = optax.chain(exchange(dense, scope=scope), optax.sgd(0.1))
  text = compiled(*build(tx, WORKERS))
  names = [name for name, _ in collectives(text)]
  assert set(names) <= {"all-gather", "all-reduce"}
  dense_bytes = 4 * DENSE_ENTRIES if dense is None else 0
  sent = rtopk_jax.wire_bytes(tx, params(), WORKERS).sent
  # Every worker's message on every worker.
  assert sizes_of(text, "all-gather") == [WORKERS * (sent - dense_bytes)]
  # The dense leaves in one piece, and the mean of the loss.
  reduced = [4] if dense is False else [4, dense_bytes]
  assert sorted(sizes_of(text, "all-reduce")) == reduced
  assert names.count("all-reduce") <= len(reduced)


@pytest.mark.parametrize("build", STEPS)
def test_the_dense_exchange_is_one_all_reduce(build):
  tx = optax.chain(rtopk_jax.dense_exchange(AXIS, momentum=0.9, clip_norm=1.0), optax.sgd(0.1))
  text = compiled(*build(tx, WORKERS))
  sent = rtopk_jax.wire_bytes(tx, params(), WORKERS).sent
  assert sent == 4 * sum(math.prod(shape) for shape in SHAPES.values())
  assert sizes_of(text, "all-gather") == []
  assert sorted(sizes_of(text, "all-reduce")) == [4, sent]


def test_the_search_for_collectives_sees_a_hidden_all_reduce():
  """What ``local_value_and_grad`` avoids: jax.grad of replicated parameters sums them densely."""
  step = lambda p, x: jax.grad(loss_fn)(p, x)
  mapped = jax.shard_map(step, mesh=harness.mesh(WORKERS), in_specs=(P(), P(AXIS)), out_specs=P())
  text = jax.jit(mapped).lower(params(), jnp.ones((16, 40))).compile().as_text()
  entries = sum(math.prod(shape) for shape in SHAPES.values())
  assert sum(sizes_of(text, "all-reduce")) == 4 * entries


def test_every_stage_of_a_warm_up_sends_its_own_bytes_in_one_program():
  stages = rtopk_jax.Stages((0.2, 0.05, 0.01), 5)
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(stages, 2), AXIS, dense=False)
  gathers = sizes_of(compiled(*ready_made(tx, WORKERS)), "all-gather")
  expected = [
    WORKERS * rtopk_jax.wire_bytes(tx, params(), WORKERS, step=step).sent for step in (0, 5, 10)
  ]
  assert sorted(gathers, reverse=True) == expected
  assert expected[0] > expected[1] > expected[2]


def instructions(text):
  return len(re.findall(r"^\s*(?:ROOT )?%?[\w.-]+ = ", text, re.MULTILINE))


def test_code_does_not_grow_with_the_number_of_workers():
  tx = optax.chain(exchange(average="senders"), optax.sgd(0.1))
  few, many = (compiled(*ready_made(tx, workers)) for workers in (2, 8))
  assert instructions(few) > 100
  assert abs(instructions(many) - instructions(few)) <= 0.05 * instructions(few)
  lines = [
    len(step.lower(*arguments).as_text().splitlines())
    for step, arguments in (by_hand(tx, workers) for workers in (2, 8))
  ]
  assert lines[0] == lines[1]


@pytest.mark.parametrize("scope", ["global", "leaf"])
@pytest.mark.parametrize("selector", harness.SELECTORS)
def test_it_lowers_for_gpu_and_tpu(selector, scope):
  density = rtopk_jax.Stages((0.1, 0.01), 3)
  tx = rtopk_jax.sparse_exchange(
    harness.SELECTORS[selector](density), AXIS, scope=scope, average="senders", momentum=0.9
  )
  step, arguments = by_hand(optax.chain(tx, optax.sgd(0.1)), WORKERS)
  lowered = step.trace(*arguments).lower(lowering_platforms=("cuda", "tpu"))
  assert "all_gather" in lowered.as_text()


def test_the_ready_made_step_lowers_for_gpu_and_tpu():
  step, arguments = ready_made(optax.chain(exchange(), optax.sgd(0.1)), WORKERS)
  lowered = jax.jit(step.__wrapped__).trace(*arguments).lower(lowering_platforms=("cuda", "tpu"))
  assert "all_gather" in lowered.as_text()


def test_parameters_and_state_are_donated():
  step, (weights, state, batch) = ready_made(optax.chain(exchange(), optax.sgd(0.1)), WORKERS)
  weights, state, _ = step(weights, state, batch)
  step(weights, state, batch)
  assert all(x.is_deleted() for x in jax.tree.leaves((weights, state[0].residual)))
