"""The example of a wire of one's own: what it rounds to, and that nothing of what it rounds is lost."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import rtopk_jax
from examples.own_wire import Float8
from tests.examples import common
from tests.rtopk_jax import harness

AXIS = harness.AXIS
SHAPES = {"a": (30, 50), "b": (200,)}


@pytest.mark.parametrize("k", [1, 31, 32, 100])
def test_values_are_the_nearest_that_there_are(k):
  values = np.random.default_rng(k).standard_normal(k).astype(np.float32) * 10.0 ** (k % 7)
  values = values.astype(np.float32)
  slices = rtopk_jax.SparseSlices(jnp.array(values), jnp.arange(k) * 3, 3 * k)
  words = Float8().encode(slices)
  assert words.shape == (Float8().words(k, 3 * k),)
  decoded = Float8().decode(words, k, 3 * k)
  np.testing.assert_array_equal(decoded.indices, slices.indices)
  for block in range(0, k, 32):
    part = values[block : block + 32]
    scale = 2.0 ** np.ceil(np.log2(np.abs(part).max() / 448))
    rounded = (part / np.float32(scale)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(decoded.values[block : block + 32], rounded * np.float32(scale))


def test_zeros_stay_zeros():
  slices = rtopk_jax.SparseSlices(jnp.zeros(5), jnp.arange(5), 9)
  assert not np.any(Float8().decode(Float8().encode(slices), 5, 9).values)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"scope": "leaf", "momentum": 0.5},
    {"scope": rtopk_jax.Block(64)},
    {"collective": "reduce_scatter"},
  ],
)
def test_what_it_rounds_away_stays_in_the_memory(options):
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.05), AXIS, dense=False, wire=Float8(), **options
  )
  common.check_conserved(tx, SHAPES, options.get("momentum", 0.0))


def test_sent_and_kept_are_what_there_was_bit_for_bit():
  grads = harness.gradients(SHAPES, 1, 2, powers=False)
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(0.1), AXIS, dense=False, wire=Float8(), average="sum"
  )
  for worker in range(2):
    alone = jax.tree.map(lambda g, i=worker: g[:, i : i + 1], grads)
    updates, state = harness.run("vmap", tx, alone)
    for name in SHAPES:
      sent, kept = (
        np.asarray(x, np.float64) for x in (updates[name][0], state.residual[name][0, 0])
      )
      np.testing.assert_array_equal(sent + kept, alone[name][0, 0])
      assert np.any(sent * kept), "something is rounded"


def test_bytes_are_those_that_it_states():
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.01), AXIS, wire=Float8())
  params = jnp.zeros((1000, 100))
  assert rtopk_jax.wire_bytes(tx, params, 4).sent == harness.gathered(Float8().words(1000, 100_000))
  advice = rtopk_jax.advise(100_000, 4, "1Gbit/s", densities=(0.01,), wire=Float8())
  counted = rtopk_jax.wire_bytes(tx, params, 4).link
  assert advice.estimates[0].bytes == counted
  auto = rtopk_jax.Auto("1Gbit/s")
  assert auto.choose(100_000, 1000, 2, Float8()) == rtopk_jax.AllGather()


class _Wrong(Float8):
  def words(self, k, d):
    return k


def test_a_wire_that_does_not_keep_its_word_is_refused():
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), AXIS, wire=_Wrong(), dense=False)
  with pytest.raises(TypeError, match=r"encode of _Wrong.* must return 10 uint32 words"):
    rtopk_jax.wire_bytes(tx, jnp.zeros(100), 2)


def test_a_wire_has_to_say_all_three():
  class Half(rtopk_jax.WireFormat):
    def words(self, k, d):
      return k

  with pytest.raises(TypeError, match=r"abstract methods.*decode.*encode"):
    Half()
