"""Rounds of local steps in every map, and the same in plain NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import rtopk_jax
from tests.rtopk_jax import harness
from tests.rtopk_jax.reference import keep_largest

AXIS, WORKERS, STEPS, ROUNDS, SIZE = harness.AXIS, 4, 3, 4, 12

MODES = ("check_vma", "no check", "pmap", "vmap")

RATE, DENSITY = 0.05, 0.25


def loss_fn(params, batch):
  error = batch["x"] @ params["w"] - batch["y"]
  return jnp.mean(error**2)


@functools.cache
def problem(steps: int = STEPS) -> tuple[dict, dict]:
  """Weights, and batches (rounds, workers, steps, …): every worker's data fit other weights."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((ROUNDS, WORKERS, steps, 8, SIZE))
  truth = rng.standard_normal((WORKERS, SIZE))
  y = np.einsum("rwsbd,wd->rwsb", x, truth)
  batches = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
  return {"w": rng.standard_normal(SIZE).astype(np.float32)}, batches


def exchange(**options: Any) -> optax.GradientTransformation:
  return rtopk_jax.sparse_exchange(rtopk_jax.top_k(DENSITY), AXIS, dense=False, **options)


def make_round(mode: str, fed: rtopk_jax.Federated, params: Any) -> Any:
  """``round(params, state, batches, model_state, present)`` of all workers at once, compiled."""

  def one(params, state, batches, model_state, present):
    return fed.round(params, state, batches, model_state, present)

  if mode == "vmap":
    axes = rtopk_jax.state_axes(fed.tx, params)
    out = rtopk_jax.Round(None, axes, 0, None, 0)
    mapped = jax.vmap(one, in_axes=(None, axes, 0, 0, 0), out_axes=out, axis_name=AXIS)
    return jax.jit(mapped)
  specs = rtopk_jax.state_specs(fed.tx, params, AXIS)
  if mode == "pmap":
    # An array of every worker's row for what is its own, the same everywhere for the rest.
    axes = jax.tree.map(lambda s: 0 if s else None, specs, is_leaf=lambda x: isinstance(x, P))
    mapped = jax.pmap(
      one,
      in_axes=(None, axes, 0, 0, 0),
      out_axes=rtopk_jax.Round(None, axes, 0, None, 0),  # pyright: ignore[reportArgumentType]
      axis_name=AXIS,
      devices=jax.devices()[:WORKERS],
    )
    return mapped

  def shard(params, state, batches, model_state, present):
    mine = lambda tree: jax.tree.map(lambda x: x[0], tree)
    done = one(params, state, mine(batches), mine(model_state), mine(present))
    row = lambda tree: jax.tree.map(lambda x: x[None], tree)
    return done._replace(model_state=row(done.model_state), aux=row(done.aux))

  mapped = jax.shard_map(
    shard,
    mesh=harness.mesh(WORKERS),
    in_specs=(P(), specs, P(AXIS), P(AXIS), P(AXIS)),
    out_specs=rtopk_jax.Round(P(), specs, P(AXIS), P(), P(AXIS)),  # pyright: ignore[reportArgumentType]
    check_vma=mode == "check_vma",
  )
  return jax.jit(mapped)


def rounds(
  mode: str,
  fed: rtopk_jax.Federated,
  params: Any,
  batches: Any,
  model_state: Any = (),
  present=None,
) -> list[rtopk_jax.Round]:
  """All rounds, one after another."""
  step = make_round(mode, fed, params)
  state = rtopk_jax.init(fed.tx, params, harness.mesh(WORKERS), AXIS)
  if mode in ("vmap", "pmap"):
    state = jax.device_get(state)
  done = []
  for i in range(len(jax.tree.leaves(batches)[0])):
    batch = jax.tree.map(lambda x, i=i: x[i], batches)
    here = None if present is None else present[i]
    result = step(params, state, batch, model_state, here)
    params, state, model_state = result.params, result.state, result.model_state
    done.append(result)
  return done


def local_sgd(
  params, batches, *, momentum=0.0, keep=False, feedback=True, outer=None, rates=None, present=None
):
  """Local SGD, top-k with error feedback and the mean over those present, in float64.

  Returns weights of every round, and residuals and momenta after the last.
  """
  w = params["w"].astype(np.float64)
  x, y = (batches[name].astype(np.float64) for name in ("x", "y"))
  present = np.ones(x.shape[:2], bool) if present is None else present
  k = round(DENSITY * SIZE)
  residual, trace, velocity = np.zeros((WORKERS, SIZE)), np.zeros((WORKERS, SIZE)), np.zeros(SIZE)
  history = []
  for r in range(len(x)):
    total = np.zeros(SIZE)
    for i in np.flatnonzero(present[r]):
      local, u = w.copy(), trace[i] if keep else np.zeros(SIZE)
      for a, b in zip(x[r, i], y[r, i], strict=True):
        u = momentum * u + 2 * a.T @ (a @ local - b) / len(b)
        local -= (rates[r] if rates else RATE) * u
      trace[i] = u
      vector = residual[i] + (w - local)
      sent = keep_largest(vector, k)
      residual[i] = vector - sent if feedback else 0
      total += sent
    mean = total / max(present[r].sum(), 1)
    if outer:
      rate, m = outer
      velocity = m * velocity + mean
      mean = rate * (mean + m * velocity)  # Nesterov
    w = w - mean
    history.append(w)
  return history, residual, trace


def agrees(done: list[rtopk_jax.Round], expected: Any) -> None:
  history, residual, trace = expected
  for result, w in zip(done, history, strict=True):
    np.testing.assert_allclose(np.ravel(result.params["w"]), w, rtol=2e-5, atol=2e-5)
  state = done[-1].state
  assert int(state.count) == len(history)
  sparse = state.outer[0]
  if sparse.residual != ():
    rows = np.reshape(sparse.residual["w"], (WORKERS, SIZE))
    np.testing.assert_allclose(rows, residual, rtol=2e-4, atol=2e-5)
  if state.inner != ():
    rows = np.reshape(optax.tree.get(state.inner, "trace")["w"], (WORKERS, SIZE))
    np.testing.assert_allclose(rows, trace, rtol=2e-4, atol=2e-5)


def stateful(params, model_state, batch):
  """The model counts its batches, and hands on what it saw."""
  state = {"batches": model_state["batches"] + 1, "last": batch["y"]}
  return loss_fn(params, batch), (state, jnp.max(batch["x"]))


def model_states() -> dict[str, Any]:
  return {"batches": jnp.zeros(WORKERS, jnp.int32), "last": jnp.zeros((WORKERS, 8))}
