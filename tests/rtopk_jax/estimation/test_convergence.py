import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtopk_jax
from rtopk_jax import estimation

KEY = jax.random.key(5)
PROBLEM = estimation.LogisticRegression.random(seed=1, examples=200, dimension=40)
SELECTORS = {
  "top": rtopk_jax.top_k(0.1),
  "rtop": rtopk_jax.rtop_k(0.1),
  "random": rtopk_jax.random_k(0.1),
}


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_rtop_k_contracts_by_at_least_1_minus_k_over_d(seed, k, more):
  vector = np.random.default_rng(seed).standard_t(2, size=30)
  r = min(30, k + more)
  factor = estimation.contraction(vector, k, r)
  assert -1e-12 <= factor <= 1 - k / 30 + 1e-12
  assert abs(estimation.contraction(vector, k, 30) - (1 - k / 30)) < 1e-12
  assert abs(estimation.contraction(np.sign(vector), k, r) - (1 - k / 30)) < 1e-12
  assert estimation.contraction(vector, k, k) <= factor + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("subsample", [1, 2, 5, 10])
def test_measured_contraction_is_the_closed_form(subsample):
  vector = jax.random.normal(KEY, (300,)) ** 3
  selector = rtopk_jax.rtop_k(0.1, subsample)
  k, r = selector.counts(300)
  measured = estimation.measured_contractions(selector, vector, KEY, 1500)
  _, low, high = estimation.mean_interval(measured)
  expected = estimation.contraction(np.asarray(vector), k, r)
  assert low - 1e-6 <= expected <= high + 1e-6
  assert low <= 1 - k / 300
  assert (low > 0.85) == (r == 300)  # only random-k is as slow as the bound, 0.9


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("num_workers", [1, 5])
def test_memory_sgd_stays_below_its_bound(name, num_workers):
  shift = 7 / 0.1
  run = estimation.memory_sgd(
    PROBLEM, SELECTORS[name], KEY, num_workers=num_workers, steps=2000, shift=shift
  )
  steps = np.arange(1, 2001)
  bound = estimation.memory_sgd_bound(
    PROBLEM, steps, density=0.1, shift=shift, second_moment=run.second_moment
  )
  assert (run.suboptimality > -1e-6).all()
  assert (run.suboptimality <= bound).all()
  # It converges: from T = 200 on at least as fast as 1/T, up to noise.
  late = run.suboptimality[[199, 1999]]
  assert late[1] < 0.2 * late[0]
  assert run.second_moment < 2


def test_bound_against_a_recursion_of_its_parts():
  # The memory's part of the bound is E‖m_t‖² <= (4α/(α−4)) (d/k)² η_t² G². Minkowski gives
  # sqrt(M') <= sqrt(1 − k/d) (sqrt(M) + η G), which must stay below it.
  density, second, mu = 0.1, 2.0, PROBLEM.strong_convexity
  shift = 7 / density
  memory = 0.0
  for t in range(5000):
    rate = 8 / (mu * (shift + t))
    assert memory <= 20 / density**2 * rate**2 * second
    memory = (1 - density) * (memory**0.5 + rate * second**0.5) ** 2
  # And the bound itself, summed term by term from the descent inequality of the proof.
  t = np.arange(3000)
  weights, rates = (shift + t) ** 2, 8 / (mu * (shift + t))
  memories = 20 / density**2 * rates**2 * second
  smooth = PROBLEM.smoothness
  distance = np.sum(PROBLEM.minimiser() ** 2)
  total = mu * shift**3 / 8 * distance + np.sum(
    weights * (rates * second + (mu + 2 * smooth) * memories)
  )
  bound = estimation.memory_sgd_bound(
    PROBLEM, np.array(3000), density=density, shift=shift, second_moment=second
  )
  assert total / weights.sum() <= bound <= 1.01 * total / weights.sum()


def test_problem_has_the_constants_it_claims():
  point = np.random.default_rng(0).normal(size=40)
  chance = 1 / (1 + np.exp(-PROBLEM.features @ point))
  hessian = PROBLEM.features.T @ ((chance * (1 - chance))[:, None] * PROBLEM.features) / 200
  eigenvalues = np.linalg.eigvalsh(hessian + 0.1 * np.eye(40))
  assert eigenvalues[0] >= PROBLEM.strong_convexity - 1e-12
  assert eigenvalues[-1] <= PROBLEM.smoothness
  step = 1e-5 * np.eye(40)
  slope = [(PROBLEM.value(point + e) - PROBLEM.value(point - e)) / 2e-5 for e in step]
  gradients = np.asarray(PROBLEM.gradients(jnp.asarray(point, jnp.float32)))
  np.testing.assert_allclose(gradients.mean(0), slope, atol=1e-5)
  best = PROBLEM.minimiser()
  assert all(PROBLEM.value(best) < PROBLEM.value(best + 100 * e) for e in step)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: estimation.contraction(np.zeros(3), 1, 1), "not be zero"),
    (lambda: estimation.contraction(np.ones(3), 2, 1), "r must be at least 2, got 1"),
    (lambda: estimation.contraction(np.ones(3), 1, 4), "r must be at most d = 3, got 4"),
    (
      lambda: estimation.memory_sgd_bound(
        PROBLEM, np.array(5), density=0.1, shift=10.0, second_moment=1.0
      ),
      "shift must be at least 38",
    ),
    (
      lambda: estimation.memory_sgd(
        PROBLEM, SELECTORS["top"], KEY, num_workers=0, steps=1, shift=1.0
      ),
      "num_workers must be at least 1",
    ),
    (
      lambda: estimation.LogisticRegression.random(0, examples=0, dimension=1),
      "examples must be at least 1",
    ),
    (
      lambda: estimation.LogisticRegression.random(
        0, examples=1, dimension=1, strong_convexity=0.0
      ),
      "strong_convexity must be positive",
    ),
  ],
)
def test_bad_arguments_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
