"""Real gradients: how well the sparse model fits them, taken along a training run."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from rtopk_jax import _checks
from rtopk_jax.estimation._networks import Task


class GradientSample(NamedTuple):
  """Gradients at one point of a training run.

  Attributes:
    step: how many steps came before.
    workers: minibatch gradients, shape (draws, n, d): n workers at one point, drawn several times.
    held_out: the gradient of a large batch that is not trained on, shape (d,).
  """

  step: int
  workers: np.ndarray
  held_out: np.ndarray


def gradient_samples(
  task: Task,
  steps: Sequence[int],
  *,
  num_workers: int,
  batch: int,
  draws: int,
  seed: int = 0,
) -> list[GradientSample]:
  """Trains a network by momentum SGD and takes gradients on the way.

  Args:
    task: the network and its data.
    steps: at which steps gradients are taken, ascending.
    num_workers: n, of the gradients taken.
    batch: examples of a worker's minibatch; training itself uses two of them a step.
    draws: how many times n minibatches are drawn at each of the steps.
    seed: of all minibatches.

  Returns:
    One ``GradientSample`` for each of the steps.

  Raises:
    TypeError: when a count is not an integer.
    ValueError: when one is out of range.
  """
  for name, value in (("num_workers", num_workers), ("batch", batch), ("draws", draws)):
    _checks.at_least(name, value, 1, integer=True)
  for before, step in zip((0, *steps), steps, strict=False):
    _checks.at_least("steps", step, before, integer=True)
  flat, restore = jax.flatten_util.ravel_pytree(task.params)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(task.learning_rate, momentum=0.9))
  rng = np.random.default_rng(seed)
  flat_loss = lambda flat, inputs, targets: task.loss(restore(flat), inputs, targets)
  gradient = jax.jit(jax.grad(flat_loss))

  def minibatch(size):
    index = rng.integers(len(task.inputs), size=size)
    return jnp.asarray(task.inputs[index]), jnp.asarray(task.targets[index])

  @jax.jit
  def train(flat, state, inputs, targets):
    updates, state = tx.update(jax.grad(flat_loss)(flat, inputs, targets), state)
    return optax.apply_updates(flat, updates), state

  state, samples, now = tx.init(flat), [], 0
  for step in steps:
    for _ in range(step - now):
      flat, state = train(flat, state, *minibatch(2 * batch))
    now = step
    workers = np.stack([gradient(flat, *minibatch(batch)) for _ in range(draws * num_workers)])
    held_out = np.asarray(gradient(flat, *map(jnp.asarray, task.held_out)))
    samples.append(GradientSample(step, workers.reshape(draws, num_workers, -1), held_out))
  return samples


def energy_share(gradients: npt.ArrayLike, counts: npt.ArrayLike) -> np.ndarray:
  r"""The share of the squared norm in the r largest entries, :math:`\|\mathrm{top}_r(g)\|^2 / \|g\|^2`.

  Args:
    gradients: shape (…, d), none of them zero.
    counts: r, each from 1 to d.

  Returns:
    Shape (…, len(counts)), float64.

  Raises:
    ValueError: when a count is out of range.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> estimation.energy_share(np.array([3.0, 0.0, -4.0]), [1, 2]).tolist()
    [0.64, 1.0]
  """
  squares = np.square(np.asarray(gradients, np.float64))
  share = np.cumsum(-np.sort(-squares, axis=-1), axis=-1)
  return share[..., _check_counts(counts, squares.shape[-1]) - 1] / share[..., -1:]


def top_agreement(gradients: npt.ArrayLike, counts: npt.ArrayLike) -> np.ndarray:
  r"""How far workers agree on what is large: the mean over pairs of :math:`|T_i \cap T_j| / r`.

  With :math:`T_i` the r largest entries of worker i's gradient. Independent choices would agree on r/d.

  Args:
    gradients: shape (n, d), n at least 2.
    counts: r, each from 1 to d.

  Returns:
    Shape (len(counts),), float64.

  Raises:
    ValueError: when a count or the shape is out of range.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> estimation.top_agreement(np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]]), [1, 2]).tolist()
    [1.0, 0.5]
  """
  gradients = np.asarray(gradients)
  if gradients.ndim != 2 or len(gradients) < 2:
    raise ValueError(f"gradients must have shape (n, d) with n >= 2, got {gradients.shape}.")
  n, d = gradients.shape
  order = np.argsort(-np.abs(gradients), axis=1, kind="stable")
  result = []
  for r in _check_counts(counts, d):
    holders = np.bincount(order[:, :r].ravel(), minlength=d)
    # A coordinate that m workers hold is shared by m(m − 1) ordered pairs of them.
    result.append((holders * (holders - 1)).sum() / (n * (n - 1) * r))
  return np.array(result)


def _check_counts(counts: npt.ArrayLike, d: int) -> np.ndarray:
  result = np.asarray(counts)
  if result.ndim != 1 or not np.issubdtype(result.dtype, np.integer):
    raise TypeError(f"counts must be a sequence of integers, got {counts!r}.")
  if result.size and (result.min() < 1 or result.max() > d):
    raise ValueError(f"counts must be from 1 to d = {d}, got {counts}.")
  return result
