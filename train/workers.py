"""Workers as devices of a mesh, or simulated on one device: the same step, the same state.

Either way the state of a run is the one a mesh would hold: what differs between workers is an array
``(num_workers, …)``. Simulated workers take their gradients one after another, because a ``vmap`` over
them would turn convolutions into grouped ones, which are slow; only the exchange is mapped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from train.methods import AXIS

KINDS = ("auto", "devices", "simulated")


class RunState(NamedTuple):
  """All that a step changes.

  Attributes:
    params: the weights, the same on all workers.
    opt_state: the optimizer's state.
    stats: each worker's batch statistics, arrays ``(num_workers, …)``.
  """

  params: Any
  opt_state: Any
  stats: Any


def choose_mesh(kind: str, num_workers: int) -> Mesh | None:
  """The mesh of the workers, or None where they are simulated.

  Args:
    kind: "devices", "simulated", or "auto" for devices if there are enough.
    num_workers: how many workers there are.

  Returns:
    A mesh of one axis, or None.

  Raises:
    ValueError: for an unknown kind, or when devices are asked for and too few.
  """
  if kind not in KINDS:
    raise ValueError(f"workers must be one of {', '.join(KINDS)}, got {kind!r}.")
  devices = jax.devices()
  if kind == "devices" and len(devices) < num_workers:
    raise ValueError(
      f'workers="devices" with num_workers={num_workers}, but there are {len(devices)} devices; '
      'workers="simulated" needs one.'
    )
  if kind == "simulated" or len(devices) < num_workers or num_workers == 1:
    return None
  return Mesh(np.array(devices[:num_workers]), (AXIS,))


class Workers:
  """n workers who train together.

  Args:
    task: has ``init(key)`` and ``loss(params, stats, batch)``.
    make_tx: the optimizer of a seed.
    num_workers: n.
    mesh: their devices, or None to simulate them.
  """

  def __init__(
    self,
    task: Any,
    make_tx: Callable[[Any], optax.GradientTransformation],
    num_workers: int,
    mesh: Mesh | None,
  ):
    self.task, self.make_tx, self.num_workers, self.mesh = task, make_tx, num_workers, mesh
    # The seed is an argument, so that the runs of several seeds share one compilation.
    self.init = jax.jit(self._init)
    self.step = jax.jit(self._step, donate_argnums=0)

  def _init(self, seed: jax.Array) -> RunState:
    params, stats = self.task.init(jax.random.key(seed))
    tx = self.make_tx(seed)
    stats = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_workers, *x.shape)), stats)
    if self.mesh is None:
      axes = rtopk_jax.state_axes(tx, params)
      init = jax.vmap(
        tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=self.num_workers
      )
      return RunState(params, init(params), stats)
    place = lambda tree, spec: lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))
    return RunState(
      place(params, P()), rtopk_jax.init(tx, params, self.mesh, AXIS), place(stats, P(AXIS))
    )

  def _step(self, state: RunState, batch: Any, seed: jax.Array) -> tuple[RunState, dict]:
    tx = self.make_tx(seed)
    run = self._simulated if self.mesh is None else self._on_mesh
    state, metrics = run(tx, state, batch)
    metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
    return state, metrics | rtopk_jax.exchange_metrics(state.opt_state)

  def _simulated(self, tx: Any, state: RunState, batch: Any) -> tuple[RunState, dict]:
    grad = jax.grad(self.task.loss, has_aux=True)
    gradients, (stats, metrics) = lax.map(
      lambda own: grad(state.params, *own), (state.stats, batch)
    )
    axes = rtopk_jax.state_axes(tx, state.params)
    update = jax.vmap(tx.update, in_axes=(0, axes, None), out_axes=(None, axes), axis_name=AXIS)
    updates, opt_state = update(gradients, state.opt_state, state.params)
    return RunState(optax.apply_updates(state.params, updates), opt_state, stats), metrics

  def _on_mesh(self, tx: Any, state: RunState, batch: Any) -> tuple[RunState, dict]:
    grad = rtopk_jax.local_value_and_grad(self.task.loss, AXIS, has_aux=True)

    def worker(state, batch):
      mine = lambda tree: jax.tree.map(lambda x: x[0], tree)
      row = lambda tree: jax.tree.map(lambda x: x[None], tree)
      (_, (stats, metrics)), gradients = grad(state.params, mine(state.stats), mine(batch))
      updates, opt_state = tx.update(gradients, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      return RunState(params, opt_state, row(stats)), row(metrics)

    specs = RunState(P(), rtopk_jax.state_specs(tx, state.params, AXIS), P(AXIS))  # pyright: ignore[reportArgumentType]
    step = jax.shard_map(
      worker, mesh=self.mesh, in_specs=(specs, P(AXIS)), out_specs=(specs, P(AXIS))
    )
    return step(state, batch)
