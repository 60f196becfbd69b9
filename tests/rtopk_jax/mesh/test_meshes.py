"""Every way to map workers: axes of every type, fully and partly by hand, with and without checked types."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS = harness.AXIS, 4
AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
KINDS = {"auto": AUTO, "explicit": EXPLICIT}


def mesh_of(*kinds, shape=None):
  shape = shape or (WORKERS, 2)[: len(kinds)]
  devices = jax.devices()[: int(np.prod(shape))]
  return jax.make_mesh(shape, (AXIS, "model")[: len(kinds)], axis_types=kinds, devices=devices)


def exchange(density=0.1, **options):
  selector = rtopk_jax.rtop_k(density)
  options = {"dense": {"w": False, "b": True}, "momentum": 0.5, "clip_norm": 1.0, **options}
  return rtopk_jax.sparse_exchange(selector, AXIS, **options)


def gradients(size):
  grads = harness.gradients({"w": (size,), "b": (7,)}, 1, WORKERS, powers=False)
  return jax.tree.map(lambda g: g[0], grads)


def updated(gradient):
  tx = exchange()
  return tx.update(gradient, tx.init(gradient))[0]


@functools.cache
def expected(size):
  mapped = jax.vmap(updated, axis_name=AXIS, out_axes=None)
  return jax.jit(mapped)(gradients(size))


def check(actual, size):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), actual, expected(size))


BOTH = (AXIS, "model")
# Each kind of axis by hand, and by the compiler; all with all in `make test-slow`.
QUICK = (
  ((AUTO,), (AXIS,), True),
  ((EXPLICIT,), (AXIS,), False),
  ((AUTO, AUTO), (AXIS,), True),
  ((AUTO, AUTO), BOTH, False),
  ((AUTO, EXPLICIT), (AXIS,), False),
  ((EXPLICIT, AUTO), BOTH, True),
  ((EXPLICIT, EXPLICIT), (AXIS,), True),
)


@pytest.mark.parametrize(
  ("kinds", "by_hand", "check_vma"),
  [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in (
      *itertools.product([(AUTO,), (EXPLICIT,)], [(AXIS,)], [True, False]),
      *itertools.product(
        itertools.product((AUTO, EXPLICIT), repeat=2), [(AXIS,), BOTH], [True, False]
      ),
    )
  ],
  ids=str,
)
def test_axes_of_every_type(kinds, by_hand, check_vma):
  mesh = mesh_of(*kinds)
  mapped = jax.shard_map(
    lambda g: updated(jax.tree.map(lambda x: x[0], g)),
    mesh=mesh,
    axis_names=set(by_hand),
    in_specs=P(AXIS),
    out_specs=P(),
    check_vma=check_vma,
  )
  placed = jax.device_put(gradients(900), NamedSharding(mesh, P(AXIS)))
  if len(by_hand) == 2 and not check_vma:
    with pytest.raises(ValueError, match=r"check_vma=False nothing says .*axes \['model'\]"):
      jax.jit(mapped)(placed)
  else:
    check(jax.jit(mapped)(placed), 900)


@pytest.mark.slow
def test_a_long_vector_beside_an_axis_of_the_compilers():
  mesh = mesh_of(AUTO, AUTO)
  mapped = jax.shard_map(
    lambda g: updated(jax.tree.map(lambda x: x[0], g)),
    mesh=mesh,
    axis_names={AXIS},
    in_specs=P(AXIS),
    out_specs=P(),
  )
  check(jax.jit(mapped)(gradients(50_000)), 50_000)


# Momentum on both sides of the exchange has state on both.
@pytest.mark.filterwarnings("ignore:the exchange has momentum")
def test_pmap():
  """State made by ``pmap`` of ``init``, or outside and then on a mesh: both are documented ways."""
  tx = optax.chain(exchange(0.2), optax.sgd(0.1, momentum=0.9))
  devices = jax.devices()[:WORKERS]
  params, grads = {"w": jnp.ones(900), "b": jnp.ones(7)}, gradients(900)
  copies = jax.tree.map(lambda x: jnp.stack([x] * WORKERS), params)
  state = jax.pmap(tx.init, AXIS, devices=devices)(copies)
  update = jax.pmap(lambda g, s, p: tx.update(g, s, p), AXIS, in_axes=(0, 0, None), devices=devices)
  for _ in range(2):
    updates, state = update(grads, state, params)
  mesh = mesh_of(AUTO)
  specs, on_mesh = rtopk_jax.state_specs(tx, params, AXIS), rtopk_jax.init(tx, params, mesh, AXIS)
  mapped = jax.jit(
    jax.shard_map(
      lambda g, s, p: tx.update(jax.tree.map(lambda x: x[0], g), s, p),
      mesh=mesh,
      in_specs=(P(AXIS), specs, P()),
      out_specs=(P(), specs),
    )
  )
  for _ in range(2):
    others, on_mesh = mapped(grads, on_mesh, params)
  for name in params:
    np.testing.assert_array_equal(updates[name], np.stack([updates[name][0]] * WORKERS))
    np.testing.assert_allclose(updates[name][0], others[name], 2e-6, 1e-9)


PARAMS = {"w": np.linspace(-1, 1, 40 * 32, dtype=np.float32).reshape(40, 32)}
X = np.random.default_rng(0).normal(size=(3, 8, 40)).astype(np.float32)


def loss_fn(params, x):
  return jnp.mean(jnp.tanh(x @ params["w"]) ** 2)


def start(tx, mesh, specs=None):
  params = jax.tree.map(jnp.asarray, PARAMS)
  if specs is not None:
    params = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, specs)
  return params, rtopk_jax.init(tx, params, mesh, AXIS, specs)


def dense(steps=3):
  params = jax.tree.map(jnp.asarray, PARAMS)
  for x in X[:steps]:
    gradient = jax.grad(loss_fn)(params, x)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
  return params


TX = optax.chain(rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, dense=False), optax.sgd(0.1))


def near(actual, wanted):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), actual, wanted)


@pytest.mark.parametrize(
  ("kind", "ambient"),
  [
    ("auto", "none"),
    ("explicit", "same mesh"),
    ("auto", "other types"),
    pytest.param("explicit", "none", marks=pytest.mark.slow),
    pytest.param("auto", "same mesh", marks=pytest.mark.slow),
    pytest.param("explicit", "other types", marks=pytest.mark.slow),
  ],
)
def test_batches_from_anywhere(kind, ambient):
  """NumPy's, JAX's, of one device, placed already; under ``jax.set_mesh`` too."""
  mesh = mesh_of(KINDS[kind])
  places = {
    "numpy": lambda x: x,
    "jax": jnp.asarray,
    "one device": lambda x: jax.device_put(x, jax.devices()[3]),
    "placed": lambda x: jax.device_put(x, NamedSharding(mesh, P(AXIS))),
    "replicated": lambda x: jax.device_put(x, NamedSharding(mesh, P())),
  }
  other = mesh_of(EXPLICIT if kind == "auto" else AUTO)
  around = {"none": None, "same mesh": mesh, "other types": other}[ambient]
  step = rtopk_jax.make_train_step(loss_fn, TX, mesh, AXIS, donate=False)
  for place in places.values():
    params, state = start(TX, mesh)
    if around is None:
      for x in X:
        params, state, _ = step(params, state, place(x))
    else:
      with jax.set_mesh(around):
        for x in X:
          params, state, _ = step(params, state, place(x))
    # On the user's mesh, with its types: what comes next is of one kind.
    assert params["w"].sharding == NamedSharding(mesh, P())
    near(params, dense())


def test_shapes_of_a_state_name_no_mesh_that_is_not_there():
  """They are what a checkpoint is restored to, which needs devices or nothing."""
  shapes = jax.eval_shape(lambda: start(TX, mesh_of(EXPLICIT))[1])
  assert shapes[0].residual["w"].shape == (WORKERS, 40, 32)
  assert {x.sharding for x in jax.tree.leaves(shapes)} == {None}


@pytest.mark.parametrize(
  ("kind", "ambient"), [("explicit", "explicit"), ("explicit", "auto"), ("auto", "explicit")]
)
def test_parameters_that_are_made_where_a_mesh_is_set(kind, ambient):
  """They are of its types, and of those of the mesh that they are put on; whose state is what is found by shapes."""
  # Of its own, of which nothing has been found yet.
  tx = optax.chain(exchange(1.0, dense=False, momentum=0.0, clip_norm=None), optax.sgd(0.1))
  mesh = mesh_of(KINDS[kind])
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS)
  with jax.set_mesh(mesh_of(KINDS[ambient])):
    params = jax.device_put(jax.tree.map(jnp.asarray, PARAMS), NamedSharding(mesh, P()))
    state = rtopk_jax.init(tx, params, mesh, AXIS)
    for x in X:
      params, state, _ = step(params, state, jnp.asarray(x))
    axes = rtopk_jax.state_axes(tx, params)
  near(params, dense())
  assert axes[0].residual == {"w": 0}


@pytest.mark.parametrize(
  ("kind", "is_set"), [("auto", False), ("explicit", True), ("explicit", False)]
)
def test_steps_as_a_part_of_a_program(kind, is_set):
  """In a ``jit`` and a ``scan`` of the user's, with the mesh set or not; what comes out is of its types."""
  mesh = mesh_of(KINDS[kind])
  step = rtopk_jax.make_train_step(loss_fn, TX, mesh, AXIS, donate=False)

  def epoch(params, state, batches):
    def body(carry, x):
      params, state, loss = step(*carry, x)
      return (params, state), loss

    return jax.lax.scan(body, (params, state), batches)

  params, state = start(TX, mesh)
  if is_set:
    with jax.set_mesh(mesh):
      placed = jax.device_put(params, NamedSharding(mesh, P()))
      batches = jax.device_put(X, NamedSharding(mesh, P(None, AXIS)))
      (params, state), losses = jax.jit(epoch)(placed, state, batches)
  else:
    (params, state), losses = jax.jit(epoch)(params, state, X)
  assert params["w"].sharding.mesh.axis_types == mesh.axis_types
  near(params, dense())
  assert losses.shape == (3,)
  assert int(state[0].count) == 3


@pytest.mark.parametrize(
  "kinds",
  [
    pytest.param((a, b), marks=[] if a == b else pytest.mark.slow)
    for a, b in itertools.product(KINDS, repeat=2)
  ],
  ids="-".join,
)
def test_sharded_parameters_stay_so(kinds):
  """Each shard is exchanged by itself; the norm that clips is of all of them."""
  mesh = mesh_of(*(KINDS[kind] for kind in kinds))
  specs = {"w": P(None, "model")}
  step = rtopk_jax.make_train_step(loss_fn, TX, mesh, AXIS, param_specs=specs)
  params, state = start(TX, mesh, specs)
  for x in X:
    params, state, _ = step(params, state, x)
  assert params["w"].sharding == NamedSharding(mesh, specs["w"])
  assert state[0].residual["w"].sharding.spec == P(AXIS, None, "model")
  near(params, dense())


def test_the_norm_of_sharded_parameters_is_of_all_shards():
  mesh = mesh_of(AUTO, AUTO)
  tx = optax.chain(exchange(1.0, dense=False, momentum=0.0, clip_norm=1e-2), optax.sgd(1.0))
  moved = []
  for specs in (None, {"w": P(None, "model")}):
    params, state = start(tx, mesh, specs)
    step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, param_specs=specs)
    params, state, _ = step(params, state, X[0])
    moved.append(jax.device_get(params)["w"] - PARAMS["w"])
    assert float(rtopk_jax.exchange_metrics(state)["union_coverage"]) == 1
  np.testing.assert_allclose(*moved, atol=1e-7)
  assert np.linalg.norm(moved[0]) > 1e-3


def test_sharded_parameters_are_not_gathered_without_a_word():
  mesh, specs = mesh_of(AUTO, AUTO), {"w": P(None, "model")}
  params, state = start(TX, mesh, specs)
  step = rtopk_jax.make_train_step(loss_fn, TX, mesh, AXIS)
  message = r"params\['w'\] is sharded as .*'model'.* would be gathered; give param_specs"
  with pytest.raises(ValueError, match=message):
    step(params, state, X[0])
  with pytest.raises(ValueError, match=message):
    rtopk_jax.init(TX, params, mesh, AXIS)


def test_between_workers_nothing_but_packed_words():
  """The compiled step of sharded parameters has no dense array that crosses from worker to worker."""
  mesh, specs = mesh_of(AUTO, AUTO), {"w": P(None, "model")}
  tx = optax.chain(exchange(0.05, dense=False), optax.sgd(0.1))
  params, state = start(tx, mesh, specs)
  step = rtopk_jax.make_train_step(loss_fn, tx, mesh, AXIS, param_specs=specs)
  text = step.lower(params, state, X[0]).compile().as_text()
  gathers = [line for line in text.splitlines() if " all-gather(" in line]
  assert any("u32" in line.split("=")[1] for line in gathers)
  assert not any("f32[40,32]" in line or "f32[40,16]" in line for line in gathers)
