"""Simulated nodes: the estimate of a scheme, and its squared errors over many runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from rtopk_jax import _checks
from rtopk_jax.estimation._models import SparseBernoulli
from rtopk_jax.estimation._schemes import Scheme

_CHUNK_ENTRIES = 2**22  # of the samples held at once, unless ``chunk`` says otherwise


def simulate(
  model: SparseBernoulli,
  scheme: Scheme,
  theta: jax.Array,
  key: jax.Array,
  num_nodes: int,
  *,
  chunk: int | None = None,
) -> jax.Array:
  r"""One run of n nodes: :math:`\hat\theta = \frac{M}{n} \sum_i C_i(X_i)` (paper, Section IV).

  Nodes are drawn a chunk at a time, so that memory holds chunk·d entries and not n·d; how large a chunk
  is changes nothing but the order of the sum.

  Args:
    model: draws and quantises the samples.
    scheme: what the server reads of one.
    theta: :math:`\theta`, shape (d,), float32.
    key: a PRNG key.
    num_nodes: n.
    chunk: nodes at a time; None takes about four million entries.

  Returns:
    The estimate of :math:`M\theta`, shape (d,), float32.

  Raises:
    TypeError: when ``num_nodes`` or ``chunk`` is not an integer.
    ValueError: when one is below 1, or :math:`\theta` is not in :math:`\Theta`.

  Examples:
    >>> import jax
    >>> from rtopk_jax import estimation
    >>> model = estimation.SparseBernoulli(dimension=1000, sparsity=20)
    >>> theta = model.uniform(jax.random.key(0))
    >>> scheme = estimation.RandomOnes(estimation.max_ones(1000, bits=100))
    >>> estimate = estimation.simulate(model, scheme, theta, jax.random.key(1), num_nodes=50)
    >>> estimate.shape, 10 < float(estimate.sum()) < 30
    ((1000,), True)
  """
  chunk = _check_chunk(model, num_nodes, chunk)
  theta = _check_theta(model, theta)
  return _simulate(model, scheme, theta, key, jnp.int32(num_nodes), chunk)


def squared_errors(
  model: SparseBernoulli,
  scheme: Scheme,
  theta: jax.Array,
  key: jax.Array,
  num_nodes: int,
  repeats: int,
  *,
  chunk: int | None = None,
) -> np.ndarray:
  r""":math:`\|\hat\theta - M\theta\|^2` of independent runs; their mean estimates the risk.

  Args:
    model: draws and quantises the samples.
    scheme: what the server reads of one.
    theta: :math:`\theta`, shape (d,), float32.
    key: a PRNG key.
    num_nodes: n.
    repeats: runs.
    chunk: nodes at a time, as in ``simulate``.

  Returns:
    Shape (repeats,), float64.

  Raises:
    TypeError: when a count is not an integer.
    ValueError: when one is below 1, or :math:`\theta` is not in :math:`\Theta`.

  Examples:
    >>> import jax
    >>> from rtopk_jax import estimation
    >>> model = estimation.SparseBernoulli(dimension=100, sparsity=5)
    >>> theta = model.uniform(jax.random.key(0))
    >>> scheme = estimation.Centralized()
    >>> errors = estimation.squared_errors(model, scheme, theta, jax.random.key(1), 10, repeats=200)
    >>> bool(abs(errors.mean() / scheme.risk(theta, 10) - 1) < 0.1)
    True
  """
  chunk = _check_chunk(model, num_nodes, chunk)
  _checks.at_least("repeats", repeats, 1, integer=True)
  theta = _check_theta(model, theta)
  keys = jax.random.split(key, repeats)
  errors = _squared_errors(model, scheme, theta, keys, jnp.int32(num_nodes), chunk)
  return np.asarray(errors, np.float64)


def _check_theta(model: SparseBernoulli, theta: jax.Array) -> jax.Array:
  if not isinstance(theta, Tracer):
    model.check(theta)
  return jnp.asarray(theta, jnp.float32)


def _check_chunk(model: SparseBernoulli, num_nodes: int, chunk: int | None) -> int:
  _checks.at_least("num_nodes", num_nodes, 1, integer=True)
  if chunk is None:
    chunk = max(1, _CHUNK_ENTRIES // model.dimension)
  _checks.at_least("chunk", chunk, 1, integer=True)
  return min(chunk, num_nodes)


# The number of nodes is traced: a program serves all of them.
@functools.partial(jax.jit, static_argnames=("model", "scheme", "chunk"))
def _simulate(model, scheme, theta, key, num_nodes, chunk):
  def node(i):
    # Two keys by one call: most of the time to compile goes to random bits.
    sample_key, scheme_key = jax.vmap(jax.random.fold_in, (None, 0))(key, 2 * i + jnp.arange(2))
    message = scheme(scheme_key, model.quantise(model.sample(sample_key, theta)))
    return jnp.where(i < num_nodes, message, 0)

  def add(i, total):
    return total + jax.vmap(node)(i * chunk + jnp.arange(chunk)).sum(0)

  chunks = (num_nodes + chunk - 1) // chunk
  total = lax.fori_loop(0, chunks, add, jnp.zeros_like(theta))
  return total * (jnp.float32(model.scale) / num_nodes.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("model", "scheme", "chunk"))
def _squared_errors(model, scheme, theta, keys, num_nodes, chunk):
  def run(key):
    estimate = _simulate(model, scheme, theta, key, num_nodes, chunk)
    return jnp.sum(jnp.square(estimate - jnp.float32(model.scale) * theta))

  return lax.map(run, keys)
