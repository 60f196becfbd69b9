"""Wrong use is refused, by an error that names what is wrong and what would be right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness
from tests.rtopk_jax.transform.short import dense, exchange, sgd

AXIS = harness.AXIS


def simulate(tx, gradient, params=None, state=None, axis_name=AXIS, workers=2):
  def one(gradient):
    own = tx.init(gradient) if state is None else state
    return tx.update(gradient, own, params)[0]

  gradient = jax.tree.map(lambda g: jnp.stack([jnp.asarray(g)] * workers), gradient)
  return jax.vmap(one, axis_name=axis_name)(gradient)


@pytest.mark.parametrize("make", [exchange, dense, sgd])
def test_outside_a_mapped_axis_and_wrong_names(make):
  tx, gradient = make(), {"w": jnp.ones((4, 4))}
  with pytest.raises(NameError, match=r"axis_name='workers' is not a mapped axis.*shard_map"):
    tx.update(gradient, tx.init(gradient))
  with pytest.raises(NameError, match="axis_name='workers' is not a mapped axis"):
    simulate(tx, gradient, axis_name="batch")
  with pytest.raises(NameError, match="axis_name='workers'"):
    rtopk_jax.local_value_and_grad(jnp.sum, AXIS)(jnp.ones(3))


def test_what_is_no_transformation():
  rounds = rtopk_jax.federated(lambda p, x: jnp.sum(p), optax.sgd(0.1), exchange(), AXIS)
  mesh, params = harness.mesh(2), jnp.ones((4, 4))
  for use in (
    lambda tx: rtopk_jax.init(tx, params, mesh, AXIS),
    lambda tx: rtopk_jax.state_specs(tx, params, AXIS),
    lambda tx: rtopk_jax.state_axes(tx, params),
    lambda tx: rtopk_jax.wire_bytes(tx, params, 2),
    lambda tx: rtopk_jax.make_train_step(lambda p, x: jnp.sum(p), tx, mesh, AXIS),
  ):
    with pytest.raises(
      TypeError, match=r"tx must be an optax\.GradientTransformation, got <function"
    ):
      use(optax.sgd)
    with pytest.raises(TypeError, match=r"got a Federated; its tx is one.*its round takes steps"):
      use(rounds)


def test_arguments_by_name_have_no_gradient():
  """As in ``jax.value_and_grad``, whose error it is."""
  gradient = rtopk_jax.local_value_and_grad(lambda w: jnp.sum(w), AXIS)
  with pytest.raises(TypeError, match=r"argnums=0 requires at least 1 positional argument"):
    jax.vmap(lambda w: gradient(w=w), axis_name=AXIS)(jnp.ones((2, 3)))


@pytest.mark.parametrize(
  ("old", "new", "said"),
  [
    ({}, {"momentum": 0.9}, r"state\.momentum is \(\), and the exchange has momentum=0\.9"),
    ({"momentum": 0.9}, {}, r"state\.momentum is there, and the exchange has momentum=0\.0"),
    ({"error_feedback": False}, {}, r"state\.residual is \(\), .*error_feedback=True"),
    ({}, {"delay": 1}, r"state\.in_flight is \(\), and the exchange has delay=1"),
    (
      {"delay": 1},
      {"delay": 1, "wire": "int8"},
      r"state\.in_flight has messages of \d+ words, and",
    ),
    (
      {"delay": 1, "wire": "int8"},
      {"delay": 1},
      r"state\.in_flight has messages of \d+ words, and",
    ),
  ],
)
def test_a_state_of_other_options(old, new, said):
  make = lambda options: rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.25), AXIS, dense=False, **options
  )
  before, after = make(old), make(new)

  def one(gradient):
    return after.update(gradient, before.init(gradient))[0]

  with pytest.raises(ValueError, match=said):
    jax.vmap(one, axis_name=AXIS)(jnp.ones((2, 40, 40)))


def test_a_dense_state_of_other_options():
  with pytest.raises(ValueError, match=r"state\.momentum is there, and .* momentum=0\.0"):
    simulate(dense(), jnp.ones(3), state=dense(momentum=0.9).init(jnp.ones(3)))


def test_a_mesh_without_the_axis():
  tx, mesh = exchange(), harness.mesh(2, "batch")
  message = r"axis_name='workers' is not an axis of the mesh, which has \('batch',\)"
  with pytest.raises(ValueError, match=message):
    rtopk_jax.init(tx, jnp.ones(3), mesh, AXIS)
  with pytest.raises(ValueError, match=message):
    rtopk_jax.make_train_step(lambda p, x: jnp.sum(p), tx, mesh, AXIS)


@pytest.mark.parametrize("leaf", [jnp.tanh, "relu", np.array(["a"])])
def test_leaves_that_are_no_arrays(leaf):
  """What a module of Equinox has beside its weights, where it was not taken out."""
  tx, tree, mesh = exchange(), {"w": jnp.ones((4, 4)), "act": leaf}, harness.mesh(2)
  step = rtopk_jax.make_train_step(lambda p, x: jnp.sum(p["w"]), tx, mesh, AXIS)
  for use in (
    tx.init,
    lambda tree: rtopk_jax.init(tx, tree, mesh, AXIS),
    lambda tree: rtopk_jax.state_specs(tx, tree, AXIS),
    lambda tree: rtopk_jax.wire_bytes(tx, tree, 2),
    lambda tree: step(tree, (), jnp.ones(4)),
  ):
    with pytest.raises(TypeError, match=r"params\['act'\] must be an array, got .*eqx\.partition"):
      use(tree)


@pytest.mark.parametrize("make", [exchange, dense])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_leaves_that_are_not_floating_point(make, dtype):
  tree = {"w": jnp.ones((4, 4)), "step": jnp.ones(3, dtype)}
  with pytest.raises(
    TypeError, match=r"params\['step'\] is of .*only floating point and complex leaves"
  ):
    make().init(tree)
  with pytest.raises(
    TypeError, match=r"updates\['step'\] is of .*only floating point and complex leaves"
  ):
    simulate(make(), tree, state=())


@pytest.mark.parametrize("make", [exchange, dense])
def test_trees_of_different_structure(make):
  gradient = {"w": jnp.ones((4, 4))}
  with pytest.raises(ValueError, match="updates and params have different structures"):
    simulate(make(), gradient, params={"v": jnp.ones((4, 4))})
  tx = make(momentum=0.9)
  other = jax.vmap(tx.init, axis_name=AXIS, axis_size=2, in_axes=None)({"v": jnp.ones((4, 4))})
  row = jax.tree.map(lambda x: x[0], other)
  with pytest.raises(ValueError, match=r"updates and state\.\w+ have different structures"):
    simulate(tx, gradient, state=row)


@pytest.mark.parametrize(
  ("specs", "error", "message"),
  [
    (
      {"v": P()},
      ValueError,
      r"different structures: params has nothing for param_specs\['v'\]; "
      r"param_specs has nothing for params\['w'\]\.$",
    ),
    (
      {"w": None},
      ValueError,
      r"nothing for params\['w'\]\. What is replicated has P\(\), not None",
    ),
    ({"w": "model"}, TypeError, r"param_specs\['w'\] must be a .*PartitionSpec, got 'model'"),
    (
      {"w": P(None, ("model", AXIS))},
      ValueError,
      r"param_specs\['w'\] must name other axes than the workers'.*axis_name='workers'",
    ),
  ],
)
def test_specs_of_parameters(specs, error, message):
  with pytest.raises(error, match=message):
    rtopk_jax.state_specs(exchange(), PARAMS, AXIS, specs)
  with pytest.raises(error, match=message):
    rtopk_jax.init(exchange(), PARAMS, harness.mesh(2), AXIS, specs)


@pytest.mark.parametrize(
  ("own", "other"), [(AXIS, "batch"), (("host", AXIS), AXIS), (("host", AXIS), ("host", "batch"))]
)
def test_specs_over_another_axis(own, other):
  tx = optax.chain(exchange(axis_name=own), optax.sgd(0.1))
  message = "axis_name must be the axis that tx exchanges over, .*'workers'.*, got "
  with pytest.raises(ValueError, match=message):
    rtopk_jax.state_specs(tx, PARAMS, other)
  with pytest.raises(ValueError, match=message):
    rtopk_jax.init(tx, PARAMS, harness.mesh(2, "batch"), "batch")


def test_a_difference_is_named():
  gradient = {f"w{i}": jnp.ones(3) for i in range(5)}
  message = r"params has nothing for updates\['w0'\], updates\['w1'\], updates\['w2'\], …"
  with pytest.raises(ValueError, match=message):
    simulate(exchange(), gradient, params={"v": jnp.ones(3)})
  # One that no leaf shows.
  with pytest.raises(ValueError, match=r"different structures: .*PyTreeDef.*None"):
    simulate(exchange(), {"w": jnp.ones(3)}, params={"w": jnp.ones(3), "v": None})


@pytest.mark.parametrize(
  ("mask", "error", "message"),
  [
    ({"v": True}, ValueError, "dense is a tree of another structure"),
    ({"w": 1}, TypeError, r"dense must say True or False.*got 1 for \['w'\]"),
    ({"w": np.int32(1)}, TypeError, r"dense must say True or False.*got np.int32\(1\) for"),
    (lambda path, leaf: None, TypeError, r"dense must say True or False.*got None for \['w'\]"),
  ],
)
def test_masks_of_dense_leaves(mask, error, message):
  with pytest.raises(error, match=message):
    simulate(exchange(dense=mask), {"w": jnp.ones((4, 4))})


@pytest.mark.parametrize("flag", [np.True_, np.False_])
def test_masks_may_be_of_numpy(flag):
  gradient = {"w": jnp.ones((4, 4))}
  sent = lambda dense: rtopk_jax.wire_bytes(exchange(dense=dense), gradient, 2)
  expected = sent(bool(flag))
  for mask in (flag, {"w": flag}, lambda path, leaf: flag):
    assert sent(mask) == expected
  assert sent(True) != sent(False)


PARAMS = {"w": np.ones((4, 6), np.float32)}


def on_mesh(tx, state, state_specs, check_vma, gradient=None):
  one = lambda state, g: tx.update(jax.tree.map(lambda x: x[0], g), state)[0]
  gradient = jax.tree.map(lambda p: np.stack([p] * 2), PARAMS) if gradient is None else gradient
  return jax.jit(
    jax.shard_map(
      one,
      mesh=harness.mesh(2),
      in_specs=(state_specs, P(AXIS)),
      out_specs=P(),
      check_vma=check_vma,
    )
  )(state, gradient)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("field", ["residual", "momentum"])
def test_state_without_this_workers_row(check_vma, field):
  tx = exchange(momentum=0.9, error_feedback=field == "residual", dense=False)
  plain = tx.init(PARAMS)
  message = rf"state\.{field}\['w'\].*rtopk_jax\.init\(tx"
  with pytest.raises(ValueError, match=message):
    on_mesh(tx, plain, P(), check_vma)
  # One row for all, whoever made it.
  row = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:])) if x.ndim else x, plain)
  if check_vma:
    with pytest.raises(ValueError, match=rf"state\.{field}\['w'\] is the same on all workers"):
      on_mesh(tx, row, P(), check_vma)
  # Every worker's rows on every worker.
  made = rtopk_jax.init(tx, PARAMS, harness.mesh(2), AXIS)
  with pytest.raises(ValueError, match=message):
    on_mesh(tx, made, P(), check_vma)
  specs = jax.tree.map(lambda x: P(AXIS) if x.ndim else P(), plain)
  with pytest.raises(ValueError, match=message):
    on_mesh(tx, plain, specs, check_vma)
  updates = on_mesh(tx, made, rtopk_jax.state_specs(tx, PARAMS, AXIS), check_vma)
  assert updates["w"].shape == (4, 6)


def test_state_of_nobody_in_a_simulation():
  tx = exchange(dense=False)
  with pytest.raises(
    ValueError, match=r"state\.residual\['w'\].*outside the mapped axis.*rtopk_jax\.init"
  ):
    simulate(tx, PARAMS, state=tx.init(PARAMS))
  rows = rtopk_jax.init(tx, PARAMS, harness.mesh(2), AXIS)
  with pytest.raises(ValueError, match=r"has shape \(2, 4, 6\), not this worker's row"):
    simulate(tx, PARAMS, state=rows)


@pytest.mark.parametrize("make", [exchange, dense, sgd])
def test_gradients_that_were_summed_already(make):
  tx = make()

  def one(params, x):
    gradient = jax.grad(lambda p: jnp.sum(p["w"] * x[0]))(params)
    return tx.update(gradient, tx.init(params), params)[0]

  mapped = jax.shard_map(one, mesh=harness.mesh(2), in_specs=(P(), P(AXIS)), out_specs=P())
  message = r"updates\['w'\] is the same on all workers.*rtopk_jax\.local_value_and_grad"
  with pytest.raises(ValueError, match=message):
    jax.jit(mapped)(PARAMS, np.ones((2, 4, 6), np.float32))


def mapped(one, check_vma=True):
  return jax.jit(
    jax.shard_map(
      one, mesh=harness.mesh(2), in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=check_vma
    )
  )


@pytest.mark.parametrize("by", ["pmean", "psum", "multi_steps"])
def test_who_summed_gradients_is_not_guessed(by):
  """A mean of the user's own, or a wrapper that loses types, is named beside ``jax.grad``."""
  tx = exchange()
  if by == "multi_steps":
    tx = optax.MultiSteps(optax.chain(tx, optax.sgd(0.1)), 2).gradient_transformation()

  def one(params, x):
    gradient = jax.grad(lambda p: jnp.sum(p["w"] * x[0]))(rtopk_jax.local(params, AXIS))
    if by != "multi_steps":
      gradient = getattr(jax.lax, by)(gradient, AXIS)
    return tx.update(gradient, tx.init(params), params)[0]

  message = r"updates\['w'\] is the same on all workers.*psum or pmean of your own.*MultiSteps"
  with (
    jax.numpy_dtype_promotion("standard"),
    pytest.raises(ValueError, match=message),
  ):
    mapped(one)(PARAMS, np.ones((2, 4, 6), np.float32))


@pytest.mark.parametrize("make", [exchange, dense])
def test_a_restored_state_of_another_type(make):
  tx = make()
  plain = lambda params: dict(tx.init(params)._asdict())
  one = lambda params, x: tx.update({"w": x[0]}, plain(params), params)[0]
  message = (
    r"state must be the \w+ExchangeState that init makes, got dict with the keys \['count'.*Orbax"
  )
  with pytest.raises(TypeError, match=message):
    mapped(one)(PARAMS, np.ones((2, 4, 6), np.float32))


def test_a_state_of_another_number_of_workers():
  """Two rows a device, where four workers' state is given to two."""
  tx = exchange(dense=False)
  made = rtopk_jax.init(tx, PARAMS, harness.mesh(4), AXIS)
  with pytest.raises(ValueError, match=r"residual\['w'\] has shape \(2, 4, 6\).*resize_workers"):
    on_mesh(tx, jax.device_get(made), rtopk_jax.state_specs(tx, PARAMS, AXIS), check_vma=True)


def test_gradients_of_another_shape_than_their_parameters():
  tx = exchange()
  one = lambda params, x: tx.update({"w": x[0, :2]}, tx.init(params), params)[0]
  message = r"updates\['w'\] has shape \(2, 6\) and params\['w'\] \(4, 6\).*shape of its parameter"
  with pytest.raises(ValueError, match=message):
    mapped(one)(PARAMS, np.ones((2, 4, 6), np.float32))


@pytest.mark.parametrize("name", ["density", "momentum", "subsample"])
def test_numbers_that_are_injected_but_decide_what_is_compiled(name):
  """``optax.inject_hyperparams`` makes arrays of them; the way out is named."""
  static = {"density", "momentum", "subsample", "axis_name"} - {name}
  make = optax.inject_hyperparams(rtopk_jax.rtopk_sgd, static_args=static)
  tx = make(0.1, 0.1, AXIS, momentum=0.9, subsample=2.0)
  message = (
    rf"{name} must be a Python number.*inject_hyperparams, name it in static_args=\('{name}'"
  )
  with pytest.raises(TypeError, match=message):
    tx.init(PARAMS)


@pytest.mark.parametrize("make", [exchange, dense])
def test_a_weight_that_is_no_number(make):
  tx = make()
  one = lambda params, x: tx.update({"w": x[0]}, tx.init(params), params, weight=x[0, 0])[0]
  with pytest.raises(TypeError, match=r"weight says how much .* a real scalar, got .*shape \(6,\)"):
    mapped(one)(PARAMS, np.ones((2, 4, 6), np.float32))


@pytest.mark.parametrize("weight", [-1, np.float32(-0.5)])
def test_a_weight_below_zero(weight):
  tx = dense()
  one = lambda params, x: tx.update({"w": x[0]}, tx.init(params), params, weight=weight)[0]
  with pytest.raises(ValueError, match=r"weight must be at least 0, got "):
    mapped(one)(PARAMS, np.ones((2, 4, 6), np.float32))


def test_a_batch_that_cannot_be_dealt():
  tx, mesh = optax.chain(exchange(), optax.sgd(0.1)), harness.mesh(2)
  step = rtopk_jax.make_train_step(
    lambda p, x: jnp.mean(p["w"]) * jnp.mean(x["image"]), tx, mesh, AXIS
  )
  state = rtopk_jax.init(tx, PARAMS, mesh, AXIS)
  with pytest.raises(ValueError, match=r"batch\['image'\] has shape \(3, 2\).*2 workers"):
    step(PARAMS, state, {"image": np.ones((3, 2), np.float32)})
  with pytest.raises(ValueError, match=r"batch\['image'\] has shape \(\)"):
    step(PARAMS, state, {"image": 1.0})
