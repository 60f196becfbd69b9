"""One-bit messages in the Gaussian location model: why its bits must grow linearly in d."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import rtopk_jax
from rtopk_jax import _checks
from rtopk_jax.estimation._models import GaussianLocation


def gaussian_squared_errors(
  model: GaussianLocation,
  theta: jax.Array,
  key: jax.Array,
  num_nodes: int,
  bits: int | None,
  repeats: int,
) -> np.ndarray:
  r"""Squared errors of estimates from the signs of k random coordinates of every node.

  With :math:`m_j` the nodes that sent coordinate j and :math:`u_j` those among them with
  :math:`X_{ij} > 0`,

  .. math::
    \hat\theta_j = \sigma\, \Phi^{-1}\Big( \frac{u_j + 1/2}{m_j + 1} \Big) \ \text{clipped to}\ [-B, B]

  of which a sparse model keeps the s entries of largest magnitude. Each coordinate is seen by nk/d nodes
  only, so that the risk is of order :math:`\sigma^2 d^2 / (n k)`, and for the sparse model
  :math:`\sigma^2 s d / (n k)` once the support is found: k must grow like d before the centralized risk
  is reached, where the sparse Bernoulli model needs s log d (paper, Sections II-C and II-D).

  Args:
    model: draws the samples.
    theta: :math:`\theta`, shape (d,).
    key: a PRNG key.
    num_nodes: n.
    bits: k <= d, one for a coordinate, chosen by shared randomness; None: the server sees the samples
      and takes their mean.
    repeats: independent runs.

  Returns:
    :math:`\|\hat\theta - \theta\|^2`, shape (repeats,), float64.

  Raises:
    TypeError: when a count is not an integer.
    ValueError: when one is out of range.

  Examples:
    >>> import jax
    >>> from rtopk_jax import estimation
    >>> model = estimation.GaussianLocation(dimension=50)
    >>> theta = model.parameter(jax.random.key(0))
    >>> run = lambda bits: estimation.gaussian_squared_errors(
    ...   model, theta, jax.random.key(1), num_nodes=100, bits=bits, repeats=4).mean()
    >>> bool(run(None) < run(50) < run(10))
    True
  """
  _checks.at_least("num_nodes", num_nodes, 1, integer=True)
  _checks.at_least("repeats", repeats, 1, integer=True)
  if bits is not None:
    _checks.at_least("bits", bits, 1, integer=True)
    if bits > model.dimension:
      raise ValueError(f"bits must be at most dimension={model.dimension}, got {bits}.")
  errors = _squared_errors(model, jnp.asarray(theta), key, num_nodes, bits, repeats)
  return np.asarray(errors, np.float64)


@functools.partial(jax.jit, static_argnames=("model", "num_nodes", "bits", "repeats"))
def _squared_errors(model, theta, key, num_nodes, bits, repeats):
  def node(key):
    sample_key, choice_key = jax.random.split(key)
    sample = model.sample(sample_key, theta)
    if bits is None:
      return jnp.ones_like(sample), sample
    chosen = rtopk_jax.random_k(bits / model.dimension)(
      jnp.ones_like(sample), choice_key
    ).to_dense()
    return chosen, jnp.where(sample > 0, chosen, 0)

  def run(key):
    total = lax.map(node, jax.random.split(key, num_nodes), batch_size=64)
    counts, sums = (x.sum(0) for x in total)
    estimate = sums / counts
    if bits is not None:
      shares = (sums + 0.5) / (counts + 1)
      estimate = jnp.float32(model.sigma) * jax.scipy.stats.norm.ppf(shares)
      estimate = jnp.clip(estimate, -model.bound, model.bound)
    if model.sparsity is not None:
      top = rtopk_jax.top_k(model.sparsity / model.dimension)
      estimate = top(estimate, key).to_dense()
    return jnp.sum(jnp.square(estimate - theta))

  return lax.map(run, jax.random.split(key, repeats))
