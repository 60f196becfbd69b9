"""What the compiled program of a whole training step sends."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo
from tests.rtopk_jax import harness
from tests.rtopk_jax.mesh.steps import (
  AXIS,
  OPERANDS,
  SHAPES,
  STEPS,
  TWO,
  WORKERS,
  by_hand,
  compiled,
  exchange,
  loss_fn,
  of_two_axes,
  over_two_links,
  params,
  ready_made,
  vectors,
)

DENSE_ENTRIES = 64 + 30  # of the biases, which are sent dense by default

BYTES = {"f32": 4, "u32": 4, "s32": 4, "pred": 1}

COLLECTIVE = re.compile(
  r"= (\(?[^=()]*\)?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-\w+)(-start)?\("
)


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


# Scopes, and what is sent dense.
_GLOBAL, _LEAF = ("global", None), ("leaf", False)


@pytest.mark.parametrize(
  ("build", "scope", "dense"),
  [
    pytest.param(build, *of, marks=[] if default == of else pytest.mark.slow)
    for build, default in zip(STEPS, (_GLOBAL, _LEAF, _GLOBAL), strict=True)
    for of in (_GLOBAL, _LEAF)
  ],
)
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


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=pytest.mark.slow if x.startswith(("Elias-Fano", "owners")) else [])
    for x in OPERANDS
  ],
)
def test_every_code_and_collective_sends_what_is_counted(name):
  tx = exchange(False, **OPERANDS[name])
  text = compiled(*vectors(tx, WORKERS))
  # Each worker gets as many rows of a table as it sends, and every worker's message.
  sent = sum(sizes_of(text, "all-to-all")) + sum(sizes_of(text, "all-gather")) // WORKERS
  assert sent == rtopk_jax.wire_bytes(tx, params(), WORKERS).sent
  assert ("owners" in name) == bool(sizes_of(text, "all-to-all"))
  assert not sizes_of(text, "all-reduce")


@pytest.mark.parametrize("outer", [rtopk_jax.AllGather(), rtopk_jax.ReduceScatter()])
def test_what_is_counted_of_two_kinds_of_links_is_what_goes_over_the_slow_ones(outer):
  tx = over_two_links(outer)
  step, arguments = vectors(tx, of_two_axes(), axes=TWO)
  program = hlo.Program(compiled(step, arguments))
  # Devices are numbered along the fast axis first.
  host = {device: device // 2 for device in range(8)}
  slow, fast = [], []
  for collective in program.collectives():
    size = sum(array.bytes for array in collective.arrays)
    size = size // WORKERS if collective.kind == "all-gather" else size
    (slow if collective.crosses(host) else fast).append((collective.kind, size))
  # Each of two chips sends a part of its worker's words, of an all-gather up to whole tiles.
  counted = rtopk_jax.wire_bytes(tx, params(), WORKERS).sent
  assert counted <= 2 * sum(size for _, size in slow) < counted + 2 * 512
  assert {kind for kind, _ in fast} == {"all-reduce", "all-gather"}
  dense = sum(size for kind, size in fast if kind == "all-reduce")
  assert dense == 4 * sum(map(math.prod, SHAPES.values()))


@pytest.mark.parametrize(
  "collective", [pytest.param("all_gather", marks=pytest.mark.slow), "reduce_scatter"]
)
def test_a_sharded_model_sends_what_is_counted_of_its_shards(collective):
  """Leaves that are sharded and leaves that are not are a vector each, and so they are counted."""
  param_specs = {"w1": P(None, "fast"), "w2": P("fast"), "b1": P(), "b2": P()}
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.01, 4), "slow", dense=False, collective=collective
  )
  text = compiled(*vectors(tx, of_two_axes(), param_specs=param_specs, axes="slow"))
  sent = sum(sizes_of(text, "all-to-all")) + sum(sizes_of(text, "all-gather")) // WORKERS
  shards = {"w1": (40, 32), "w2": (32, 30), "b1": (64,), "b2": (30,)}
  counted = [
    rtopk_jax.wire_bytes(
      tx, {name: jax.ShapeDtypeStruct(shards[name], jnp.float32) for name in part}, WORKERS
    ).sent
    for part in (["w1", "w2"], ["b1", "b2"])
  ]
  assert sent == sum(counted)


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


COLLECTIVES = pytest.mark.parametrize(
  "options",
  [{"average": "senders"}, {"collective": "reduce_scatter"}],
  ids=["AllGather", "ReduceScatter"],
)


@COLLECTIVES
def test_code_does_not_grow_with_the_number_of_workers(options):
  tx = optax.chain(exchange(**options), optax.sgd(0.1))
  few, many = (
    len(step.lower(*arguments).as_text().splitlines())
    for step, arguments in (by_hand(tx, workers) for workers in (2, 8))
  )
  assert few > 100
  # How long a message is decides which way it is added up.
  assert abs(many - few) <= 0.01 * few


@pytest.mark.slow
@COLLECTIVES
def test_nor_does_what_is_compiled_of_it(options):
  tx = optax.chain(exchange(**options), optax.sgd(0.1))
  few, many = (instructions(compiled(*ready_made(tx, workers))) for workers in (2, 8))
  assert few > 100
  assert abs(many - few) <= 0.05 * few


@pytest.mark.parametrize(
  "outer",
  [pytest.param(rtopk_jax.AllGather(), marks=pytest.mark.slow), rtopk_jax.ReduceScatter()],
)
def test_code_does_not_grow_with_the_number_of_hosts(outer):
  tx = over_two_links(outer)
  kinds = (jax.sharding.AxisType.Auto,) * 2
  found = []
  for shape in ((2, 2), (4, 2), (2, 4)):
    mesh = jax.make_mesh(shape, TWO, axis_types=kinds, devices=jax.devices()[: math.prod(shape)])
    step, arguments = vectors(tx, mesh, axes=TWO)
    found.append(len(step.lower(*arguments).as_text().splitlines()))
  assert min(found) > 100
  assert max(found) <= 1.01 * min(found)
