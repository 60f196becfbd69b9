"""Algorithm 1 of the paper and the equations of DGC in plain NumPy, written for reading, not for speed.

It shares no code with the library. Only the random choice comes from outside, as a function ``draw``;
that a draw is a k-subset of the r largest entries is checked here, against this module's own vector.

All arithmetic is float32, one rounding an operation, in the order of the equations.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

# draw(vectors (n, d), step, group) -> indices (n, k)
Draw = Callable[[np.ndarray, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The options that the equations know; names as in ``sparse_exchange``.

  ``subsample`` is r/k as a number; ``dense`` says for each leaf whether it is averaged as it is.
  """

  density: float | Sequence[float]
  subsample: float
  dense: Sequence[bool]
  steps_per_stage: int = 1
  unbiased: bool = False
  scope: str = "global"
  average: str = "workers"
  error_feedback: bool = True
  momentum: float = 0.0
  nesterov: bool = False
  momentum_masking: bool = True
  clip_norm: float | None = None
  memory_decay: float = 1.0
  memory_dtype: type = np.float32

  def density_of(self, step: int) -> float:
    if isinstance(self.density, float):
      return self.density
    return self.density[min(step // self.steps_per_stage, len(self.density) - 1)]

  def counts(self, step: int, d: int) -> tuple[int, int]:
    k = max(1, round(self.density_of(step) * d))
    return k, d if math.isinf(self.subsample) else min(d, round(self.subsample * k))


@dataclasses.dataclass
class Step:
  """What a step leaves behind, a list over leaves each: (shape) updates, (n, shape) memory."""

  updates: list[np.ndarray]
  residual: list[np.ndarray]
  momentum: list[np.ndarray]
  sent: list[np.ndarray]


def magnitude_bits(values: np.ndarray) -> np.ndarray:
  """Magnitudes as integers: equal ones are equal, also where arithmetic would flush subnormals to zero."""
  values = np.ascontiguousarray(values)
  if np.issubdtype(values.dtype, np.integer):
    return np.abs(values.astype(np.int64))
  bits = 8 * values.dtype.itemsize
  return values.view(f"u{values.dtype.itemsize}").astype(np.int64) & ((1 << (bits - 1)) - 1)


def largest(vector: np.ndarray, count: int) -> np.ndarray:
  """The indices of the ``count`` entries of largest magnitude, ascending; of equal ones the lowest."""
  return np.sort(np.argsort(-magnitude_bits(vector), kind="stable")[:count])


def keep_largest(array: np.ndarray, count: int) -> np.ndarray:
  """An array with zeros for all but its ``count`` entries of largest magnitude."""
  flat = array.reshape(-1)
  kept, chosen = np.zeros_like(flat), largest(flat, count)
  kept[chosen] = flat[chosen]
  return kept.reshape(array.shape)


def simulate(recipe: Recipe, gradients: list[np.ndarray], draw: Draw) -> list[Step]:
  """Runs Algorithm 1.

  Args:
    recipe: the options.
    gradients: a leaf's gradients of all steps and workers, shape (steps, n, *shape), each.
    draw: the random choice.

  Returns:
    A ``Step`` each.
  """
  steps, n = gradients[0].shape[:2]
  shapes = [g.shape[2:] for g in gradients]
  sizes = [math.prod(shape) for shape in shapes]
  residual = [np.zeros((n, size), recipe.memory_dtype) for size in sizes]
  momentum = [np.zeros((n, size), recipe.memory_dtype) for size in sizes]
  compressed = [i for i, size in enumerate(sizes) if size and not recipe.dense[i]]
  groups = [[i] for i in compressed] if recipe.scope == "leaf" else [compressed] * bool(compressed)
  history = []
  for step in range(steps):
    local = [g[step].reshape(n, -1).astype(np.float32) for g in gradients]
    if recipe.clip_norm is not None:
      local = _clip(local, np.float32(recipe.clip_norm / math.sqrt(n)))
    direction, u = [], []
    m = np.float32(recipe.momentum)
    for i, g in enumerate(local):
      u.append(m * momentum[i].astype(np.float32) + g)
      direction.append(g + m * u[i] if recipe.nesterov else u[i])
    updates = [np.zeros(size, np.float32) for size in sizes]
    sent = [np.zeros((n, size), np.float32) for size in sizes]
    kept = [np.zeros((n, size), np.float32) for size in sizes]
    for i in range(len(sizes)):
      if recipe.dense[i]:
        updates[i] = _sum_over_workers(direction[i]) / np.float32(n)
    for number, leaves in enumerate(groups):
      v = np.concatenate([direction[i] for i in leaves], axis=1)
      trace = np.concatenate([u[i] for i in leaves], axis=1)
      if recipe.error_feedback:
        e = np.concatenate([residual[i].astype(np.float32) for i in leaves], axis=1)
        v = np.float32(recipe.memory_decay) * e + v
      k, r = recipe.counts(step, v.shape[1])
      chosen = _choose(v, k, r, step, number, draw)
      message, senders = np.zeros_like(v), np.zeros(v.shape[1], np.float32)
      for worker in range(n):
        message[worker, chosen[worker]] = v[worker, chosen[worker]]
        senders[chosen[worker]] += 1
        if recipe.error_feedback and recipe.momentum_masking:
          trace[worker, chosen[worker]] = 0
      rest = v - message
      if recipe.unbiased:
        message = message * np.float32(r / k)
      total = _sum_over_workers(message)
      if recipe.average == "workers":
        total = total / np.float32(n)
      elif recipe.average == "senders":
        total = total / np.maximum(senders, np.float32(1))
      ends = np.cumsum([sizes[i] for i in leaves])[:-1]
      for whole, parts in ((total, updates), (rest, kept), (trace, u), (message, sent)):
        for i, part in zip(leaves, np.split(whole, ends, axis=-1), strict=True):
          parts[i] = part
    if recipe.error_feedback:
      residual = [x.astype(recipe.memory_dtype) for x in kept]
    if recipe.momentum:
      momentum = [x.astype(recipe.memory_dtype) for x in u]
    in_shape = lambda xs, lead: [
      x.reshape(*lead, *shape) for x, shape in zip(xs, shapes, strict=True)
    ]
    history.append(
      Step(
        [x.astype(g.dtype) for x, g in zip(in_shape(updates, ()), gradients, strict=True)],
        in_shape(residual, (n,)),
        in_shape(momentum, (n,)),
        in_shape(sent, (n,)),
      )
    )
  return history


def _choose(v: np.ndarray, k: int, r: int, step: int, group: int, draw: Draw) -> np.ndarray:
  if k == r:
    return np.stack([largest(row, r) for row in v])
  drawn = draw(v, step, group)
  assert drawn.shape == (v.shape[0], k)
  for row, indices in zip(v, drawn, strict=True):
    assert len(set(indices.tolist())) == k
    assert set(indices.tolist()) <= set(largest(row, r).tolist())
  return drawn


def _clip(local: list[np.ndarray], limit: np.float32) -> list[np.ndarray]:
  square = sum(np.sum(np.square(g), axis=1, dtype=np.float32) for g in local)
  norm = np.sqrt(square)
  scale = np.where(norm > limit, limit / norm, np.float32(1))
  return [g * scale[:, None] for g in local]


def _sum_over_workers(rows: np.ndarray) -> np.ndarray:
  total = np.zeros_like(rows[0])
  for row in rows:
    total = total + row
  return total
