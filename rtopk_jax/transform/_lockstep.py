"""A chain with an exchange as one step that all workers take, or none of them.

Two things are left to do around an exchange, since no transformation in a chain sees the others:

* State that is each worker's own. A transformation of optax does not know that it stands before an exchange,
  and that its state is one of n. Here its leaves are given the workers' axis on the way out, and on the way in
  it is taken off again.
* Steps that are skipped. The exchange gives zeros for one; momentum, decay and schedules behind it would go
  on all the same. Here all is put back to what it was, but for the counters of the exchange.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rtopk_jax import _axis, _checks, _modes
from rtopk_jax._axis import AxisName
from rtopk_jax.transform import _gradients, _state
from rtopk_jax.transform._metrics import find_metrics, was_taken
from rtopk_jax.transform._optax import update_with
from rtopk_jax.transform._ownership import Leaf, Ownership, ownership


def lockstep(
  tx: optax.GradientTransformation, axis_name: AxisName
) -> optax.GradientTransformationExtraArgs:
  r"""Makes a chain with an exchange one step that all workers take, or none.

  With :math:`s` the state of ``tx``, :math:`u` its updates and f whether every worker's gradient and all
  that was accumulated of it is finite,

  .. math::
    (u, s) \leftarrow f\ ?\ \mathrm{tx}(g, s) : (0, s),

  so that weights, moments and schedules stay as they were when a step is skipped; the exchange's ``count`` and
  ``skipped_steps`` move. Where optax would put ``optax.apply_if_finite``, which workers would not agree
  on, put this. State of transformations before or around the exchange (``optax.trace``, ``optax.MultiSteps``)
  is each worker's own: it has a row of every worker, like the exchange's.

  ``make_train_step``, ``rtopk_sgd`` and ``federated`` do this by themselves, and it does no harm to do it
  twice. Inside a ``shard_map`` of one's own the whole chain is to be wrapped, last of all.

  Args:
    tx: a chain with a ``sparse_exchange`` or ``dense_exchange`` over ``axis_name``.
    axis_name: the mapped axis of the workers.

  Returns:
    An ``optax.GradientTransformationExtraArgs`` with the state of ``tx``, in which leaves that are a worker's
    own have a leading axis of the workers. ``update`` takes ``present=`` and ``weight=`` as ``sparse_exchange``'s
    does; they hold for what is accumulated before the exchange too.

  Raises:
    TypeError: when ``tx`` is no transformation, or in ``update`` when the state is of another structure.
    ValueError: in ``init`` and ``update`` when ``tx`` has no exchange over ``axis_name``, leaves some updates
      to differ between workers, or has an exchange under a condition that can.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> chain = optax.chain(rtopk_jax.dense_exchange("data"), optax.sgd(0.1, momentum=0.9))
    >>> tx = rtopk_jax.lockstep(chain, "data")
    >>> params = {"w": jnp.ones((40, 30))}
    >>> gradients = {"w": jnp.ones((4, 40, 30)).at[3, 0, 0].set(jnp.nan)}  # 4 workers, one of them in trouble
    >>> update = lambda gradient: tx.update(gradient, tx.init(params), params)[0]
    >>> float(jnp.abs(jax.jit(jax.vmap(update, out_axes=None, axis_name="data"))(gradients)["w"]).max())
    0.0
  """
  _checks.axis_name(axis_name)
  _checks.transformation("tx", tx)
  inner = optax.with_extra_args_support(tx)

  def init(params):
    state = inner.init(params)
    # Tree functions of optax ask for a state without arrays.
    if _modes.analysing() or not jax.tree.leaves(params):
      return state
    owned = ownership(inner, params, axis_name)
    _check_exchange(owned)
    leaves, structure = jax.tree.flatten(state)
    rows = [
      _axis.as_row(jnp.asarray(x), leaf.axis_name) if leaf.needs_row else x
      for x, leaf in zip(leaves, owned.leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, rows)

  def update(updates, state, params=None, *, present=None, weight=None, **extra_args):
    # Exchanges of others need not know these arguments.
    said = {"present": present, "weight": weight}
    extra_args |= {name: value for name, value in said.items() if value is not None}
    if _modes.analysing():
      return update_with(inner, updates, state, params, **extra_args)
    owned = ownership(inner, updates if params is None else params, axis_name)
    _check_exchange(owned)
    leaves, structure = jax.tree.flatten(state)
    owned.check_structure(structure)
    plain = [_take_row(x, leaf) for x, leaf in zip(leaves, owned.leaves, strict=True)]
    before = jax.tree.unflatten(structure, plain)
    accumulates = any(leaf.needs_row for leaf in owned.leaves)
    if accumulates and weight is not None:
      # What is accumulated before the exchange is as much as it counts.
      share = _gradients.share(extra_args.pop("weight"), present, axis_name)
      updates = jax.tree.map(lambda g: _gradients.counted(g, share), updates)
    new_updates, after = update_with(inner, updates, before, params, **extra_args)
    if accumulates and present is not None:
      after = _where_present(after, before, present, owned)
    new = jax.tree.leaves(after)
    accumulated = [
      (x, y, leaf) for x, y, leaf in zip(plain, new, owned.leaves, strict=True) if leaf.needs_row
    ]
    taken = was_taken(after, before)
    if accumulated:
      taken &= _stays_finite(accumulated, axis_name)
    # Nothing but the one exchange can have skipped the step then, and it has left its memory as it was.
    is_alone = len(owned.exchanged) == 1 and len(find_metrics(after)) == 1 and not accumulated
    after = _unless_skipped(after, before, taken, memory_is_settled=is_alone)
    rows = [
      _put_row(x, old, leaf)
      for x, old, leaf in zip(jax.tree.leaves(after), leaves, owned.leaves, strict=True)
    ]
    new_updates = jax.tree.map(lambda u: jnp.where(taken, u, jnp.zeros_like(u)), new_updates)
    return new_updates, jax.tree.unflatten(structure, rows)

  return optax.GradientTransformationExtraArgs(init, update)


def _check_exchange(owned: Ownership) -> None:
  if not owned.exchanged:
    raise ValueError(
      "tx has no exchange in it, and workers would part ways; put a sparse_exchange or dense_exchange where "
      "local gradients enter."
    )


def _take_row(x: jax.Array, leaf: Leaf) -> jax.Array:
  """What a worker's own leaf is to a transformation that knows of no other worker."""
  if not leaf.needs_row:
    return x
  _axis.check_row(x, leaf.shape, leaf.axis_name, jax.tree_util.keystr(leaf.path))
  return x.reshape(leaf.shape)


def _put_row(x: jax.Array, like: jax.Array, leaf: Leaf) -> jax.Array:
  return x.reshape(like.shape) if leaf.needs_row else x


def _where_present(after: Any, before: Any, present: jax.Array, owned: Ownership) -> Any:
  """The state after a step, in which a worker that is absent has accumulated nothing."""
  leaves = [
    jnp.where(present, new, old) if leaf.needs_row else new
    for new, old, leaf in zip(
      jax.tree.leaves(after), jax.tree.leaves(before), owned.leaves, strict=True
    )
  ]
  return jax.tree.unflatten(owned.structure, leaves)


def _stays_finite(
  accumulated: list[tuple[jax.Array, jax.Array, Leaf]], axis_name: AxisName
) -> jax.Array:
  """Whether nothing that a worker keeps before an exchange has become infinite or NaN on any of them."""
  wrong = jnp.float32(0)
  model = _axis.every_model_axis([x for _, x, _ in accumulated], axis_name)
  for old, new, _ in accumulated:
    if jnp.issubdtype(new.dtype, jnp.inexact):
      worse = jnp.isfinite(old) & ~jnp.isfinite(new)
      wrong += jnp.any(worse).astype(jnp.float32)
  return _axis.over_model(_axis.psum(wrong, axis_name), model) == 0


def _unless_skipped(after: Any, before: Any, taken: jax.Array, memory_is_settled: bool) -> Any:
  """The state after a step that is taken, and before one that is not; but counters move.

  Args:
    after: the state after the step.
    before: the state before it.
    taken: whether it is taken.
    memory_is_settled: whether the exchange's memory is right already, in a step that is taken or not.

  Returns:
    The state.
  """
  is_exchange = lambda x: _state.per_worker_fields(x) is not None
  choose = lambda new, old: jnp.where(taken, new, old)

  def visit(new, old):
    if not is_exchange(new):
      return choose(new, old)
    fields = {}
    for name, value in new._asdict().items():
      past = getattr(old, name)
      if name == "count":
        fields[name] = value
      elif name == "metrics":
        fields[name] = jax.tree.map(choose, value, past)._replace(
          skipped=jnp.where(taken, value.skipped, past.skipped + 1)
        )
      elif name in type(new).memory:
        fields[name] = (
          value if memory_is_settled else jax.tree.map(memory_of(new, old), value, past)
        )
      else:
        fields[name] = jax.tree.map(visit, value, past, is_leaf=is_exchange)
    return new._replace(**fields)

  def memory_of(new, old):
    # Whoever skips the step itself has seen to its memory.
    own = taken | ~was_taken(new, old)
    return lambda x, y: jnp.where(own, x, y)

  return jax.tree.map(visit, after, before, is_leaf=is_exchange)
