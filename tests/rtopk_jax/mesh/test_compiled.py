"""What the compiled program of a whole training step sends, and that it lowers for other platforms."""

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


def vectors(tx, workers, shapes=None, param_specs=None, axes=AXIS):
  """The exchange alone, of gradients that are shards where parameters are."""
  shapes = SHAPES if shapes is None else shapes
  leaves = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  mesh = workers if isinstance(workers, jax.sharding.Mesh) else harness.mesh(workers)
  count = math.prod(mesh.shape[name] for name in ((axes,) if isinstance(axes, str) else axes))
  specs = rtopk_jax.state_specs(tx, leaves, axes, param_specs)
  param_specs = param_specs or dict.fromkeys(leaves, P())
  of_gradient = {name: P(axes, *spec) for name, spec in param_specs.items()}
  step = jax.shard_map(
    lambda g, state: tx.update(jax.tree.map(lambda x: x[0], g), state),
    mesh=mesh,
    in_specs=(of_gradient, specs),
    out_specs=(param_specs, specs),
  )
  gradient = {name: jax.ShapeDtypeStruct((count, *x.shape), x.dtype) for name, x in leaves.items()}
  state = jax.eval_shape(lambda: rtopk_jax.init(tx, leaves, mesh, axes, param_specs))
  return jax.jit(step), (gradient, state)


OPERANDS = {
  "Elias-Fano": {"wire": rtopk_jax.Wire(indices="elias_fano")},
  "int8": {"wire": rtopk_jax.Wire("int8", "elias_fano")},
  "blocks": {"wire": rtopk_jax.Wire("int4", "block"), "scope": rtopk_jax.Block(64)},
  "owners": {"collective": "reduce_scatter"},
  "owners, leaf": {"collective": "reduce_scatter", "scope": "leaf"},
  "owners, int8": {
    "collective": rtopk_jax.ReduceScatter(slack=0.2),
    "wire": rtopk_jax.Wire("int8", "elias_fano"),
  },
}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=pytest.mark.slow if x in ("Elias-Fano", "owners") else [])
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


TWO = ("slow", "fast")


def over_two_links(outer):
  """Dense over the fast axis, and over the slow one as the collective says."""
  return rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.01, 4), TWO, dense=False, collective=rtopk_jax.Hierarchical("fast", outer)
  )


def of_two_axes():
  kinds = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((4, 2), TWO, axis_types=kinds, devices=jax.devices()[:8])


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


@pytest.mark.parametrize(
  "options",
  [{"average": "senders"}, {"collective": "reduce_scatter"}],
  ids=["AllGather", "ReduceScatter"],
)
def test_code_does_not_grow_with_the_number_of_workers(options):
  tx = optax.chain(exchange(**options), optax.sgd(0.1))
  few, many = (compiled(*ready_made(tx, workers)) for workers in (2, 8))
  assert instructions(few) > 100
  assert abs(instructions(many) - instructions(few)) <= 0.05 * instructions(few)
  lines = [
    len(step.lower(*arguments).as_text().splitlines())
    for step, arguments in (by_hand(tx, workers) for workers in (2, 8))
  ]
  assert lines[0] == lines[1]


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
  assert found[0] > 100
  assert len(set(found)) == 1


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


# Above what is sorted, in leaves of whole tiles, of rows that fill none, and small ones.
LARGE_SHAPES = {"w": (512, 256), "v": (300, 150), "b": (40, 30)}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=[] if x in ("int8", "blocks", "owners, int8") else pytest.mark.slow)
    for x in OPERANDS
  ],
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


def compiled_step(options, workers, donated):
  """A step of leaves that are searched, most of them large, and its entries.

  What is donated comes first, the state before the gradient: its memory goes to the first result of its size.
  """
  shapes = {"w": (1000, 700), "v": (3, 3, 256, 256), "u": (300, 900), "b": (1000,), "c": (30, 30)}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.001, 4), AXIS, dense=False, **options)
  step, (gradient, state) = vectors(tx, workers, shapes)
  state_first = lambda state, gradient: step(gradient, state)[::-1]
  lowered = jax.jit(state_first, donate_argnums=donated).lower(state, gradient)
  return lowered.compile(), sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize(
  ("options", "passes"),
  [
    ({"momentum": 0.9, "clip_norm": 1.0}, 11),
    pytest.param({"momentum": 0.9}, 10, marks=pytest.mark.slow),
    pytest.param({}, 6, marks=pytest.mark.slow),
  ],
  ids=["clip", "momentum", "residual"],
)
def test_passes_over_all_entries(options, passes):
  """Those that ``rtopk_jax/_step.py`` counts, and up to three more for words and small leaves."""
  step, size = compiled_step(options, WORKERS, donated=(0, 1))
  program = hlo.Program(step.as_text())
  assert passes <= sum(moved for moved, _ in program.moved(turns=True)) / (4 * size) <= passes + 3
  assert program.sorts() == []
  # Nothing of the length of a gradient is stored beside it.
  assert step.memory_analysis().temp_size_in_bytes < 1.25 * size


def test_a_gradient_that_is_kept_is_copied_once():
  """What loops write over in its place is the update, which takes no more memory than it did anyway."""
  step, size = compiled_step({}, WORKERS, donated=(0,))
  program = hlo.Program(step.as_text())
  assert sum(moved for moved, _ in program.moved(turns=True)) / (4 * size) <= 6 + 2 + 3
  assert step.memory_analysis().temp_size_in_bytes < 1.25 * size


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


@pytest.mark.parametrize(("dtype", "bytes_an_entry"), [("float16", 1), ("bfloat16", 3)])
def test_a_residual_of_16_bits_is_not_worked_on_in_float32(dtype, bytes_an_entry):
  """One of bfloat16 is written to as bits, of which CPUs make a copy."""
  step, size = compiled_step({"memory_dtype": dtype}, WORKERS, donated=(0,))
  assert step.memory_analysis().temp_size_in_bytes < bytes_an_entry * size


def test_the_ready_made_step_lowers_for_gpu_and_tpu():
  step, arguments = ready_made(optax.chain(exchange(), optax.sgd(0.1)), WORKERS)
  lowered = jax.jit(step).trace(*arguments).lower(lowering_platforms=("cuda", "tpu"))
  assert "all_gather" in lowered.as_text()


def test_parameters_and_state_are_donated():
  step, (weights, state, batch) = ready_made(optax.chain(exchange(), optax.sgd(0.1)), WORKERS)
  weights, state, _ = step(weights, state, batch)
  step(weights, state, batch)
  assert all(x.is_deleted() for x in jax.tree.leaves((weights, state[0].residual)))
