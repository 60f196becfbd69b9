"""What is looked at in a step, beside the loss: coverage, waiting, and norms of residual and update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rtopk_jax
from study.settings import Setting

# Of one step; a run records their means over every epoch.
NAMES = ("loss", "coverage", "residual", "update", "cosine", "wait")


class Watch(NamedTuple):
  """What is remembered for the sake of looking.

  Attributes:
    dense: momentum of the mean gradient, or that gradient: what the update would be without compression.
    sent_at: the step after which an entry of a worker was sent last, a leading axis of workers; () where
      there is no residual to see it by.
  """

  dense: Any
  sent_at: Any


def begin(setting: Setting, params: Any) -> Watch:
  """Before the first step."""
  dense = jax.tree.map(jnp.zeros_like, params)
  if setting.method == "none" or setting.memory == 0:
    return Watch(dense, ())
  rows = lambda p: jnp.zeros((setting.workers, *p.shape), jnp.int32)
  return Watch(dense, jax.tree.map(rows, params))


def _wait(gradients: Any, before: Any, after: Any, sent_at: Any) -> tuple[Any, jax.Array]:
  """When entries were sent last after this step, and how long ago it was for those sent now, on average.

  With an exact wire the residual of what is sent is zero; what never was anything else is left out.
  """
  step = optax.tree.get(after, "count")
  residual = lambda state: optax.tree.get(state, "residual")
  filled = jax.tree.map(lambda g, e: (g != 0) | (e != 0), gradients, residual(before))
  sent = jax.tree.map(lambda e, f: (e == 0) & f, residual(after), filled)
  total = lambda tree: sum(jnp.sum(x) for x in jax.tree.leaves(tree))
  waits = jax.tree.map(lambda s, t: jnp.where(s, step - t, 0).astype(jnp.float32), sent, sent_at)
  mean = total(waits) / jnp.maximum(total(sent), 1)
  return jax.tree.map(lambda s, t: jnp.where(s, step, t), sent, sent_at), mean


def look(
  setting: Setting, watch: Watch, gradients: Any, before: Any, after: Any, updates: Any
) -> tuple[Watch, dict[str, jax.Array]]:
  """One step.

  Args:
    setting: the run's.
    watch: what is remembered.
    gradients: of all workers, a leading axis of them; or what takes their place.
    before: the state of the exchange.
    after: the state after it.
    updates: what came out of the exchange and the momentum behind it.

  Returns:
    What is to be remembered, and the figures: ``coverage``, the share of all entries that some worker
    sent; ``residual``, its norm over the gradient's, workers' root mean square; ``update``, its norm
    over that of the dense update; ``cosine`` of the two; ``wait``, steps since a sent entry was sent
    last by the same worker.
  """
  momentum = setting.heavy if setting.exchange_every == "batch" else 0.0
  mean = jax.tree.map(lambda g: g.mean(0), gradients)
  dense = jax.tree.map(lambda m, g: momentum * m + g, watch.dense, mean)
  metrics = rtopk_jax.exchange_metrics(after)
  norm = optax.tree.norm
  ratio = lambda a, b: a / jnp.maximum(b, 1e-30)
  each = norm(gradients) / jnp.sqrt(jnp.float32(setting.workers))
  sent_at, wait = watch.sent_at, jnp.float32(0)
  if jax.tree.leaves(sent_at):
    sent_at, wait = _wait(gradients, before, after, sent_at)
  return Watch(dense, sent_at), {
    "coverage": metrics["union_coverage"],
    "residual": ratio(metrics["residual_norm"], each),
    "update": ratio(norm(updates), norm(dense)),
    "cosine": ratio(optax.tree.vdot(updates, dense), norm(updates) * norm(dense)),
    "wait": wait,
  }
