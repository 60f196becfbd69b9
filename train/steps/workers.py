"""Workers as groups of devices of a mesh, or simulated on one device: the same step, the same state.

Either way the state of a run is the one a mesh would hold: what differs between workers is an array
``(num_workers, …)``. Simulated workers take their gradients one after another, each by a call of its own:
a ``vmap`` over them would make grouped convolutions, and on CPUs a convolution within a compiled loop is
several times slower than outside one. Only the exchange is mapped.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import rtopk_jax
from train.steps import drift, layout
from train.steps.layout import AXES, AXIS
from train.steps.rounds import Rounds

# For programs that run once or for a moment: optimising them takes longer than running them.
QUICKLY = {"xla_backend_optimization_level": 0}


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


class _Part(NamedTuple):
  """What a worker has between two exchanges: its share of them, and sums of the metrics so far."""

  local: Any
  sums: dict[str, jax.Array]


def mean_over_workers(mesh: Mesh | None) -> Callable[[Any], Any]:
  """A function of arrays (n, …) to their means, the same to the bit however workers are spread.

  Args:
    mesh: of the workers; None where all is on one device.

  Returns:
    The function.
  """

  def mean(tree: Any) -> Any:
    if mesh is not None:
      # Gathered, then summed in the order of the workers.
      tree = lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), tree)

  return jax.jit(mean)


class Workers:
  """n workers who train together.

  Args:
    make_rounds: how they train, for a seed of the selector. The seed is an argument of the compiled
      functions, so that the runs of several seeds share one compilation.
    num_workers: n.
    mesh: their devices, of ``layout.make_mesh``, or None to simulate them.
    like: workers of another method, whose programs are used where they are the same.
  """

  def __init__(
    self,
    make_rounds: Callable[[Any], Rounds],
    num_workers: int,
    mesh: Mesh | None,
    like: "Workers | None" = None,
  ):
    self.make_rounds, self.num_workers, self.mesh = make_rounds, num_workers, mesh
    # What needs no seed: all but the exchange.
    self.rounds = make_rounds(0)
    # The workers whose batches this process supplies.
    self.local = tuple(range(num_workers)) if mesh is None else layout.local_workers(mesh)
    on_mesh = mesh is not None
    self._init = jax.jit(self._init_on_mesh if on_mesh else self._init_simulated)
    self._begin = jax.jit(self._begin_on_mesh if on_mesh else self._begin_one)
    self._more = jax.jit(self._more_on_mesh if on_mesh else self._more_of_one, donate_argnums=1)
    self._first = jax.jit(self._first_one)
    if like is not None and self.rounds.begins_alone and like.rounds.begins_alone:
      self._begin, self._more, self._first = like._begin, like._more, like._first
    self._exchange = jax.jit(
      self._exchange_on_mesh if on_mesh else self._exchange_simulated, donate_argnums=0
    )
    self._whole = jax.jit(self._whole_on_mesh, donate_argnums=0)
    # These know nothing of the method.
    self._mean = like._mean if like else mean_over_workers(mesh)
    self._fingerprints = like._fingerprints if like else jax.jit(self._fingerprints_on_mesh)

  def first(self, init: Callable[[jax.Array], tuple[Any, Any]], seed: int) -> tuple[Any, Any]:
    """The first weights, and the state of one worker's model.

    Args:
      init: of a task: from a key to both.
      seed: of the key.

    Returns:
      Both. Where a worker has shards, no device ever holds the weights whole.
    """
    mesh = self.mesh
    if mesh is None or mesh.shape[layout.SHARDS] == 1:
      return init(jax.random.key(seed))
    make = lambda: init(jax.random.key(seed))
    params, model_state = jax.eval_shape(make)
    specs = self._param_specs(params), jax.tree.map(lambda _: P(), model_state)
    where = layout.shardings(mesh, specs, (params, model_state))
    return jax.jit(make, out_shardings=where, compiler_options=QUICKLY)()

  def init(self, params: Any, model_state: Any, seed: jax.Array) -> RunState:
    """The state before the first step.

    Args:
      params: initial weights.
      model_state: what every worker's model starts with beside them.
      seed: of the selector.

    Returns:
      The state.
    """
    return self._init(params, model_state, seed)

  def step(
    self, state: RunState, batches: Iterable[Any], seed: jax.Array, present: Any = None
  ) -> tuple[RunState, dict[str, jax.Array]]:
    """One exchange, and what comes before it.

    Args:
      state: the state, whose memory is used again.
      batches: as many as there are between two exchanges; each the batches of this process's workers,
        ``local``, arrays ``(len(local), …)``.
      seed: of the selector.
      present: who takes part, bool (n,); None: all do.

    Returns:
      The new state, and metrics: means over batches and the workers present.
    """
    if self.mesh is None:
      return self._step_simulated(state, iter(batches), seed, present)
    mesh = self.mesh
    place = lambda batch: layout.place_batch(mesh, self.local, batch)
    placed = map(place, batches)
    if present is not None:
      present = place(np.asarray(present)[list(self.local)])
    first = next(placed)
    if self.rounds.batches == 1:
      return self._whole(state, first, seed, present)
    part, before = self._begin(state, first), None
    for batch in itertools.chain((first,), placed):
      part, ticket = self._more(state.params, part, batch)
      before = _not_too_far_ahead(before, ticket)
    return self._exchange(state, part, seed, present)

  def compiled_step(self, seed: jax.Array) -> Any:
    """The step on a mesh as one jitted function of state and placed batch, where it is one."""
    return jax.jit(
      lambda state, batch: self._whole_on_mesh(state, batch, seed, None), donate_argnums=0
    )

  def mean(self, tree: Any) -> Any:
    """The mean over workers of arrays ``(n, …)``, for this process's own use."""
    return self._here(self._mean(tree), lambda mean: jax.tree.map(lambda _: P(), mean))

  def here(self, params: Any) -> Any:
    """The weights for this process's own use: on one device, or on as many as there are shards."""
    return self._here(params, self._param_specs)

  def _here(self, tree: Any, specs: Callable[[Any], Any]) -> Any:
    return tree if self.mesh is None else layout.here(self.mesh, tree, specs(tree))

  def fingerprints(self, params: Any) -> np.ndarray | None:
    """A hash of the weights on each device, uint32 (n, chips, shards); None where there is one copy."""
    if self.mesh is None:
      return None
    return np.asarray(self._fingerprints(params).addressable_data(0))

  def shardings(self, state: RunState) -> RunState:
    """Where each leaf of a state belongs; arrays or ``ShapeDtypeStruct``."""
    if self.mesh is None:
      return jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), state)
    return layout.shardings(self.mesh, self._specs(state), state)

  # Workers on the devices of a mesh.

  def _param_specs(self, params: Any) -> Any:
    assert self.mesh is not None
    return layout.param_specs(self.mesh, params)

  def _specs(self, state: RunState) -> RunState:
    params = self._param_specs(state.params)
    opt_state = rtopk_jax.state_specs(self.rounds.tx, state.params, AXIS, params)
    return RunState(params, opt_state, P(AXIS))

  def _alone(self, function: Callable[..., Any], params: Any, in_specs: Any, *args: Any) -> Any:
    """What every worker makes by itself, as rows. Its chips and shards are left to the compiler."""
    assert self.mesh is not None
    mapped = jax.shard_map(
      lambda *args: _row(function(*args)),
      mesh=self.mesh,
      axis_names={AXIS},
      in_specs=layout.by_worker(in_specs),
      out_specs=P(AXIS),
    )
    made = mapped(*args)
    specs = layout.specs_like(made, params, self._param_specs(params))
    return layout.constrain(self.mesh, specs, made)

  def _together(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    """What all do together, each device with its own part."""
    return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

  def _init_on_mesh(self, params: Any, model_state: Any, seed: jax.Array) -> RunState:
    assert self.mesh is not None
    specs = self._param_specs(params)
    opt_state = rtopk_jax.init(self.make_rounds(seed).tx, params, self.mesh, AXIS, specs)
    state = RunState(params, opt_state, self._rows(model_state))
    return layout.constrain(self.mesh, self._specs(state), state)

  def _begin_on_mesh(self, state: RunState, batch: Any) -> _Part:
    zeros = self._no_metrics(state, batch)

    def begin(state):
      return _Part(
        self.rounds.begin(state.params, state.opt_state, _mine(state.model_state)), zeros()
      )

    return self._alone(begin, state.params, (self._specs(state),), state)

  def _more_on_mesh(self, params: Any, part: _Part, batch: Any) -> tuple[_Part, jax.Array]:
    more = lambda params, part, batch: self._more_of_one(params, _mine(part), _mine(batch))
    return self._alone(more, params, (P(), P(AXIS), P(AXIS)), params, part, batch)

  def _exchange_on_mesh(
    self, state: RunState, part: _Part, seed: jax.Array, present: Any
  ) -> tuple[RunState, dict[str, jax.Array]]:
    rounds, specs = self.make_rounds(seed), self._specs(state)
    local = layout.specs_like(part.local, state.params, specs.params)

    def exchange(state, local, present):
      params, opt_state, model_state = rounds.exchange(
        state.params, state.opt_state, _mine(state.model_state), _mine(local), _mine(present)
      )
      return RunState(params, opt_state, _row(model_state))

    state = self._together(exchange, (specs, local, P(AXIS)), specs)(state, part.local, present)
    return state, self._metrics(part.sums, present, state.opt_state)

  def _whole_on_mesh(
    self, state: RunState, batch: Any, seed: jax.Array, present: Any
  ) -> tuple[RunState, dict[str, jax.Array]]:
    part, _ = self._more_on_mesh(state.params, self._begin_on_mesh(state, batch), batch)
    return self._exchange_on_mesh(state, part, seed, present)

  def _fingerprints_on_mesh(self, params: Any) -> jax.Array:
    assert self.mesh is not None
    own = lambda params: drift.fingerprint(params).reshape(1, 1, 1)
    each = self._together(own, (self._param_specs(params),), P(*AXES))(params)
    return layout.constrain(self.mesh, P(), each)

  # Workers simulated on one device.

  def _axes(self, state: RunState) -> Any:
    return rtopk_jax.state_axes(self.rounds.tx, state.params)

  def _init_simulated(self, params: Any, model_state: Any, seed: jax.Array) -> RunState:
    tx = self.make_rounds(seed).tx
    axes = rtopk_jax.state_axes(tx, params)
    init = jax.vmap(
      tx.init, in_axes=None, out_axes=axes, axis_name=AXIS, axis_size=self.num_workers
    )
    return RunState(params, init(params), self._rows(model_state))

  def _step_simulated(
    self, state: RunState, batches: Any, seed: jax.Array, present: Any
  ) -> tuple[RunState, dict[str, jax.Array]]:
    first = next(batches)
    of = lambda batch, i: jax.tree.map(lambda x: x[i], batch)
    own = state._replace(opt_state=None) if self.rounds.begins_alone else state
    before = None
    if self.rounds.batches == 1 and present is None:
      # One program for both: nothing is written down that the gradient would only be added to.
      parts = []
      for i in range(self.num_workers):
        part, ticket = self._first(own, of(first, i), i)
        before = _not_too_far_ahead(before, ticket)
        parts.append(part)
      return self._exchange(state, parts, seed, present)
    parts = [self._begin(own, of(first, i), i) for i in range(self.num_workers)]
    for batch in itertools.chain((first,), batches):
      for i in range(self.num_workers):
        # Who is absent need not train.
        if present is None or present[i]:
          parts[i], ticket = self._more(state.params, parts[i], of(batch, i))
          before = _not_too_far_ahead(before, ticket)
    return self._exchange(state, parts, seed, present)

  def _first_one(self, state: RunState, batch: Any, worker: jax.Array) -> tuple[_Part, jax.Array]:
    part = self._begin_of_one(state, batch, worker)
    return self._more_of_one(state.params, part, batch)

  def _begin_one(self, state: RunState, batch: Any, worker: jax.Array) -> _Part:
    part = self._begin_of_one(state, batch, worker)
    # Copies, since what a step returns as it came is the same buffer, and these will be donated.
    return part._replace(local=jax.tree.map(jnp.copy, part.local))

  def _begin_of_one(self, state: RunState, batch: Any, worker: jax.Array) -> _Part:
    opt_state = None
    if not self.rounds.begins_alone:
      pick = lambda axis, x: x if axis is None else x[worker]
      opt_state = jax.tree.map(
        pick, self._axes(state), state.opt_state, is_leaf=lambda axis: axis is None
      )
    model_state = jax.tree.map(lambda x: x[worker], state.model_state)
    zeros = self._no_metrics(state, jax.tree.map(lambda x: x[None], batch))
    local = self.rounds.begin(state.params, opt_state, model_state)
    return _Part(local, zeros())

  def _more_of_one(self, params: Any, part: _Part, batch: Any) -> tuple[_Part, jax.Array]:
    if self.mesh is not None:
      params = jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), params)
    local, metrics = self.rounds.local_step(params, part.local, batch)
    sums = jax.tree.map(lambda x, y: x + y.astype(jnp.float32), part.sums, metrics)
    # Something to wait for that no later step donates.
    return _Part(local, sums), jnp.stack(list(sums.values()))

  def _exchange_simulated(
    self, state: RunState, parts: list[_Part], seed: jax.Array, present: Any
  ) -> tuple[RunState, dict[str, jax.Array]]:
    part = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    axes = self._axes(state)
    exchange = jax.vmap(
      self.make_rounds(seed).exchange,
      in_axes=(None, axes, 0, 0, 0),
      out_axes=(None, axes, 0),
      axis_name=AXIS,
    )
    state = RunState(*exchange(*state, part.local, present))
    return state, self._metrics(part.sums, present, state.opt_state)

  # Both.

  def _rows(self, tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_workers, *x.shape)), tree)

  def _no_metrics(self, state: RunState, batch: Any) -> Callable[[], dict[str, jax.Array]]:
    own = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (state.model_state, batch)
    )
    _, (_, metrics) = jax.eval_shape(self.rounds.loss, state.params, *own)
    return lambda: {name: jnp.zeros(x.shape, jnp.float32) for name, x in metrics.items()}

  def _metrics(
    self, sums: dict[str, jax.Array], present: Any, opt_state: Any
  ) -> dict[str, jax.Array]:
    """Means over batches and the workers present, and how the exchange went."""
    if self.mesh is not None:
      # Numbers are gathered, then summed in the order of the workers, however they are spread.
      sums, present = lax.with_sharding_constraint((sums, present), NamedSharding(self.mesh, P()))
    here = jnp.ones(self.num_workers) if present is None else present.astype(jnp.float32)
    batches = jnp.sum(here) * self.rounds.batches
    means = {name: jnp.sum(here * x) / batches for name, x in sums.items()}
    return means | rtopk_jax.exchange_metrics(opt_state)


def _mine(tree: Any) -> Any:
  return jax.tree.map(lambda x: x[0], tree)


def _row(tree: Any) -> Any:
  return jax.tree.map(lambda x: x[None], tree)


def _not_too_far_ahead(before: jax.Array | None, ticket: jax.Array) -> jax.Array:
  """Waits for the step before the one dispatched: further ahead, batches would only pile up."""
  if before is not None:
    jax.block_until_ready(before)
  return ticket
