"""Nothing is lost: what was sent and what was kept make up the memory and the gradient, bit for bit."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np

import rtopk_jax
from tests.rtopk_jax import harness

WORKERS, SIZE = 3, 24
TINY = float(np.finfo(np.float32).tiny)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -3e-42, TINY, -TINY, 1e38, -1e38, 1e-30, 0.1]
VALUES = st.one_of(st.sampled_from(SPECIAL), st.floats(-(2.0**126), 2.0**126, width=32))


def arrays(rows):
  return st.lists(VALUES, min_size=rows * SIZE, max_size=rows * SIZE).map(
    lambda x: np.array(x, np.float32).reshape(rows, SIZE)
  )


@functools.partial(jax.jit, static_argnums=0)
def step(kind, memory, gradient, count):
  """One worker after another sends alone (the others' gradients are zero), so updates are messages."""
  selector = harness.SELECTORS[kind](0.2)
  tx = rtopk_jax.sparse_exchange(selector, harness.AXIS, dense=False, average="sum")
  axes = rtopk_jax.state_axes(tx, gradient[0])
  exchange = lambda state, gradient: tx.update(gradient, state)

  state = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_name=harness.AXIS, axis_size=WORKERS)(
    gradient[0]
  )
  state = state._replace(residual=memory, count=count)
  return jax.vmap(exchange, in_axes=(axes, 0), out_axes=(None, axes), axis_name=harness.AXIS)(
    state, gradient
  )


def flushed(x):
  """Subnormals as zero, which is what XLA's arithmetic makes of them."""
  return np.where(np.abs(x) < TINY, np.float32(0), x)


@hypothesis.given(
  st.sampled_from(sorted(harness.SELECTORS)),
  arrays(1),
  arrays(1),
  st.integers(0, WORKERS - 1),
  st.integers(0, 50),
)
def test_sent_and_residual_make_up_memory_and_gradient(kind, memory, gradient, worker, count):
  place = np.zeros((WORKERS, 1), np.float32)
  place[worker] = 1
  updates, state = step(kind, place * memory, place * gradient, np.int32(count))
  with np.errstate(over="ignore"):
    total = flushed(flushed(memory[0]) + flushed(gradient[0]))
  if not np.all(np.isfinite(total)):
    np.testing.assert_array_equal(updates, 0)
    np.testing.assert_array_equal(state.residual, place * memory)
    return
  sent, rest = np.asarray(updates), np.asarray(state.residual[worker])
  # An entry was sent whole or not at all, and nothing is sent twice.
  assert np.all((sent == 0) | (rest == 0))
  # Adding zero leaves all bits but the sign of zeros.
  whole = np.where(sent != 0, sent, rest)
  assert (whole + np.float32(0)).tobytes() == (total + np.float32(0)).tobytes()
