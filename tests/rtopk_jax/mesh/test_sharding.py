"""Where the state lives, local gradients, and the ready training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

# Momentum on both sides of the exchange has state on both.
pytestmark = pytest.mark.filterwarnings("ignore:the exchange has momentum")
AXIS, WORKERS = harness.AXIS, 4
PARAMS = {"w": jnp.full((40, 30), 0.1, jnp.float32), "b": jnp.zeros(30)}
TX = optax.chain(
  rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.05), AXIS, momentum=0.9),
  optax.sgd(0.1, momentum=0.5),
)


def test_specs():
  exchange, sgd = rtopk_jax.state_specs(TX, PARAMS, AXIS)
  assert exchange.count == P()
  assert exchange.residual == exchange.momentum == {"w": P(AXIS), "b": P(AXIS)}
  assert set(jax.tree.leaves(exchange.metrics, is_leaf=lambda x: isinstance(x, P))) == {P()}
  assert sgd[0].trace == {"w": P(), "b": P()}


def test_specs_of_sharded_parameters():
  exchange, sgd = rtopk_jax.state_specs(TX, PARAMS, AXIS, {"w": P(None, "model"), "b": P("model")})
  assert exchange.residual == {"w": P(AXIS, None, "model"), "b": P(AXIS, "model")}
  assert sgd[0].trace == {"w": P(None, "model"), "b": P("model")}


def test_specs_over_two_axes():
  axes = ("host", "device")
  tx = rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.05), axes)
  assert rtopk_jax.state_specs(tx, PARAMS, axes).residual["w"] == P(axes)


def test_numbers_may_be_parameters():
  """Of Python too, as other transformations take them."""
  params, arrays = {"w": 1.0, "b": 2.0}, {"w": jnp.float32(1), "b": jnp.float32(2)}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.5), AXIS, momentum=0.9, dense=False)
  for of in (
    tx.init,
    rtopk_jax.dense_exchange(AXIS, momentum=0.9).init,
    lambda p: rtopk_jax.state_specs(tx, p, AXIS),
    lambda p: rtopk_jax.wire_bytes(tx, p, 5),
    lambda p: rtopk_jax.init(tx, p, harness.mesh(2), AXIS),
  ):
    jax.tree.map(np.testing.assert_array_equal, of(params), of(arrays))


@pytest.mark.parametrize(
  "make",
  [
    lambda: rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.5), AXIS),
    lambda: rtopk_jax.dense_exchange(AXIS),
  ],
)
def test_numbers_may_be_gradients(make):
  one = lambda x: make().update({"w": 3.0}, make().init({"w": x}))[0]
  assert jax.vmap(one, axis_name=AXIS, out_axes=None)(jnp.ones(4)) == {"w": 3.0}


def test_axes():
  exchange, sgd = rtopk_jax.state_axes(TX, PARAMS)
  assert exchange.count is None
  assert exchange.residual == exchange.momentum == {"w": 0, "b": 0}
  assert set(exchange.metrics) == {None}
  assert sgd[0].trace == {"w": None, "b": None}


def test_init_makes_a_row_for_every_worker_on_its_device():
  mesh = harness.mesh(WORKERS)
  state = rtopk_jax.init(TX, PARAMS, mesh, AXIS)
  row = state[0].residual["w"]
  assert row.shape == (WORKERS, 40, 30)
  assert row.sharding == NamedSharding(mesh, P(AXIS))
  assert [shard.data.shape for shard in row.addressable_shards] == [(1, 40, 30)] * WORKERS
  assert state[0].count.sharding.is_fully_replicated
  assert state[1][0].trace["w"].shape == (40, 30)


def test_workers_over_two_axes_of_a_mesh():
  axis, workers = ("host", "device"), 4
  mesh = jax.make_mesh(
    (2, 2), axis, axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:workers]
  )
  tx = rtopk_jax.sparse_exchange(rtopk_jax.random_k(0.1), axis, dense=False)
  specs = rtopk_jax.state_specs(tx, PARAMS, axis)
  gradient = harness.gradients({name: p.shape for name, p in PARAMS.items()}, 1, workers)
  gradient = jax.tree.map(lambda g: g[0], gradient)
  update = jax.shard_map(
    lambda g, s: tx.update(jax.tree.map(lambda x: x[0], g), s),
    mesh=mesh,
    in_specs=(P(axis), specs),
    out_specs=(P(), specs),
  )
  updates, state = jax.jit(update)(gradient, rtopk_jax.init(tx, PARAMS, mesh, axis))
  # What a worker sent is what its memory lacks; no two of them drew the same entries.
  sent = {name: gradient[name] - np.asarray(state.residual[name]) for name in PARAMS}
  for name in PARAMS:
    np.testing.assert_allclose(updates[name], sent[name].sum(0) / workers, rtol=1e-6)
  assert len({row.tobytes() for row in sent["w"] != 0}) == workers


@pytest.mark.parametrize("mode", ["check_vma", "no check", "pmap", "vmap"])
@pytest.mark.parametrize("argnums", [0, (0, 1)])
def test_gradients_are_local_in_every_mode(mode, argnums):
  loss_fn = lambda w, b, x: (jnp.sum(w * x**2 + b), x)
  local = rtopk_jax.local_value_and_grad(loss_fn, AXIS, argnums=argnums, has_aux=True)
  x = jnp.arange(4.0)

  def one(w, b, x):
    (loss, aux), gradient = local(w, b, x=x.reshape(()))
    return jax.tree.map(lambda y: y[None], (loss, aux, gradient))

  if mode == "vmap":
    mapped = jax.vmap(one, in_axes=(None, None, 0), axis_name=AXIS)
  elif mode == "pmap":
    mapped = jax.pmap(one, in_axes=(None, None, 0), axis_name=AXIS, devices=jax.devices()[:4])
  else:
    mapped = jax.jit(
      jax.shard_map(
        one,
        mesh=harness.mesh(4),
        in_specs=(P(), P(), P(AXIS)),
        out_specs=P(AXIS),
        check_vma=mode == "check_vma",
      )
    )
  loss, aux, gradient = jax.tree.map(jnp.ravel, mapped(jnp.float32(2), jnp.float32(1), x))
  np.testing.assert_array_equal(loss, 2 * x**2 + 1)
  np.testing.assert_array_equal(aux, x)
  expected = x**2 if argnums == 0 else (x**2, jnp.ones(4))
  jax.tree.map(np.testing.assert_array_equal, gradient, expected)


def loss_fn(params, batch):
  x, y = batch
  error = x @ params["w"] + params["b"][None] - y
  return jnp.mean(error**2), {"worst": jnp.max(jnp.abs(error)), "first": x[0, 0]}


def batch():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((16, 40)).astype(np.float32)
  return x, np.tanh(x[:, :30])


_compilations: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, *_, **__: _compilations.append(event) if "backend_compile" in event else None
)


def test_a_train_step_learns_compiles_once_and_returns_what_it_says():
  mesh = harness.mesh(WORKERS)
  step = rtopk_jax.make_train_step(loss_fn, TX, mesh, AXIS, has_aux=True)
  params, state = jax.tree.map(jnp.copy, PARAMS), rtopk_jax.init(TX, PARAMS, mesh, AXIS)
  x, y = batch()
  expected, _ = loss_fn(params, (x, y))
  params, state, first, aux = step(params, state, (x, y))
  np.testing.assert_allclose(first, expected, rtol=1e-5)
  assert aux["worst"].shape == (WORKERS,)
  np.testing.assert_array_equal(aux["first"], x[::4, 0])
  before = len(_compilations)
  assert before > 0
  for _ in range(20):
    params, state, loss, aux = step(params, state, (x, y))
  assert len(_compilations) == before
  assert float(loss) < 0.7 * float(first)
  assert int(state[0].count) == 21


def test_a_train_step_without_aux_or_donation():
  mesh = harness.mesh(2)
  step = rtopk_jax.make_train_step(lambda p, b: loss_fn(p, b)[0], TX, mesh, AXIS, donate=False)
  params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
  state = rtopk_jax.init(TX, params, mesh, AXIS)
  results = [step(params, state, batch()) for _ in range(2)]
  assert len(results[0]) == 3
  jax.tree.map(np.testing.assert_array_equal, *results)
