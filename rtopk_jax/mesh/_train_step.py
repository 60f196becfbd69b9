"""A training step for those who use ``jit`` and a mesh, and write no ``shard_map``.

batch ─▶ local gradients ─▶ exchange, update, or skip ─▶ parameters and state
mapped over the workers,        mapped over the whole mesh,
other axes are the compiler's   each device has its shard
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rtopk_jax import _axis, _checks
from rtopk_jax._axis import AxisName
from rtopk_jax.mesh._placement import Placement, check_mesh, is_spec, is_traced
from rtopk_jax.mesh._specs import settle_specs, state_specs
from rtopk_jax.mesh._worker_step import MODEL_STATES, Options, mapped_step
from rtopk_jax.transform import _gradients
from rtopk_jax.transform._lockstep import lockstep


def make_train_step(
  loss_fn: Callable[..., Any],
  tx: optax.GradientTransformation,
  mesh: Mesh,
  axis_name: AxisName,
  *,
  param_specs: Any = None,
  has_aux: bool = False,
  model_state: str | None = None,
  rngs: bool = False,
  weight: Callable[[Any], jax.Array] | None = None,
  accumulate: int = 1,
  donate: bool = True,
) -> "TrainStep":
  r"""A compiled training step for those who use ``jit`` and a mesh, and write no ``shard_map``.

  Each worker takes the gradient of its share of the batch, ``tx`` exchanges them, all take the same step. With
  :math:`L(w; B)` the loss of a batch, :math:`B_{i1}, \dots, B_{im}` the micro-batches of worker i and
  :math:`c_{ij}` their weights,

  .. math::
    g_i = \frac{\sum_j c_{ij} \nabla L(w; B_{ij})}{\sum_j c_{ij}}, \qquad
    (w, s) \leftarrow \mathrm{tx}\Big(w, s; \frac{n \sum_j c_{ij}}{\sum_{ij} c_{ij}} g_i\Big)

  Parameters, state and batch may come from anywhere (NumPy, one device, another layout): they are put
  where they belong. A step in which a worker's gradient is not finite changes nothing but the exchange's
  counters, as with ``lockstep``. ``tx.update`` is given the mean loss as ``value=``, which
  ``optax.contrib.reduce_on_plateau`` wants.

  Args:
    loss_fn: ``loss_fn(params, batch)`` to the mean loss of a batch. With ``model_state`` the model's state is
      a second argument, and the new one a second result; with ``rngs`` a key is the last argument; with
      ``has_aux`` a tree of arrays is a second result. With model state and aux the second result is the pair of
      them.
    tx: a chain with an exchange over ``axis_name``.
    mesh: the mesh, with axes of any type.
    axis_name: its axis of the workers.
    param_specs: the ``PartitionSpec`` of each parameter over the mesh's other axes, over which the compiler
      shards the computation of a worker; each shard is exchanged by itself. None: replicated.
    has_aux: whether ``loss_fn`` returns more than the loss.
    model_state: what the model keeps beside its weights, batch statistics for instance: "mean" has one for all,
      averaged after every step; "worker" has each worker's own, arrays ``(num_workers, …)``. None: nothing.
    rngs: whether ``loss_fn`` wants a key. Each worker's, and each micro-batch's, is another one.
    weight: a function of a worker's batch to how much it counts, for example ``lambda batch: batch["mask"].sum()``
      for a loss that is a mean over what is not padding. None: all count alike.
    accumulate: micro-batches of a worker's batch, whose mean gradient is exchanged.
    donate: whether the memory of parameters and state is used again, the default.

  Returns:
    A ``TrainStep``: ``step(params, state, batch)`` to ``(params, state, loss)``.

  Raises:
    TypeError: for arguments of a wrong type.
    ValueError: when the mesh lacks the axis; in ``step`` when the batch cannot be dealt to the workers, when
      parameters are sharded and ``param_specs`` is None, and as ``lockstep`` does.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tx = optax.chain(rtopk_jax.sparse_exchange(rtopk_jax.rtop_k(0.5), "data"), optax.sgd(0.1))
    >>> params = {"w": jnp.ones((40, 30))}
    >>> state = rtopk_jax.init(tx, params, mesh, "data")
    >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"]) ** 2)
    >>> step = rtopk_jax.make_train_step(loss_fn, tx, mesh, "data")
    >>> params, state, loss = step(params, state, jnp.ones((8, 40)))
    >>> round(float(loss))
    1600
  """
  check_mesh(mesh, axis_name)
  if not callable(loss_fn):
    raise TypeError(f"loss_fn must be a function, got {loss_fn!r}.")
  _checks.transformation("tx", tx)
  for name, value in (("has_aux", has_aux), ("rngs", rngs), ("donate", donate)):
    _checks.flag(name, value)
  if model_state is not None:
    _checks.one_of("model_state", model_state, MODEL_STATES)
  if weight is not None and not callable(weight):
    raise TypeError(f"weight must be a function of a worker's batch, got {weight!r}.")
  _checks.at_least("accumulate", accumulate, 1, integer=True)
  options = Options(
    loss_fn,
    lockstep(tx, axis_name),
    axis_name,
    param_specs,
    has_aux,
    model_state,
    rngs,
    weight,
    accumulate,
    donate,
  )
  return TrainStep(options, mesh)


class _Program(NamedTuple):
  """A step for parameters of some shapes.

  Attributes:
    specs: where parameters, state and the model's state live.
    run: the step, jitted.
  """

  specs: tuple[Any, Any, Any]
  run: Any


class TrainStep:
  """A training step; ``make_train_step`` makes one.

  Args:
    options: what it does.
    mesh: where.
  """

  def __init__(self, options: Options, mesh: Mesh):
    self._options = options
    self._placement = Placement(mesh)
    self._num_workers = check_mesh(mesh, options.axis_name)
    # How many there are on each of the workers' axes.
    self._members = {name: mesh.shape[name] for name in _axis.names(options.axis_name)}
    # Which arguments are what a step changes: parameters, state, and the model's state.
    self._kept = (0, 1, 3) if options.model_state else (0, 1)
    self._programs: dict[Any, _Program] = {}

  def __call__(
    self, params: Any, state: Any, batch: Any, *, model_state: Any = None, key: Any = None
  ) -> tuple[Any, ...]:
    """Takes a step.

    Args:
      params: the parameters.
      state: of ``tx``, from ``rtopk_jax.init``.
      batch: a tree of arrays, whose leading axis is dealt to the workers.
      model_state: the model's state, where ``make_train_step`` was told of one.
      key: a PRNG key, another one every step, where it was told of ``rngs``.

    Returns:
      ``(params, state, loss)``; with a model state ``(params, state, model_state, loss)``; with ``has_aux``
      the auxiliary results are the last, a row of an array ``(num_workers, …)`` of each worker's. ``loss`` is
      the mean over the batch.
    """
    arguments = self._arguments(params, state, batch, model_state, key)
    if is_traced(arguments):
      step, specs = self._step(params)
      return self._placement.trace(step, self._out(specs), *arguments)
    with self._placement.context():
      program = self._program(params)
      results = program.run(*self._place(program, arguments))
    self._placement.note_fresh(results[: len(self._kept)])
    return results

  def lower(
    self, params: Any, state: Any, batch: Any, *, model_state: Any = None, key: Any = None
  ) -> Any:
    """The step lowered for these arguments, arrays or ``ShapeDtypeStruct``, as ``jax.jit(…).lower`` does.

    What it compiles to is called with the same arguments by position, where they belong: parameters, state,
    batch, and where there are such the model's state and the key.
    """
    arguments = self._arguments(params, state, batch, model_state, key)
    with self._placement.context():
      program = self._program(params)
      return program.run.lower(*self._place(program, arguments))

  def _arguments(
    self, params: Any, state: Any, batch: Any, model_state: Any, key: Any
  ) -> tuple[Any, ...]:
    """The arguments in order; refused where some are missing, or cannot be dealt out."""
    options = self._options
    for name, value, wanted, setting in (
      (
        "model_state",
        model_state,
        options.model_state is not None,
        'model_state="mean" or "worker"',
      ),
      ("key", key, options.rngs, "rngs=True"),
    ):
      if wanted and value is None:
        raise ValueError(f"{name} is missing, and make_train_step was given {setting}.")
      if value is not None and not wanted:
        raise ValueError(f"{name} is of no use without make_train_step(…, {setting}).")
    _check_batch(batch, self._num_workers, options.accumulate)
    given = [x for x in (model_state, key) if x is not None]
    return params, state, batch, *given

  def _step(self, params: Any) -> tuple[Callable[..., Any], tuple[Any, Any, Any]]:
    """The step for parameters of these shapes, and where its arguments live."""
    options = self._options
    of_params = settle_specs(options.param_specs, params, options.axis_name)
    of_state = state_specs(options.tx, params, options.axis_name, of_params)
    of_model = P() if options.model_state == "mean" else P(options.axis_name)
    step = mapped_step(options, self._placement.automatic, of_params, of_state)
    return step, (of_params, of_state, of_model)

  def _out(self, specs: tuple[Any, Any, Any]) -> tuple[Any, ...]:
    """Where the results live."""
    *kept, of_model = specs
    middle = (of_model,) if self._options.model_state else ()
    return (*kept, *middle, P(), *((P(self._options.axis_name),) if self._options.has_aux else ()))

  def _program(self, params: Any) -> _Program:
    """The compiled step for parameters of these shapes."""
    leaves, structure = jax.tree.flatten(params)
    # Every step comes here, and mostly with nothing but arrays.
    if not all(isinstance(leaf, jax.Array) for leaf in leaves):
      _gradients.check_arrays("params", params)
    signature = (structure, *((jnp.shape(x), jnp.result_type(x)) for x in leaves))
    if signature not in self._programs:
      step, specs = self._step(params)
      run = jax.jit(
        step,
        out_shardings=self._placement.shardings(self._out(specs)),
        donate_argnums=self._kept if self._options.donate else (),
      )
      self._programs[signature] = _Program(specs, run)
    return self._programs[signature]

  def _place(self, program: _Program, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments where they belong."""
    options, placement = self._options, self._placement
    placed, of_model = list(arguments), program.specs[2]
    kept = [arguments[i] for i in self._kept]
    if not placement.is_fresh(kept):
      settle_specs(options.param_specs, kept[0], options.axis_name)
      _check_state(kept[1], program.specs[1], self._members)
      where = [*program.specs[:2], *(jax.tree.map(lambda _: of_model, x) for x in kept[2:])]
      put = placement.put_to_donate if options.donate else placement.put
      for i, x in zip(self._kept, put(kept, where), strict=True):
        placed[i] = x
    placed[2] = placement.put(placed[2], jax.tree.map(self._batch_spec, placed[2]))
    if options.rngs:
      placed[-1] = placement.put(placed[-1], jax.tree.map(lambda _: P(), placed[-1]))
    return tuple(placed)

  def _batch_spec(self, x: Any) -> P:
    """The workers' axes first; what is dealt out further on the same mesh stays so."""
    names = _axis.names(self._options.axis_name)
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh == self._placement.mesh:
      first = sharding.spec[0] if len(sharding.spec) else None
      if first is not None and _axis.names(first)[: len(names)] == names:
        return sharding.spec
    return P(self._options.axis_name)


def _check_batch(batch: Any, num_workers: int, accumulate: int) -> None:
  parts = num_workers * accumulate
  for path, leaf in jax.tree.leaves_with_path(batch):
    shape = jnp.shape(leaf)
    if not shape or shape[0] % parts:
      each = f", {accumulate} micro-batches each" if accumulate > 1 else ""
      raise ValueError(
        f"batch{jax.tree_util.keystr(path)} has shape {shape}, and its leading axis cannot be dealt "
        f"to {num_workers} workers{each}."
      )


def _check_state(state: Any, specs: Any, mesh_workers: dict[str, int]) -> None:
  """Refuses a state of another structure than the transformation's, or of another number of workers."""
  structure, wanted = jax.tree.structure(state), jax.tree.structure(specs, is_leaf=is_spec)
  if structure != wanted:
    found = _gradients.differences(is_spec, **{"state": state, "rtopk_jax.init(…)": specs})
    raise TypeError(
      f"state has another structure than rtopk_jax.init makes: {found}. Restore a checkpoint into the structure of "
      "rtopk_jax.init(…), for example with Orbax's StandardRestore of it."
    )
  leaves = zip(
    jax.tree.leaves_with_path(state), jax.tree.leaves(specs, is_leaf=is_spec), strict=True
  )
  for (path, x), spec in leaves:
    shape, where = jnp.shape(x), f"state{jax.tree_util.keystr(path)}"
    first = spec[0] if len(spec) else None
    if first is None or not shape or not set(_axis.names(first)) & set(mesh_workers):
      continue
    count = math.prod(mesh_workers.get(name, 1) for name in _axis.names(first))
    if shape[0] == 0:
      raise ValueError(
        f"{where} was made outside the mapped axis, where no worker has a row. Make the state with "
        "rtopk_jax.init(tx, params, mesh, axis_name)."
      )
    if shape[0] != count:
      raise ValueError(
        f"{where} has the rows of {shape[0]} workers, and there are {count}. "
        f"rtopk_jax.resize_workers(state, {count}) makes it a state of so many."
      )
