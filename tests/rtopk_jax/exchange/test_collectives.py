"""Collectives with owners, over two kinds of links and chosen by cost: nothing lost, all agree, O(k) bytes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import rtopk_jax
from tests.rtopk_jax import harness

AXIS = harness.AXIS
SHAPES = {"a": (30, 50), "b": (40, 20), "c": (7,)}
PROPERTY_SHAPES = {"a": (12, 22), "b": (44,)}


def _kept_and_sent(mode, tx, grads):
  """All that came in, and what went out and is kept, after each step."""
  updates, state = harness.run(mode, tx, grads)
  for name, g in grads.items():
    n = g.shape[1]
    came_in = np.cumsum(np.asarray(g, np.float64).sum(axis=1), axis=0)
    went_out = n * np.cumsum(np.asarray(updates[name], np.float64), axis=0)
    kept = np.asarray(state.residual[name], np.float64).sum(axis=1)
    yield name, came_in, went_out + kept, updates[name], state


@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
@pytest.mark.parametrize(
  "options",
  [
    {"collective": "reduce_scatter"},
    {"collective": rtopk_jax.ReduceScatter(slack=0), "scope": "leaf"},
    {
      "collective": rtopk_jax.ReduceScatter(0.2),
      "wire": rtopk_jax.Wire("float16", "elias_fano"),
    },
    {"scope": rtopk_jax.Block(64), "wire": rtopk_jax.Wire("int8", "block")},
  ],
)
def test_nothing_is_lost(mode, options):
  grads = harness.gradients(SHAPES, 3, 4, powers=False)
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.05), AXIS, dense=False, **options)
  for name, came_in, found, _, _ in _kept_and_sent(mode, tx, grads):
    np.testing.assert_allclose(found, came_in, atol=1e-4, err_msg=name)


@dataclasses.dataclass(frozen=True)
class _Case:
  """An exchange whose steps are drawn: its options, how many workers over which axes, in which map."""

  options: dict
  workers: int = 3
  axis: str | tuple[str, str] = AXIS

  @functools.cached_property
  def tx(self):
    options = {"dense": False, **self.options}
    return rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1, 2), self.axis, **options)

  @functools.cached_property
  def step(self):
    """From gradients, state and number of the step to update and state, all workers' rows."""
    one = lambda g, state: self.tx.update(g, state)
    if isinstance(self.axis, str):
      axes = rtopk_jax.state_axes(self.tx, PROPERTY)
      return jax.jit(jax.vmap(one, in_axes=(0, axes), out_axes=(None, axes), axis_name=self.axis))
    specs = rtopk_jax.state_specs(self.tx, PROPERTY, self.axis)
    return jax.jit(
      jax.shard_map(
        lambda g, state: one(jax.tree.map(lambda x: x[0], g), state),
        mesh=_mesh(self.axis),
        in_specs=(P(self.axis), specs),
        out_specs=(P(), specs),
      )
    )


PROPERTY = {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in PROPERTY_SHAPES.items()}
_wire = rtopk_jax.Wire
_to_owners = lambda slack, **options: {"collective": rtopk_jax.ReduceScatter(slack), **options}
# Each wire, slack from none to plenty, momentum of every kind, every number of workers.
CASES = {
  "float32": _Case(_to_owners(0)),
  "bfloat16": _Case(_to_owners(0, wire=_wire("bfloat16", "elias_fano"), momentum=0.9), 2),
  "float16": _Case(_to_owners(0.2, wire=_wire("float16"), scope="leaf"), 5),
  "int8": _Case(_to_owners(0.5, wire=_wire("int8", "elias_fano")), 4, ("x", "y")),
  "int4": _Case(_to_owners(2, wire=_wire("int4"), momentum=0.5, nesterov=True), 8),
  "int2": _Case(
    _to_owners(0, wire=_wire("int2", "elias_fano"), momentum=0.9, momentum_masking=False)
  ),
  "gathered": _Case({"wire": _wire("int4", "elias_fano"), "scope": "leaf", "momentum": 0.9}),
  "blocks": _Case(
    {"wire": _wire("int8", "block"), "scope": rtopk_jax.Block(16), "momentum": 0.5}, 2
  ),
}


def _drawn(seed, workers, kind, momentum):
  """Gradients, residuals and momenta: whole numbers or any, all workers' largest for one owner or not."""
  rng = np.random.default_rng(seed)
  whole = kind == "whole"
  scale = 1 if whole else 10.0 ** rng.integers(-3, 4)

  def rows(shape):
    x = rng.integers(-8, 9, (workers, *shape)) if whole else rng.standard_normal((workers, *shape))
    if kind == "concentrated":
      x = x * np.where(
        np.arange(math.prod(shape)) // 32 % workers == seed % workers, 64, 1
      ).reshape(shape)
    return (scale * x).astype(np.float32)

  trees = [{name: rows(shape) for name, shape in PROPERTY_SHAPES.items()} for _ in range(3)]
  return trees if momentum else [*trees[:2], ()]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12)
@given(
  st.integers(0, 2**31 - 1),
  st.integers(0, 1000),
  st.sampled_from(["whole", "any", "concentrated"]),
  st.booleans(),
)
def test_nothing_is_lost_on_either_leg(name, seed, count, kind, has_residual):
  """Whatever finds no room, is rounded, or is kept back by its owner."""
  case = CASES[name]
  m = case.options.get("momentum", 0)
  g, e, u = _drawn(seed, case.workers, kind, m)
  e = jax.tree.map(lambda x: x * np.float32(has_residual), e)
  state = rtopk_jax.SparseExchangeState(np.int32(count), e, u, _no_metrics())
  updates, after = case.step(g, state)
  residual_square = square = 0.0
  for leaf in g:
    trace = g[leaf] + (m * u[leaf] if m else 0)
    v = e[leaf] + (g[leaf] + m * trace if case.options.get("nesterov") else trace)
    update, kept = np.asarray(updates[leaf], np.float64), np.asarray(after.residual[leaf])
    total = case.workers * update + kept.sum(axis=0, dtype=np.float64)
    atol = 2e-6 * case.workers * max(np.abs(v).max(), np.abs(kept).max())
    np.testing.assert_allclose(total, v.sum(axis=0, dtype=np.float64), rtol=0, atol=atol)
    if m:
      left, right = np.asarray(after.momentum[leaf]), np.asarray(trace)
      stopped = (left == 0) & (right != 0)
      np.testing.assert_allclose(left, np.where(stopped, 0, right), rtol=1e-5, atol=atol)
      assert np.any(stopped) == case.options.get("momentum_masking", True)
    residual_square += np.sum(np.square(kept, dtype=np.float64)) / case.workers
    square += np.sum(np.square(v, dtype=np.float64)) / case.workers
  np.testing.assert_allclose(
    after.metrics.residual_square, residual_square, rtol=0, atol=1e-5 * square
  )


@settings(max_examples=30)
@given(st.integers(0, 2**31 - 1), st.booleans(), st.booleans())
def test_nothing_is_lost_of_whole_numbers_bit_for_bit(seed, concentrated, has_residual):
  """All entries of all workers for the same owner, as hard as it gets without slack."""
  case = CASES["float32"]
  g, e, _ = _drawn(seed, 3, "whole", 0)
  e = jax.tree.map(lambda x: x * np.float32(has_residual), e)
  if concentrated:
    g = {
      name: x * (np.arange(x[0].size) // 32 % 3 == seed % 3).reshape(x[0].shape) * np.float32(64)
      for name, x in g.items()
    }
  state = rtopk_jax.SparseExchangeState(np.int32(0), e, (), _no_metrics())
  updates, after = case.step(g, state)
  changed = 0
  for leaf in g:
    # Whole numbers: every sum is exact.
    total = np.rint(3 * np.asarray(updates[leaf], np.float64)) + np.asarray(
      after.residual[leaf]
    ).sum(axis=0)
    np.testing.assert_array_equal(total, (g[leaf] + e[leaf]).sum(axis=0))
    changed += np.count_nonzero(updates[leaf])
  # An owner sends on a third of the 31 that a worker selects of 308.
  assert changed <= 3 * 11


def _no_metrics():
  zero = np.float32(0)
  return rtopk_jax.ExchangeMetrics(zero, zero, zero, zero, np.int32(0))


def test_the_largest_sums_are_sent_and_every_worker_gets_the_same():
  grads = harness.gradients({"w": (32, 40)}, 1, 4, powers=False)
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(1.0), AXIS, dense=False, collective=rtopk_jax.ReduceScatter()
  )
  updates, _ = harness.run("shard_map", tx, grads)
  # With all entries sent owners know the whole sum, and send it all.
  np.testing.assert_allclose(updates["w"][0], grads["w"][0].mean(axis=0), atol=1e-6)

  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.05), AXIS, dense=False, collective=rtopk_jax.ReduceScatter(slack=3.0)
  )
  updates, _ = harness.run("shard_map", tx, grads)
  flat, k = grads["w"][0].reshape(4, -1), 64
  message = np.zeros_like(flat)
  for worker in range(4):
    top = np.argsort(-np.abs(flat[worker]), kind="stable")[:k]
    message[worker, top] = flat[worker, top]
  rest = flat - message
  expected = np.zeros(1280, np.float32)
  for owner in range(4):
    mine = np.arange(1280) // 32 % 4 == owner
    sums = np.where(mine, message.sum(axis=0) + rest[owner], 0)
    chosen = np.argsort(-np.abs(sums), kind="stable")[: k // 4]
    expected[chosen] = sums[chosen] / 4
  np.testing.assert_allclose(updates["w"][0].reshape(-1), expected, atol=1e-6)


def test_bytes_do_not_grow_with_the_number_of_workers():
  params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
  link = lambda collective, n: (
    rtopk_jax.wire_bytes(
      rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.01), AXIS, collective=collective), params, n
    ).link
  )
  assert link("all_gather", 64) > 30 * link("all_gather", 2)
  assert link("reduce_scatter", 64) < 2.5 * link("reduce_scatter", 2)
  assert link("reduce_scatter", 64) < link("all_gather", 64) / 20


def _digits():
  """Handwritten digits, a fourth of them on each of 4 workers, and a small network."""
  pixels, labels = load_digits(return_X_y=True)
  rng = np.random.default_rng(0)
  order = rng.permutation(1796)
  x = (pixels[order] / 16).astype(np.float32).reshape(4, 449, 64)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32) / math.sqrt(shape[0])
  params = {"w": normal(64, 32), "b": np.zeros(32), "v": normal(32, 10), "c": np.zeros(10)}
  params = {name: p.astype(np.float32) for name, p in params.items()}
  return x, labels[order].astype(np.int32).reshape(4, 449), params


def _loss(params, x, y):
  hidden = jnp.tanh(x @ params["w"] + params["b"][None])
  logits = jax.nn.log_softmax(hidden @ params["v"] + params["c"][None])
  return -jnp.mean(jnp.take_along_axis(logits, y[:, None], axis=1))


def _trained(tx, x, y, params):
  """The loss of all digits after 200 batches of 64 on each worker."""
  axes = rtopk_jax.state_axes(tx, params)

  def worker(params, state, x, y, begin):
    batch = [jax.lax.dynamic_slice_in_dim(z, begin, 64) for z in (x, y)]
    return tx.update(jax.grad(_loss)(params, *batch), state)

  workers = jax.vmap(
    worker, in_axes=(None, axes, 0, 0, None), out_axes=(None, axes), axis_name=AXIS
  )

  def step(carry, begin):
    params, state = carry
    updates, state = workers(params, state, x, y, begin)
    return (jax.tree.map(lambda p, u: p - 0.3 * u, params, updates), state), None

  @jax.jit
  def run(params):
    init = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=4)
    begins = 64 * jnp.arange(200, dtype=jnp.int32) % (449 - 64)
    (params, _), _ = jax.lax.scan(step, (params, init(params)), begins)
    return _loss(params, x.reshape(-1, 64), y.reshape(-1))

  return float(run(params))


def test_all_exchanges_train_a_network_equally_far():
  """2 % of 2,410 entries a step, of which an owner sends on a fourth, cost next to nothing."""
  x, y, params = _digits()
  start = float(_loss(params, x.reshape(-1, 64), y.reshape(-1)))
  dense = _trained(rtopk_jax.dense_exchange(AXIS), x, y, params)
  assert dense < 0.1 * start
  sparse = lambda **options: _trained(
    rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.02), AXIS, dense=False, **options), x, y, params
  )
  for collective in ("all_gather", "reduce_scatter"):
    assert abs(sparse(collective=collective) - dense) < 0.05 * dense
  # Where something is lost, here all that is not sent, it shows.
  assert sparse(error_feedback=False) > 1.5 * dense


def _mesh(names):
  kinds = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((2, 2), names, axis_types=kinds, devices=jax.devices()[:4])


@pytest.mark.parametrize("over", ["pmap", pytest.param("vmap", marks=pytest.mark.slow), "two axes"])
def test_owners_are_the_same_workers_in_every_map(over):
  tx = lambda axis: rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.1), axis, dense=False, momentum=0.5, collective="reduce_scatter"
  )
  grads = harness.gradients(PROPERTY_SHAPES, 2, 4)
  expected, after = harness.run("shard_map", tx(AXIS), grads)
  if over != "two axes":
    updates, state = harness.run(over, tx(AXIS), grads)
    jax.tree.map(
      np.testing.assert_array_equal, (updates, state.residual), (expected, after.residual)
    )
    return
  axes = ("host", "device")
  exchange, mesh = tx(axes), _mesh(axes)
  specs = rtopk_jax.state_specs(exchange, PROPERTY, axes)
  assert specs.residual["a"] == P(axes)
  update = jax.jit(
    jax.shard_map(
      lambda g, state: exchange.update(jax.tree.map(lambda x: x[0], g), state),
      mesh=mesh,
      in_specs=(P(axes), specs),
      out_specs=(P(), specs),
    )
  )
  state = rtopk_jax.init(exchange, PROPERTY, mesh, axes)
  for i in range(2):
    updates, state = update(jax.tree.map(lambda g, i=i: g[i], grads), state)
    at = lambda tree, i=i: jax.tree.map(lambda x: x[i], tree)
    for found, wanted in (
      (updates, expected),
      (state.residual, after.residual),
      (state.momentum, after.momentum),
    ):
      jax.tree.map(np.testing.assert_array_equal, found, at(wanted))


@pytest.mark.parametrize("outer", [rtopk_jax.AllGather(), rtopk_jax.ReduceScatter()])
def test_hierarchical_is_the_exchange_of_means(outer):
  mesh, axes = _mesh(("slice", "chip")), ("slice", "chip")
  dense = {"w": False, "b": True}
  make = lambda axes, collective: rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.1), axes, clip_norm=5.0, dense=dense, collective=collective
  )
  tx = make(axes, rtopk_jax.Hierarchical("chip", outer))
  params = {"w": jnp.zeros((40, 30)), "b": jnp.zeros(30)}
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal((2, 2, *x.shape)).astype(np.float32)
  grads = jax.tree.map(draw, params)
  specs = rtopk_jax.state_specs(tx, params, axes)
  state = rtopk_jax.init(tx, params, mesh, axes)
  assert state.residual["w"].shape == (2, 40, 30)
  update = jax.jit(
    jax.shard_map(
      lambda g, state: tx.update(jax.tree.map(lambda x: x[0, 0], g), state),
      mesh=mesh,
      in_specs=(P(*axes), specs),
      out_specs=(P(), specs),
    )
  )
  updates, state = update(grads, state)
  means = jax.tree.map(lambda x: x.mean(axis=1)[None], grads)
  expected, after = harness.run("shard_map", make(AXIS, outer), means)
  for name in params:
    np.testing.assert_allclose(updates[name], expected[name][0], atol=1e-6)
  np.testing.assert_allclose(state.residual["w"], after.residual["w"][0], atol=1e-6)


def test_auto_takes_the_faster_one_and_says_so(caplog):
  auto = rtopk_jax.Auto("1Gbit/s")
  wire = rtopk_jax.Wire()
  assert auto.choose(10_000_000, 10_000, 2, wire) == rtopk_jax.AllGather()
  assert auto.choose(10_000_000, 100_000, 512, wire) == rtopk_jax.ReduceScatter()
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, collective=auto)
  with caplog.at_level("INFO", logger="rtopk_jax"):
    rtopk_jax.wire_bytes(tx, {"w": jnp.zeros((100, 100))}, 2)
  assert "AllGather() for 1000 of 10000 entries and 2 workers" in caplog.text
  # What owners cannot do is not among the choices.
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.1), AXIS, collective=rtopk_jax.Auto(1e3), average="senders"
  )
  sent = rtopk_jax.wire_bytes(tx, {"w": jnp.zeros((100, 100))}, 512).sent
  assert sent == harness.gathered(2 * 1000)


def test_auto_goes_by_how_fast_workers_are():
  sizes, wire = (10_000_000, 100_000, 16), rtopk_jax.Wire()
  speeds = {"place": 1.0}, {"own": 1.0}
  slow_to_place, slow_to_own = (rtopk_jax.LocalSpeed(**speed) for speed in speeds)
  # An owner places what does not grow with the number of workers, but reads and chooses once more.
  assert rtopk_jax.Auto(1e9, local=slow_to_place).choose(*sizes, wire) == rtopk_jax.ReduceScatter()
  assert rtopk_jax.Auto(1e9, local=slow_to_own).choose(*sizes, wire) == rtopk_jax.AllGather()


def test_choices_may_be_a_list():
  auto = rtopk_jax.Auto(1e9, choices=[rtopk_jax.AllGather()])
  assert auto == rtopk_jax.Auto(1e9, choices=(rtopk_jax.AllGather(),))
  assert hash(auto) == hash(rtopk_jax.Auto(1e9, choices=(rtopk_jax.AllGather(),)))


AUTO = rtopk_jax.Auto(1e3)


@pytest.mark.parametrize(
  ("axes", "collective", "expected"),
  [
    (AXIS, "all_gather", ()),
    (AXIS, rtopk_jax.ReduceScatter(), ()),
    (AXIS, AUTO, (rtopk_jax.ReduceScatter(),)),
    ((AXIS, "chip"), rtopk_jax.Hierarchical("chip", AUTO), (rtopk_jax.ReduceScatter(),)),
    (AXIS, rtopk_jax.Auto(1e3, choices=[rtopk_jax.AllGather()]), (rtopk_jax.AllGather(),)),
  ],
)
def test_what_was_chosen_can_be_asked(axes, collective, expected):
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), axes, collective=collective)
  chain = optax.chain(tx, optax.sgd(0.1))
  params = {"w": jnp.zeros((100, 100)), "b": jnp.zeros(3)}
  assert rtopk_jax.chosen_collectives(chain, params, 8) == expected


def _with_the_first_absent(collective, inner=None):
  """The update of 8 workers, or of 8 of ``inner`` members each."""
  axes = (AXIS, "chip") if inner else AXIS
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), axes, collective=collective, dense=False)
  number = jax.lax.axis_index
  one = lambda g: tx.update(g, tx.init(g), present=number(AXIS) > 0)[0]
  grads = harness.gradients({"w": (40, 30)}, inner or 1, 8)["w"]
  if inner:
    return jax.vmap(jax.vmap(one, 0, None, axis_name="chip"), 1, None, axis_name=AXIS)(grads)
  return jax.vmap(one, out_axes=None, axis_name=AXIS)(grads[0])


def test_auto_takes_what_allows_absence_where_workers_are_absent():
  expected = _with_the_first_absent("all_gather")
  np.testing.assert_array_equal(_with_the_first_absent(AUTO), expected)
  plain, chosen = (
    _with_the_first_absent(rtopk_jax.Hierarchical("chip", outer), inner=2)
    for outer in (rtopk_jax.AllGather(), AUTO)
  )
  np.testing.assert_array_equal(chosen, plain)


@pytest.mark.parametrize(
  ("collective", "inner"),
  [
    ("reduce_scatter", None),
    (rtopk_jax.Auto(1e9, choices=[rtopk_jax.ReduceScatter()]), None),
    (rtopk_jax.Hierarchical("chip", rtopk_jax.ReduceScatter()), 2),
  ],
)
def test_owners_cannot_be_absent(collective, inner):
  with pytest.raises(ValueError, match=r"present needs a collective without owners.*ReduceScatter"):
    _with_the_first_absent(collective, inner)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"average": "senders"}, 'average="senders"'),
    ({"error_feedback": False}, "error_feedback=False"),
    ({"scope": rtopk_jax.Block(64), "wire": rtopk_jax.Wire(indices="block")}, 'indices="block"'),
  ],
)
def test_what_owners_cannot_do_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, collective="reduce_scatter", **options)


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: rtopk_jax.ReduceScatter(-1), ValueError, "slack must be at least 0"),
    (lambda: rtopk_jax.Hierarchical(3), TypeError, "inner_axis must be the name.*got 3"),
    (lambda: rtopk_jax.Hierarchical(("a", "b", "a")), ValueError, "inner_axis .*'a' twice"),
    (
      lambda: rtopk_jax.sparse_exchange(
        rtopk_jax.top_k(0.1),
        ("data", "data", "chip"),
        collective=rtopk_jax.Hierarchical("chip"),
      ),
      ValueError,
      r"axis_name must name each axis once, got \('data', 'data', 'chip'\) with 'data' twice",
    ),
    (lambda: rtopk_jax.Hierarchical("chip", "all_gather"), TypeError, "outer must be AllGather"),
    (lambda: rtopk_jax.Auto("fast"), ValueError, "fast"),
    (lambda: rtopk_jax.Auto(1e9, choices=()), ValueError, "choices must not be empty"),
    (
      lambda: rtopk_jax.Auto(1e9, choices=rtopk_jax.AllGather()),
      TypeError,
      r"choices must be several.*got AllGather\(\); one alone is a tuple too",
    ),
    (lambda: rtopk_jax.Auto(1e9, choices="all_gather"), TypeError, "choices must be several"),
    (lambda: rtopk_jax.Auto(1e9, choices=["ring"]), TypeError, "choices must be AllGather.*'ring'"),
    (
      lambda: rtopk_jax.Auto(1e9, local=3),
      TypeError,
      "local must be a rtopk_jax.LocalSpeed.*got 3",
    ),
    (lambda: AUTO.choose(10, 11, 2, rtopk_jax.Wire()), ValueError, "k must be at most 10.*got 11"),
    (lambda: AUTO.choose(10, 0, 2, rtopk_jax.Wire()), ValueError, "k must be at least 1, got 0"),
    (lambda: AUTO.choose(10, 1, 0, rtopk_jax.Wire()), ValueError, "num_workers must be at least 1"),
    (lambda: AUTO.choose(1e6, 1, 2, rtopk_jax.Wire()), TypeError, "d must be an integer"),
    (lambda: rtopk_jax.Block(1), ValueError, "size must be at least 2"),
    (lambda: rtopk_jax.Block(1 << 17), ValueError, "size must be at most 65536"),
    (
      lambda: rtopk_jax.sparse_exchange(
        rtopk_jax.top_k(0.1), "data", collective=rtopk_jax.Hierarchical("data")
      ),
      ValueError,
      "must be some but not all",
    ),
    (
      lambda: rtopk_jax.sparse_exchange(
        rtopk_jax.top_k(0.1), "data", wire=rtopk_jax.Wire(indices="block")
      ),
      ValueError,
      'indices="block" need scope',
    ),
  ],
)
def test_wrong_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()


PARAM_SPECS = {"w": P(None, "fsdp"), "n": P()}


def test_shards_of_a_model_exchange_over_replicas_alone():
  """Sharded leaves: each shard is exchanged as by itself. Others: the same on all shards."""
  mesh = _mesh(("replica", "fsdp"))
  params = {"w": jnp.zeros((40, 60)), "n": jnp.zeros((50, 40))}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "replica", dense=False, clip_norm=50.0)
  specs = rtopk_jax.state_specs(tx, params, "replica", PARAM_SPECS)
  assert specs.residual == {"w": P("replica", None, "fsdp"), "n": P("replica")}
  state = rtopk_jax.init(tx, params, mesh, "replica", PARAM_SPECS)
  rng = np.random.default_rng(0)
  grads = {k: rng.standard_normal((2, *x.shape)).astype(np.float32) for k, x in params.items()}
  update = jax.jit(
    jax.shard_map(
      lambda g, state: tx.update(jax.tree.map(lambda x: x[0], g), state),
      mesh=mesh,
      in_specs=({"w": P("replica", None, "fsdp"), "n": P("replica")}, specs),
      out_specs=(PARAM_SPECS, specs),
    )
  )
  updates, state = update(grads, state)
  # One norm over the whole gradient of a replica, not of a shard.
  norms = np.sqrt(sum((g.reshape(2, -1) ** 2).sum(axis=1) for g in grads.values()))
  scale = np.minimum(1, 50 / np.sqrt(2) / norms)[:, None]
  for leaf, parts in (("w", np.split(grads["w"], 2, axis=2)), ("n", [grads["n"]])):
    expected = []
    for part in parts:
      flat = part.reshape(2, -1) * scale
      message = np.zeros_like(flat)
      for i in range(2):
        top = np.argsort(-np.abs(flat[i]), kind="stable")[: flat.shape[1] // 10]
        message[i, top] = flat[i, top]
      expected.append(message.mean(axis=0).reshape(part.shape[1:]))
    np.testing.assert_allclose(updates[leaf], np.concatenate(expected, axis=-1), atol=1e-6)
  metrics = rtopk_jax.exchange_metrics(state)
  residual = np.sqrt(np.mean(sum((np.asarray(x) ** 2).reshape(2, -1).sum(1) for x in
                                 jax.tree.leaves(state.residual))))  # fmt: skip
  np.testing.assert_allclose(metrics["residual_norm"], residual, rtol=1e-4)


def test_one_bad_shard_makes_all_of_them_skip():
  mesh = _mesh(("replica", "fsdp"))
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "replica", dense=False)
  params, param_specs = {"w": jnp.zeros((4, 60))}, {"w": P(None, "fsdp")}
  specs = rtopk_jax.state_specs(tx, params, "replica", param_specs)
  state = rtopk_jax.init(tx, params, mesh, "replica", param_specs)
  update = jax.shard_map(
    lambda g, state: tx.update({"w": g[0]}, state),
    mesh=mesh,
    in_specs=(P("replica", None, "fsdp"), specs),
    out_specs=(param_specs, specs),
  )
  g = np.ones((2, 4, 60), np.float32)
  g[1, 2, 45] = np.nan
  updates, state = jax.jit(update)(g, state)
  assert not np.any(updates["w"])
  assert not np.any(state.residual["w"])
  assert rtopk_jax.exchange_metrics(state)["skipped_steps"] == 1


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("mode", ["vmap", "shard_map"])
def test_an_absent_worker_keeps_its_memory_and_does_not_count(mode, dense):
  shapes = {"w": (20, 30), "v": (5,)}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.2), AXIS, dense=dense, momentum=0.5)
  present = jnp.array([True, False, True, True])

  class Absent:
    init = staticmethod(tx.init)

    @staticmethod
    def update(updates, state, params=None):
      here = present[jax.lax.axis_index(AXIS)]
      # What an absent worker has is nobody's concern.
      bad = jax.tree.map(lambda g: jnp.where(here, g, jnp.float32(jnp.nan)), updates)
      return tx.update(bad, state, params, present=here)

  grads = harness.gradients(shapes, 2, 4)
  updates, state = harness.run(
    mode, optax.GradientTransformation(Absent.init, Absent.update), grads
  )
  others = {name: g[:, [0, 2, 3]] for name, g in grads.items()}
  expected, after = harness.run(mode, tx, others)
  for name in shapes:
    np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)
    np.testing.assert_array_equal(state.residual[name][:, [0, 2, 3]], after.residual[name])
    np.testing.assert_array_equal(state.momentum[name][:, [0, 2, 3]], after.momentum[name])
    assert not np.any(state.residual[name][:, 1])
    assert not np.any(state.momentum[name][:, 1])
