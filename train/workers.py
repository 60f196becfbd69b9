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
    model_state: what each worker's model keeps beside its weights, batch statistics or a hidden state,
      arrays ``(num_workers, …)``.
  """

  params: Any
  opt_state: Any
  model_state: Any


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
    task: has ``loss(params, model_state, batch)``, as in ``train.task.Task``.
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
    devices = [None] * num_workers if mesh is None else list(mesh.devices.flat)
    # The workers whose batches this process supplies.
    self.local = tuple(
      i for i, d in enumerate(devices) if d is None or d.process_index == jax.process_index()
    )
    self._init_compiled = jax.jit(self._init)
    self._gradient = jax.jit(self._gradient_of_one)
    self._exchange = jax.jit(self._exchange_simulated, donate_argnums=0)
    self._mesh_step = jax.jit(self._step_on_mesh, donate_argnums=0)

  def init(self, params: Any, model_state: Any, seed: jax.Array) -> RunState:
    """The state before the first step.

    Args:
      params: initial weights.
      model_state: what every worker's model starts with beside them.
      seed: of the selector.

    Returns:
      The state.
    """
    return self._init_compiled(params, model_state, seed)

  def _init(self, params: Any, model_state: Any, seed: jax.Array) -> RunState:
    tx, mesh = self.make_tx(seed), self.mesh
    model_state = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (self.num_workers, *x.shape)), model_state
    )
    if mesh is None:
      axes = rtopk_jax.state_axes(tx, params)
      init = jax.vmap(
        tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=self.num_workers
      )
      return RunState(params, init(params), model_state)
    place = lambda tree, spec: lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))
    return RunState(
      place(params, P()), rtopk_jax.init(tx, params, mesh, AXIS), place(model_state, P(AXIS))
    )

  def step(self, state: RunState, batch: Any, seed: jax.Array) -> tuple[RunState, dict]:
    """One exchange.

    Args:
      state: the state, whose memory is used again.
      batch: the batches of this process's workers, ``local``, arrays ``(len(local), …)``.
      seed: of the selector.

    Returns:
      The new state, and metrics that are means over workers.
    """
    if self.mesh is not None:
      sharding = NamedSharding(self.mesh, P(AXIS))
      place = lambda x: jax.make_array_from_process_local_data(sharding, x)
      return self._mesh_step(state, jax.tree.map(place, batch), seed)
    own = [
      self._gradient(state.params, state.model_state, batch, i) for i in range(self.num_workers)
    ]
    return self._exchange(state, own, seed)

  def _gradient_of_one(self, params: Any, model_state: Any, batch: Any, worker: int) -> Any:
    model_state, batch = jax.tree.map(lambda x: x[worker], (model_state, batch))
    return jax.grad(self.task.loss, has_aux=True)(params, model_state, batch)

  def _exchange_simulated(self, state: RunState, own: list, seed: jax.Array) -> Any:
    gradients, (model_state, metrics) = jax.tree.map(lambda *x: jnp.stack(x), *own)
    tx = self.make_tx(seed)
    axes = rtopk_jax.state_axes(tx, state.params)
    update = jax.vmap(tx.update, in_axes=(0, axes, None), out_axes=(None, axes), axis_name=AXIS)
    updates, opt_state = update(gradients, state.opt_state, state.params)
    state = RunState(optax.apply_updates(state.params, updates), opt_state, model_state)
    return state, _summary(metrics, opt_state)

  def _step_on_mesh(self, state: RunState, batch: Any, seed: jax.Array) -> Any:
    tx = self.make_tx(seed)
    grad = rtopk_jax.local_value_and_grad(self.task.loss, AXIS, has_aux=True)

    def worker(state, batch):
      mine = lambda tree: jax.tree.map(lambda x: x[0], tree)
      row = lambda tree: jax.tree.map(lambda x: x[None], tree)
      (_, (model_state, metrics)), gradients = grad(
        state.params, mine(state.model_state), mine(batch)
      )
      updates, opt_state = tx.update(gradients, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      return RunState(params, opt_state, row(model_state)), row(metrics)

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
