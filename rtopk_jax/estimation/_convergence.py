r"""Why the memory converges: the contraction of a selector, and memory SGD on a convex problem.

After Stich, Cordonnier and Jaggi, "Sparsified SGD with Memory", 2018, which the paper builds on
(Section I): what they ask of a selector C is :math:`E\|x - C(x)\|^2 \le (1 - k/d)\|x\|^2`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax import lax

import rtopk_jax
from rtopk_jax import _checks
from rtopk_jax.estimation._convex import LogisticRegression

_ALPHA = 5.0  # of the theorem, free above 4


def contraction(vector: npt.ArrayLike, k: int, r: int) -> float:
  r""":math:`E\|x - C(x)\|^2 / \|x\|^2` of rTop-k, in closed form.

  .. math::
    1 - \frac{k}{r} \frac{\|\mathrm{top}_r(x)\|^2}{\|x\|^2} \le 1 - \frac{k}{d}

  with equality for random-k (r = d), and for any r where all entries are equally large.

  Args:
    vector: x, shape (d,), not zero.
    k: entries sent.
    r: entries drawn from, k <= r <= d.

  Returns:
    A number in [0, 1).

  Raises:
    TypeError: when k or r is not an integer.
    ValueError: when shapes or counts are out of range or the vector is zero.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> x = np.array([3.0, 1.0, 1.0, 1.0])
    >>> estimation.contraction(x, k=1, r=1), estimation.contraction(x, k=1, r=4)
    (0.25, 0.75)
  """
  squares = np.sort(np.square(np.asarray(vector, np.float64)))[::-1]
  if squares.ndim != 1 or not squares.any():
    raise ValueError(f"vector must have one dimension and not be zero, got shape {squares.shape}.")
  _checks.at_least("k", k, 1, integer=True)
  _checks.at_least("r", r, k, integer=True)
  if r > squares.size:
    raise ValueError(f"r must be at most d = {squares.size}, got {r}.")
  return float(1 - k / r * squares[:r].sum() / squares.sum())


def measured_contractions(
  selector: rtopk_jax.Selector, vector: jax.Array, key: jax.Array, repeats: int
) -> np.ndarray:
  r""":math:`\|x - C(x)\|^2 / \|x\|^2` of independent selections.

  Args:
    selector: C, with an r/k of its own.
    vector: x, shape (d,), float32, not zero.
    key: a PRNG key.
    repeats: selections.

  Returns:
    Shape (repeats,), float64.

  Raises:
    ValueError: when the selector does not fit the vector.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> from rtopk_jax import estimation
    >>> selector = rtopk_jax.rtop_k(0.25, subsample=2)
    >>> estimation.measured_contractions(selector, jnp.ones(8), jax.random.key(0), 2).tolist()
    [0.75, 0.75]
  """
  left = jax.vmap(lambda key: vector - selector(vector, key).to_dense())
  rest = np.asarray(left(jax.random.split(key, repeats)), np.float64)
  return (rest**2).sum(1) / float(np.sum(np.square(np.asarray(vector, np.float64))))


class MemorySgdRun(NamedTuple):
  r"""What happened in a run of memory SGD.

  Attributes:
    suboptimality: :math:`f(\bar x_T) - f^*` after T = 1, …, steps, shape (steps,).
    second_moment: :math:`G^2`, the largest :math:`E_i\|\nabla f_i(x_t)\|^2` at a point it visited.

  Examples:
    >>> import jax, rtopk_jax
    >>> from rtopk_jax import estimation
    >>> problem = estimation.LogisticRegression.random(seed=0, examples=50, dimension=10)
    >>> run = estimation.memory_sgd(
    ...   problem, rtopk_jax.top_k(0.5), jax.random.key(0), num_workers=2, steps=20, shift=10.0)
    >>> run.suboptimality.shape, run.second_moment > 0
    ((20,), True)
  """

  suboptimality: np.ndarray
  second_moment: float


def memory_sgd(
  problem: LogisticRegression,
  selector: rtopk_jax.Selector,
  key: jax.Array,
  *,
  num_workers: int,
  steps: int,
  shift: float,
) -> MemorySgdRun:
  r"""SGD with a memory: each worker draws one example a step, ``sparse_exchange`` does the rest.

  With :math:`\eta_t = 8 / (\mu (a + t))`, from :math:`x_0 = 0`,

  .. math::
    v_i = m_i + \eta_t \nabla f_i(x_t), \quad m_i \leftarrow v_i - C(v_i), \quad
    x_{t+1} = x_t - \frac1n \sum_i C(v_i)

  and the averages :math:`\bar x_T = \sum_t w_t x_t / \sum_t w_t` have weights :math:`w_t = (a + t)^2`.

  Args:
    problem: f.
    selector: C.
    key: draws the examples; the selector's draws are seeded by it too.
    num_workers: n.
    steps: T.
    shift: a.

  Returns:
    ``MemorySgdRun``.

  Raises:
    TypeError: when a count is not an integer.
    ValueError: when one is below 1.

  Examples:
    >>> import jax, rtopk_jax
    >>> from rtopk_jax import estimation
    >>> problem = estimation.LogisticRegression.random(seed=0, examples=100, dimension=20)
    >>> run = estimation.memory_sgd(
    ...   problem, rtopk_jax.rtop_k(0.1), jax.random.key(0), num_workers=5, steps=300, shift=100.0)
    >>> bool(run.suboptimality[-1] < 0.2 * run.suboptimality[0])
    True
  """
  _checks.at_least("num_workers", num_workers, 1, integer=True)
  _checks.at_least("steps", steps, 1, integer=True)
  _checks.at_least("shift", shift, 1)
  averages, second = _run(problem, selector, key, num_workers, steps, float(shift))
  values = [problem.value(average) for average in np.asarray(averages, np.float64)]
  optimum = problem.value(problem.minimiser())
  return MemorySgdRun(np.array(values) - optimum, float(np.max(second)))


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 4, 5))
def _run(problem, selector, key, num_workers, steps, shift):
  rate = lambda t: 8 / (problem.strong_convexity * (shift + jnp.asarray(t, jnp.float32)))
  seed_key, example_key = jax.random.split(key)
  seed = jax.random.randint(seed_key, (), 0, 2**31 - 1)
  # The rate comes before the exchange: the memory holds steps, not gradients, as in the theorem.
  tx = optax.chain(
    optax.scale_by_learning_rate(rate),
    rtopk_jax.sparse_exchange(selector, "workers", dense=False, seed=seed),
  )
  point = jnp.zeros(problem.features.shape[1], jnp.float32)
  axes = rtopk_jax.state_axes(tx, point)
  over = functools.partial(jax.vmap, axis_name="workers", axis_size=num_workers)
  state = over(tx.init, in_axes=None, out_axes=axes)(point)
  exchange = over(tx.update, in_axes=(0, axes), out_axes=(None, axes))

  def step(carry, t):
    point, average, weights, state = carry
    weight = jnp.square(1 + t.astype(jnp.float32) / shift)
    weights = weights + weight
    average = average + weight / weights * (point - average)
    gradients = problem.gradients(point)
    second = jnp.mean(jnp.sum(jnp.square(gradients), axis=1))
    drawn = jax.random.randint(
      jax.random.fold_in(example_key, t), (num_workers,), 0, len(gradients)
    )
    update, state = exchange(gradients[drawn], state)
    return (point + update, average, weights, state), (average, second)

  _, (averages, seconds) = lax.scan(step, (point, point, jnp.float32(0), state), jnp.arange(steps))
  return averages, seconds


def memory_sgd_bound(
  problem: LogisticRegression,
  steps: npt.ArrayLike,
  *,
  density: float,
  shift: float,
  second_moment: float,
) -> np.ndarray:
  r"""The bound on :math:`E f(\bar x_T) - f^*` (Stich et al., Theorem 2.4).

  .. math::
    \frac{4 T (T + 2a)}{\mu S_T} G^2 + \frac{\mu a^3}{8 S_T} \|x_0 - x^*\|^2
    + \frac{64 T (1 + 2L/\mu)}{\mu S_T} \frac{4 \alpha}{\alpha - 4} \frac{d^2}{k^2} G^2,
    \qquad S_T = \sum_{t<T} (a + t)^2

  for a problem that is :math:`\mu`-strongly convex and L-smooth, :math:`\alpha = 5`, and a shift

  .. math::
    a \ge \frac{(\alpha + 1) d/k + \rho}{\rho + 1}, \qquad \rho = \frac{4\alpha}{(\alpha - 4)(\alpha + 1)^2}

  It is stated for one worker. For n workers whose updates are averaged it holds too: the mean of the
  memories has at most the mean of their squared norms (Jensen), and so has the mean gradient.

  Args:
    problem: f, with x_0 = 0.
    steps: T, any shape, at least 1.
    density: k/d.
    shift: a.
    second_moment: :math:`G^2`.

  Returns:
    The bounds, same shape, float64.

  Raises:
    TypeError: when an argument is not a number.
    ValueError: when one is out of range; of the shift the error names the smallest.

  Examples:
    >>> import numpy as np
    >>> from rtopk_jax import estimation
    >>> problem = estimation.LogisticRegression.random(seed=0, examples=100, dimension=20)
    >>> bound = lambda t: estimation.memory_sgd_bound(
    ...   problem, np.array(t), density=0.1, shift=70.0, second_moment=1.0)
    >>> bool(1.9 < bound(10**8) / bound(2 * 10**8) < 2.1)  # of order 1/T in the end
    True
  """
  _checks.density("density", density)
  _checks.at_least("second_moment", second_moment, 0)
  rho = 4 * _ALPHA / ((_ALPHA - 4) * (_ALPHA + 1) ** 2)
  _checks.at_least("shift", shift, ((_ALPHA + 1) / density + rho) / (rho + 1))
  steps = np.asarray(steps, np.float64)
  mu, smooth, a = problem.strong_convexity, problem.smoothness, shift
  # Σ_{t<T} (a + t)²
  total = steps * a**2 + a * steps * (steps - 1) + (steps - 1) * steps * (2 * steps - 1) / 6
  distance = float(np.sum(problem.minimiser() ** 2))
  noise = 4 * steps * (steps + 2 * a) / mu * second_moment
  start = mu * a**3 / 8 * distance
  memory = 64 * steps * (1 + 2 * smooth / mu) / mu * 4 * _ALPHA / (_ALPHA - 4) / density**2
  return (noise + start + memory * second_moment) / total
