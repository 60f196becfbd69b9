"""JAX's own switches change nothing: the exchange works out the same under each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

AXIS, WORKERS = harness.AXIS, 2
SELECTORS = {
  "rtop_k": rtopk_jax.rtop_k(0.02),
  "top_k": rtopk_jax.top_k(0.02),
  "random_k": rtopk_jax.random_k(0.02),
  "warm-up": rtopk_jax.rtop_k(rtopk_jax.Stages((0.1, 0.02), 1)),
}
SWITCHES = {
  "x64": lambda: jax.enable_x64(True),
  "debug_nans": lambda: jax.debug_nans(True),
  "debug_infs": lambda: jax.debug_infs(True),
  "rbg": lambda: jax.default_prng_impl("rbg"),
  "unsafe_rbg": lambda: jax.default_prng_impl("unsafe_rbg"),
  "leaks": lambda: jax.checking_leaks(),
  "checks": lambda: jax.enable_checks(True),
  "highest": lambda: jax.default_matmul_precision("highest"),
  "standard promotion": lambda: jax.numpy_dtype_promotion("standard"),
}
# Those whose programs differ most from the usual ones.
QUICK = ("x64", "debug_nans", "rbg", "leaks", "checks")

# Short enough to be sorted, and long enough to be searched.
SIZES = {"short": 900, "long": 50_000}


def gradients(size):
  return harness.gradients({"a": (size,), "b": (7, 5)}, 2, WORKERS, powers=False)


def run(tx, size, mode="vmap"):
  return harness.run(mode, tx, gradients(size))


def exchange(kind="rtop_k", **options):
  options = {"dense": False, "momentum": 0.9, "clip_norm": 1.0, **options}
  return rtopk_jax.sparse_exchange(SELECTORS[kind], AXIS, **options)


def same(actual, expected):
  compare = lambda a, b: np.testing.assert_array_equal(a, b, strict=True)
  jax.tree.map(compare, jax.device_get(actual), jax.device_get(expected))


@pytest.mark.parametrize(
  ("switch", "size"),
  [
    *(
      pytest.param(switch, "short", marks=[] if switch in QUICK else pytest.mark.slow)
      for switch in SWITCHES
    ),
    pytest.param("x64", "long", marks=pytest.mark.slow),
    pytest.param("debug_nans", "long", marks=pytest.mark.slow),
  ],
)
def test_switches(switch, size):
  expected = run(exchange(), SIZES[size])
  with SWITCHES[switch]():
    same(run(exchange(), SIZES[size]), expected)


OPTIONS = {
  "leaf": (
    "long",
    {"kind": "top_k", "scope": "leaf", "wire": rtopk_jax.Wire("int8", "elias_fano")},
  ),
  "block": (
    "short",
    {
      "kind": "random_k",
      "scope": rtopk_jax.Block(256),
      "wire": rtopk_jax.Wire("int2", "block"),
    },
  ),
  "warm-up": ("short", {"kind": "warm-up", "average": "senders", "memory_dtype": jnp.bfloat16}),
  "owners": (
    "short",
    {"collective": "reduce_scatter", "wire": rtopk_jax.Wire("bfloat16")},
  ),
  "dense": ("short", {"dense": True, "nesterov": True}),
  "no memory": ("short", {"error_feedback": False, "seed": 2**40 + 3}),
}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=pytest.mark.slow if x in ("block", "warm-up", "leaf") else [])
    for x in OPTIONS
  ],
)
def test_every_kind_of_exchange_under_x64(name):
  size, options = OPTIONS[name]
  mode = "shard_map" if "collective" in options else "vmap"
  params = jax.ShapeDtypeStruct((50_000,), "float32")
  costs = lambda: rtopk_jax.wire_bytes(exchange(**options), params, 4)
  expected = run(exchange(**options), SIZES[size], mode), costs()
  with jax.enable_x64(True):
    same((run(exchange(**options), SIZES[size], mode), costs()), expected)


def test_the_dense_exchange_and_its_optimizers_under_x64():
  for tx in (
    rtopk_jax.dense_exchange(AXIS, momentum=0.9, clip_norm=1.0),
    rtopk_jax.rtopk_sgd(0.1, 0.02, AXIS, weight_decay=0.0),
  ):
    expected = run(tx, SIZES["short"])
    with jax.enable_x64(True):
      same(run(tx, SIZES["short"]), expected)


@pytest.mark.parametrize("method", [pytest.param("search", marks=pytest.mark.slow), "sort"])
def test_selectors_under_x64_take_any_key(method):
  vector = jnp.asarray(gradients(50_000)["a"][0, 0])
  selector = rtopk_jax.rtop_k(0.01, 4, method=method)
  expected = selector(vector, jax.random.key(0))
  with jax.enable_x64(True):
    actual = selector(vector, jax.random.key(0))
    assert actual.indices.dtype == jnp.int32
    same(actual, expected)
    same(selector(vector, jax.random.PRNGKey(0)), expected)
    for kind in ("rbg", "unsafe_rbg"):
      assert selector(vector, jax.random.key(0, impl=kind)).indices.shape == expected.indices.shape


def test_messages_under_x64():
  slices = rtopk_jax.top_k(0.01)(jnp.asarray(gradients(9_000)["a"][0, 0]), jax.random.key(0))
  wire = rtopk_jax.Wire("int4", "elias_fano")
  encode = lambda slices: jax.jit(wire.encode)(slices, jax.random.key(1))
  read = lambda: jax.jit(wire.decode, static_argnums=(1, 2))(encode(slices), 90, 9_000)
  expected = read()
  with jax.enable_x64(True):
    same(read(), expected)
    wide = rtopk_jax.SparseSlices(slices.values, slices.indices.astype(jnp.int64), slices.size)
    same(encode(wide), encode(slices))


def test_leaves_of_64_bits_are_refused_by_name():
  with jax.enable_x64(True):
    for tx in (exchange(), rtopk_jax.dense_exchange(AXIS)):
      for dtype in (jnp.float64, jnp.complex128):
        with pytest.raises(TypeError, match=r"params\['w'\] is of .*128|64.*float32"):
          tx.init({"w": jnp.ones(3, dtype)})
      # A number of Python's has no dtype, and is one of 32 bits.
      assert tx.init({"w": 1.0}).count.dtype == jnp.int32


def test_rounds_under_x64():
  loss_fn = lambda w, x: jnp.sum((w - x) ** 2)

  def rounds():
    fed = rtopk_jax.federated(
      loss_fn, optax.sgd(jnp.float32(0.1)), exchange(clip_norm=None, momentum=0.0), AXIS
    )
    w = jnp.zeros(500, jnp.float32)
    axes = rtopk_jax.state_axes(fed.tx, w)
    one = lambda w, x, count: fed.round(w, fed.tx.init(w), x, weight=count)
    mapped = jax.vmap(
      one, in_axes=(None, 0, 0), out_axes=rtopk_jax.Round(None, axes, 0, None, 0), axis_name=AXIS
    )
    batches = np.ones((WORKERS, 3, 500), np.float32) * np.arange(500, dtype=np.float32)
    return jax.jit(mapped)(w, batches, jnp.array([1, 3], jnp.int32))

  expected = rounds()
  with jax.enable_x64(True):
    same(rounds(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_without_jit(size):
  """Loops count with Python's integers there. Numbers may differ by what a compiler fuses."""
  tx, grads = exchange(), {"a": gradients(SIZES[size])["a"][0]}
  update = lambda gradient: tx.update(gradient, tx.init(gradient))[0]
  mapped = jax.vmap(update, axis_name=AXIS, out_axes=None)
  expected = jax.jit(mapped)(grads)
  with jax.disable_jit():
    np.testing.assert_allclose(mapped(grads)["a"], expected["a"], rtol=1e-6)


def loss_fn(params, x):
  return jnp.mean(jnp.tanh(x @ params["w"]) ** 2)


def trained(loss):
  mesh, params = harness.mesh(WORKERS), {"w": jnp.ones((30, 40), jnp.float32)}
  tx = optax.chain(
    rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.1), AXIS, dense=False), optax.sgd(0.1)
  )
  state = rtopk_jax.init(tx, params, mesh, AXIS)
  step = rtopk_jax.make_train_step(loss, tx, mesh, AXIS, donate=False)
  x = np.random.default_rng(0).normal(size=(8, 30)).astype(np.float32)
  return step(params, state, x)


def test_a_loss_that_is_recomputed():
  same(trained(jax.checkpoint(loss_fn)), trained(loss_fn))
