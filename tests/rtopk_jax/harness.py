"""Runs a transformation over many steps and workers in each way the library supports."""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import rtopk_jax
from rtopk_jax.select._keys import derived_key
from tests.rtopk_jax import reference

AXIS = "workers"
MODES = ("shard_map", "pmap", "vmap")

SELECTORS = {
  "rtop_k": rtopk_jax.rtop_k,
  "top_k": rtopk_jax.top_k,
  "random_k": rtopk_jax.random_k,
}


def gathered(*words: int) -> int:
  """Bytes of a worker's part of an all-gather: a header of three words, messages, up to a whole tile."""
  return -(-(3 + sum(words)) // 128) * 512


def mesh(num_workers: int, axis_name: str = AXIS) -> Mesh:
  """A mesh of the first devices."""
  return jax.make_mesh(
    (num_workers,),
    (axis_name,),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:num_workers],
  )


def gradients(
  shapes: dict[str, tuple[int, ...]],
  steps: int,
  num_workers: int,
  *,
  seed: int = 0,
  powers: bool = True,
  dtype: Any = jnp.float32,
) -> dict[str, np.ndarray]:
  """Random gradients, shape (steps, num_workers, *shape) a leaf.

  With ``powers`` every entry is a power of two with a sign. Products with a momentum that is one too,
  or with a clipping factor, are then exact, so that it makes no difference whether a compiler fuses
  them into the sum that follows: what is computed is comparable bit for bit. Equal magnitudes abound,
  which puts ties to the test.
  """
  rng = np.random.default_rng(seed)
  result = {}
  for name, shape in shapes.items():
    shape = (steps, num_workers, *shape)
    if powers:
      leaf = rng.choice([-1.0, 1.0], shape) * 2.0 ** rng.integers(-4, 4, shape)
    else:
      leaf = rng.standard_normal(shape)
    result[name] = leaf.astype(np.float32).astype(dtype)
  return result


def run(
  mode: str, tx: optax.GradientTransformation, grads: Any, *, quick: bool = True
) -> tuple[Any, Any]:
  """All updates and states of a run from zero.

  Args:
    mode: one of ``MODES``.
    tx: an exchange over ``AXIS``.
    grads: a tree of arrays (steps, num_workers, *shape).
    quick: compile as all tests do; else as users do.

  Returns:
    Updates, (steps, *shape) a leaf, and states with the steps in front: (steps, num_workers, *shape)
    for what is a worker's own.
  """
  num_workers = jax.tree.leaves(grads)[0].shape[1]
  params = jax.tree.map(lambda g: jax.ShapeDtypeStruct(g.shape[2:], g.dtype), grads)
  zeros = lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params)
  axes = rtopk_jax.state_axes(tx, params)

  def scan(update, state, grads):
    def body(state, gradient):
      updates, state = update(gradient, state)
      return state, (updates, state)

    return jax.lax.scan(body, state, grads)[1]

  if mode == "vmap":
    start = jax.vmap(tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=num_workers)
    update = jax.vmap(
      lambda gradient, state: tx.update(gradient, state),
      in_axes=(0, axes),
      out_axes=(None, axes),
      axis_name=AXIS,
    )
    return compiled(lambda grads: scan(update, start(zeros()), grads), grads, quick=quick)
  worker = lambda grads: scan(tx.update, tx.init(zeros()), grads)
  if mode == "pmap":
    # Replicated results come once a device: compared in the tests of replicas, here the first is taken.
    updates, states = jax.pmap(
      worker, axis_name=AXIS, in_axes=1, devices=jax.devices()[:num_workers]
    )(grads)
    updates = jax.tree.map(lambda x: x[0], updates)
    # Rows are (workers, steps, 1, *shape): pmap is a shard_map underneath.
    states = jax.tree.map(
      lambda axis, x: x[0] if axis is None else jnp.moveaxis(x.squeeze(2), 0, 1),
      axes,
      states,
      is_leaf=lambda axis: axis is None,
    )
    return jax.device_get((updates, states))
  specs = rtopk_jax.state_specs(tx, params, AXIS)
  later = jax.tree.map(lambda spec: P(None, *spec), specs, is_leaf=lambda x: isinstance(x, P))
  mapped = jax.shard_map(
    lambda grads: worker(jax.tree.map(lambda g: g.squeeze(1), grads)),
    mesh=mesh(num_workers),
    in_specs=P(None, AXIS),
    out_specs=(P(), later),
  )
  return compiled(mapped, grads, quick=quick)


# What users have, where the tests' own settings compile quickly to slower machine code.
USUAL = {
  "xla_backend_optimization_level": 3,
  "xla_llvm_disable_expensive_passes": False,
}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
  USUAL["xla_cpu_use_fusion_emitters"] = True
_programs: dict[str, Callable[..., Any]] = {}
# A process can map only so many pieces of machine code, and crashes in the compiler when it has.
_KEPT = 300


def compiled(function: Callable[..., Any], *args: Any, quick: bool) -> Any:
  """The results of a function; programs of the same text are compiled once."""
  lowered = jax.jit(function).lower(*args)
  text = lowered.as_text()
  if text not in _programs:
    if len(_programs) == _KEPT:
      _programs.clear()
    _programs[text] = lowered.compile(compiler_options=None if quick else USUAL)
  return jax.device_get(_programs[text](*args))


def check_mapped(function: Callable[..., jax.Array], *args: jax.Array) -> None:
  """What a function makes of rows is the same one by one, under ``vmap`` and under ``shard_map``."""
  one = jax.jit(function)
  one_by_one = jnp.stack([one(*rows) for rows in zip(*args, strict=True)])
  together = jax.jit(jax.vmap(function))(*args)
  of_row = lambda *rows: function(*(x[0] for x in rows))[None]
  mapped = jax.shard_map(
    of_row, mesh=mesh(len(one_by_one)), in_specs=(P(AXIS),) * len(args), out_specs=P(AXIS)
  )
  np.testing.assert_array_equal(together, one_by_one)
  np.testing.assert_array_equal(jax.jit(mapped)(*args), one_by_one)


@functools.partial(jax.jit, static_argnums=(0,))
def _draw(selector, vectors, seed, step, group):
  num_workers = vectors.shape[0]
  # There is one message, no leaf being sharded: the group is the group's own number.
  one = lambda v, worker: selector(v, derived_key(seed, step, worker, group), num_workers).indices
  return jax.vmap(one)(vectors, jnp.arange(num_workers, dtype=jnp.int32))


def check(
  mode: str,
  grads: dict[str, np.ndarray],
  kind: str = "rtop_k",
  density: float | rtopk_jax.Stages = 0.1,
  subsample: float | None = None,
  unbiased: bool = False,
  exact: bool = True,
  seed: int = 0,
  quick: bool = True,
  **options: Any,
) -> None:
  """Runs library and reference side by side and compares every update and every memory.

  ``exact`` compares memories bit for bit, updates to an ulp or two: XLA turns a division by n into a
  multiplication.
  """
  selector = {
    "rtop_k": lambda: rtopk_jax.rtop_k(density, subsample, unbiased=unbiased),
    "top_k": lambda: rtopk_jax.top_k(density),
    "random_k": lambda: rtopk_jax.random_k(density, unbiased=unbiased),
  }[kind]()
  dense = options.get("dense", False)
  tx = rtopk_jax.sparse_exchange(selector, AXIS, **{"dense": dense, "seed": seed, **options})
  updates, states = run(mode, tx, grads, quick=quick)

  names, leaves = list(grads), [np.asarray(g) for g in grads.values()]
  num_workers = leaves[0].shape[1]
  stages = density if isinstance(density, rtopk_jax.Stages) else None
  ratio = {"top_k": 1.0, "random_k": math.inf}.get(kind, subsample or num_workers)
  flags = [dense[name] for name in names] if isinstance(dense, dict) else [dense] * len(names)
  recipe = reference.Recipe(
    density=list(stages.densities) if stages else density,
    steps_per_stage=stages.steps_per_stage if stages else 1,
    subsample=ratio,
    unbiased=unbiased,
    dense=flags,
    memory_dtype=options.get("memory_dtype") or np.float32,
    **{key: x for key, x in options.items() if key not in ("dense", "memory_dtype")},
  )

  def draw(vectors, step, group):
    stage = int(stages.stage(step)) if stages else 0
    return np.asarray(_draw(selector.at(stage), vectors, seed, step, group))

  history = reference.simulate(recipe, leaves, draw)
  for step, expected in enumerate(history):
    for i, name in enumerate(names):
      _close(
        updates[name][step],
        expected.updates[i],
        tolerance=4e-7 if exact else 2e-5,
        where=f"updates[{name}] of step {step}",
      )
      assert updates[name].dtype == grads[name].dtype
      for field in ("residual", "momentum"):
        memory = getattr(states, field)
        if memory != ():
          _close(
            memory[name][step],
            getattr(expected, field)[i],
            tolerance=0 if exact else 2e-5,
            where=f"{field}[{name}] of step {step}",
          )
          assert memory[name].dtype == recipe.memory_dtype
  np.testing.assert_array_equal(states.count, np.arange(1, len(history) + 1))
  assert (states.residual == ()) == (not recipe.error_feedback)
  assert (states.momentum == ()) == (not recipe.momentum)


def _close(actual: np.ndarray, desired: np.ndarray, tolerance: float, where: str) -> None:
  if tolerance and actual.dtype.itemsize < 4:
    tolerance = 1e-2
  np.testing.assert_allclose(
    actual.astype(np.float32), desired.astype(np.float32), tolerance, tolerance, err_msg=where
  )


def pairwise(
  factors: dict[str, Sequence[Any]], allowed: Callable[[dict[str, Any]], bool]
) -> Iterator[dict[str, Any]]:
  """Few cases in which every allowed pair of two factors' values occurs.

  Greedy: each case begins with a pair that is missing and takes, factor by factor, the value that
  completes most missing pairs.

  Args:
    factors: the values of each factor.
    allowed: whether a case, or the beginning of one, makes sense.

  Yields:
    The cases.
  """
  names = list(factors)
  missing = {
    pair
    for a, b in itertools.combinations(names, 2)
    for pair in itertools.product(
      [(a, i) for i in range(len(factors[a]))], [(b, i) for i in range(len(factors[b]))]
    )
  }
  value = lambda choice: {name: factors[name][choice[name]] for name in names if name in choice}
  missing = {pair for pair in missing if allowed(value(dict(pair)))}
  while missing:
    choice = dict(min(missing))
    for name in names:
      if name in choice:
        continue
      options = [i for i in range(len(factors[name])) if allowed(value({**choice, name: i}))]
      gain = lambda i: len(missing & _pairs({**choice, name: i}, names))
      choice[name] = max(options, key=gain)
    missing -= _pairs(choice, names)
    yield value(choice)


def _pairs(choice: dict[str, int], names: list[str]) -> set:
  return set(itertools.combinations([(name, choice[name]) for name in names if name in choice], 2))
