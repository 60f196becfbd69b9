"""Workers as devices of a mesh, or simulated on one device: the same step, the same state.

Either way the state of a run is the one a mesh would hold: what differs between workers is an array
``(num_workers, …)``. Simulated workers take their gradients one after another, each by a call of its own:
a ``vmap`` over them would make grouped convolutions, and on CPUs a convolution within a compiled loop is
several times slower than outside one. Only the exchange is mapped.
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
    task: has ``loss(params, stats, batch)``.
    make_tx: the optimizer of a seed. The seed is an argument of the compiled functions, so that the runs
      of several seeds share one compilation.
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
    self._init_compiled = jax.jit(self._init)
    self._gradient = jax.jit(self._gradient_of_one)
    self._exchange = jax.jit(self._exchange_simulated, donate_argnums=0)
    self._mesh_step = jax.jit(self._step_on_mesh, donate_argnums=0)

  def init(self, params: Any, stats: Any, seed: jax.Array) -> RunState:
    """The state before the first step.

    Args:
      params: initial weights.
      stats: initial batch statistics of every worker.
      seed: of the selector.

    Returns:
      The state.
    """
    return self._init_compiled(params, stats, seed)

  def _init(self, params: Any, stats: Any, seed: jax.Array) -> RunState:
    tx, mesh = self.make_tx(seed), self.mesh
    stats = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_workers, *x.shape)), stats)
    if mesh is None:
      axes = rtopk_jax.state_axes(tx, params)
      init = jax.vmap(
        tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=self.num_workers
      )
      return RunState(params, init(params), stats)
    place = lambda tree, spec: lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))
    return RunState(
      place(params, P()), rtopk_jax.init(tx, params, mesh, AXIS), place(stats, P(AXIS))
    )

  def step(self, state: RunState, batch: Any, seed: jax.Array) -> tuple[RunState, dict]:
    """One exchange.

    Args:
      state: the state, whose memory is used again.
      batch: every worker's, arrays ``(num_workers, …)``.
      seed: of the selector.

    Returns:
      The new state, and metrics that are means over workers.
    """
    if self.mesh is not None:
      return self._mesh_step(state, batch, seed)
    own = [self._gradient(state.params, state.stats, batch, i) for i in range(self.num_workers)]
    return self._exchange(state, own, seed)

  def _gradient_of_one(self, params: Any, stats: Any, batch: Any, worker: int) -> Any:
    stats, batch = jax.tree.map(lambda x: x[worker], (stats, batch))
    return jax.grad(self.task.loss, has_aux=True)(params, stats, batch)

  def _exchange_simulated(self, state: RunState, own: list, seed: jax.Array) -> Any:
    gradients, (stats, metrics) = jax.tree.map(lambda *x: jnp.stack(x), *own)
    tx = self.make_tx(seed)
    axes = rtopk_jax.state_axes(tx, state.params)
    update = jax.vmap(tx.update, in_axes=(0, axes, None), out_axes=(None, axes), axis_name=AXIS)
    updates, opt_state = update(gradients, state.opt_state, state.params)
    state = RunState(optax.apply_updates(state.params, updates), opt_state, stats)
    return state, _summary(metrics, opt_state)

  def _step_on_mesh(self, state: RunState, batch: Any, seed: jax.Array) -> Any:
    tx = self.make_tx(seed)
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
    state, metrics = step(state, batch)
    return state, _summary(metrics, state.opt_state)


def _summary(metrics: dict[str, jax.Array], opt_state: Any) -> dict[str, jax.Array]:
  """The workers' metrics averaged, and the exchange's."""
  means = {name: jnp.mean(value) for name, value in metrics.items()}
  return means | rtopk_jax.exchange_metrics(opt_state)
