"""Another order: a random subset that all workers share, then the largest of it (CocktailSGD, Wang et al., 2023).

    tx = random_then_top_k(share=0.1, density=0.1, axis_name="data")

rTop-k takes the largest first and a random subset of them, each worker its own. Here the workers draw one subset
together, which no message has to name: indices are of the subset, and shorter than those of the whole vector.
``docs/extending.md`` walks through it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import rtopk_jax


class SharedSubsetState(NamedTuple):
  """State of ``random_then_top_k``.

  Attributes:
    count: steps so far, the same on all workers; the subset follows from it.
    residual: what this worker has not sent yet, shape (d,).
    exchange: of the exchange of a subset.
  """

  count: jax.Array
  residual: jax.Array
  exchange: Any


def random_then_top_k(
  share: float, density: float, axis_name: str, seed: int = 0, **options: Any
) -> optax.GradientTransformationExtraArgs:
  """Sends the largest entries of a random subset, with error feedback.

  Args:
    share: of all entries, which the subset has.
    density: the share of the subset that is sent.
    axis_name: the mapped axis of the workers.
    seed: of the subsets.
    **options: of ``rtopk_jax.sparse_exchange``, such as ``wire`` and ``average``.

  Returns:
    A transformation that takes the place of an exchange.
  """
  exchange = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(density), axis_name, dense=False, seed=seed, **options
  )

  def init(params: Any) -> SharedSubsetState:
    size = sum(x.size for x in jax.tree.leaves(params))
    subset = jnp.zeros(max(1, round(share * size)), jnp.float32)
    count, residual = jnp.zeros((), jnp.int32), jnp.zeros(size, jnp.float32)
    return SharedSubsetState(count, residual, exchange.init(subset))

  def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
    del params
    gradient, restore = ravel_pytree(updates)
    vector = gradient.astype(jnp.float32) + state.residual
    # The memory of the subset before is not of these entries: what it kept lies in the residual.
    inner: Any = state.exchange._replace(residual=jnp.zeros_like(state.exchange.residual))
    # No worker's number is in the key.
    key = jax.random.fold_in(jax.random.key(seed), state.count)
    _, subset = jax.lax.top_k(jax.random.uniform(key, vector.shape), inner.residual.size)
    result: Any = exchange.update(vector[subset], inner, **extra_args)
    mean, inner = result
    kept = vector.at[subset].set(inner.residual.reshape(-1))
    everywhere = jnp.zeros(vector.shape, jnp.float32).at[subset].set(mean)
    return restore(everywhere), SharedSubsetState(state.count + 1, kept, inner)

  # A step that one worker's gradient spoils is no step: the residual stays as well.
  return rtopk_jax.lockstep(optax.GradientTransformationExtraArgs(init, update), axis_name)
