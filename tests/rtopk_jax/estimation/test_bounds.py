import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtopk_jax import estimation

GRID = [
  (d, s, k)
  for d in (64, 1000, 8000)
  for s in (2, 5, 30)
  for k in sorted({2 * math.ceil(math.log2(d + 1)), 60, 150, int(s * math.log2(d))})
  if 2 * math.ceil(math.log2(d + 1)) <= k <= s * math.log2(d)
]


@pytest.mark.parametrize(("d", "s", "k"), GRID)
def test_risk_lies_between_the_theorems(d, s, k):
  model = estimation.SparseBernoulli(d, s)
  ones = estimation.max_ones(d, k)
  key = jax.random.key(d + s + k)
  n = math.ceil(d * math.log2(d / s) / k)
  risks = []
  for theta in (model.uniform(key), model.power_law(key), model.block(key), model.cube(key)):
    risk = estimation.RandomOnes(ones).risk(theta, n)
    assert risk <= estimation.inequality_4(theta, ones, n)
    risks.append(risk)
  assert max(risks) <= estimation.upper_bound(d, s, n, k)
  # Theorem 2's constant is not known; the scheme's worst risk is within it and log d / log(d/s).
  assert max(risks) >= 0.1 * estimation.lower_bound(d, s, n, k)


@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans())
@settings(max_examples=100, deadline=None)
def test_exact_risk_never_exceeds_inequality_4(seed, ones, sparse):
  rng = np.random.default_rng(seed)
  theta = rng.random(30) ** (6 if sparse else 1)
  assert estimation.RandomOnes(ones).risk(theta, 3) <= estimation.inequality_4(theta, ones, 3)
  centralized = estimation.Centralized().risk(theta, 3)
  assert estimation.RandomOnes(ones).risk(theta, 3) >= centralized * (1 - 1e-12)


@given(st.integers(2, 10**6), st.floats(2, 1e4))
@settings(max_examples=200, deadline=None)
def test_the_constant_of_theorem_1_follows_from_the_proof(d, ratio):
  # (s + (s² + s)/k') with the proof's k' = floor(k / log d) − 1, at the worst s allowed.
  log_d = math.log2(d)
  k = math.ceil(ratio * log_d)
  proof_ones = math.floor(k / log_d) - 1
  for s in (max(2, k / log_d), 3 * k / log_d + 2):
    value = s + (s**2 + s) / proof_ones
    assert value <= estimation.THEOREM_1_CONSTANT * s**2 * log_d / k * (1 + 1e-9)


def test_inequality_4_is_the_expectation_it_says():
  theta = np.array([0.2, 0.9, 0.5])
  total = np.random.default_rng(0).random((400_000, 3)) < theta
  squares = total.sum(1) ** 2
  np.testing.assert_allclose(
    estimation.inequality_4(theta, 2, 10), (1.6 + squares.mean() / 2) / 10, rtol=5e-3
  )


@pytest.mark.parametrize(
  ("function", "arguments", "message"),
  [
    ("upper_bound", (1024, 20, 10, 19), r"Theorem 1 needs 2·log2\(d\) <= k, got 20 <= 19"),
    ("upper_bound", (1024, 20, 10, 201), r"Theorem 1 needs k <= s·log2\(d\), got 201 <= 200"),
    ("lower_bound", (1024, 513, 10, 10), "Theorem 2 needs s <= d/2, got 513 <= 512"),
    ("lower_bound", (1024, 16, 10, 100), r"Theorem 2 needs d·log2\(d/s\) <= n·k, got 6144 <= 1000"),
    ("upper_bound", (1024, 0, 10, 30), "sparsity must be in"),
    ("upper_bound", (1024, 20, 0, 30), "num_nodes must be at least 1"),
    ("score_norm_bound", (10, 6), "s <= d/2"),
    ("inequality_4", (np.full(3, 0.1), 0, 1), "max_ones must be at least 1"),
    ("score_orlicz_norm", (0.0,), r"theta must have entries in \(0, 1\)"),
    ("score_subgaussian_norm", (1.0,), r"theta must have entries in \(0, 1\)"),
  ],
)
def test_conditions_that_fail_are_named(function, arguments, message):
  with pytest.raises(ValueError, match=message):
    getattr(estimation, function)(*arguments)


def test_conditions_hold_on_their_border():
  assert estimation.upper_bound(1024, 20, 10, 20) > 0
  assert estimation.upper_bound(1024, 20, 10, 200) > 0
  assert estimation.lower_bound(1024, 512, 1024, 1) > 0


@pytest.mark.parametrize(
  ("d", "s"), [(2, 1), (4, 1.5), (100, 50), (1000, 10), (10**6, 10), (10**9, 3)]
)
def test_score_norm_bound_holds_over_the_cube(d, s):
  theta = np.linspace(s / (2 * d), s / d, 2001)
  exact = estimation.score_orlicz_norm(theta)
  in_all_directions = estimation.score_subgaussian_norm(theta)
  bound = estimation.score_norm_bound(d, s)
  assert (exact <= in_all_directions).all()
  assert (in_all_directions <= bound).all()
  assert np.argmax(in_all_directions) == 0  # largest at s/2d, as the derivation says
  assert bound < 2.5 * exact.max()  # and of the right order


@pytest.mark.parametrize("theta", [1e-6, 0.01, 0.3, 0.5, 0.9])
def test_orlicz_norm_solves_its_equation(theta):
  norm = estimation.score_orlicz_norm(theta)
  up, down = 1 / theta, 1 / (1 - theta)
  mean = theta * math.exp((up / norm) ** 2) + (1 - theta) * math.exp((down / norm) ** 2)
  assert math.isclose(mean, 2, rel_tol=1e-6)


def test_score_norm_bound_holds_in_every_direction():
  # All 2¹⁰ samples, so that the expectation is exact; bisection for the norm of <u, S>.
  d, s = 10, 3
  rng = np.random.default_rng(0)
  samples = (np.arange(2**d)[:, None] >> np.arange(d)) & 1
  for _ in range(50):
    theta = rng.uniform(s / (2 * d), s / d, d)
    direction = rng.normal(size=d) * (rng.random(d) < rng.random())
    direction[0] += 1
    direction /= np.linalg.norm(direction)
    chances = np.prod(np.where(samples, theta, 1 - theta), axis=1)
    scores = ((samples - theta) / (theta * (1 - theta))) @ direction
    bound = estimation.score_subgaussian_norm(theta).max()
    assert chances @ np.exp((scores / bound) ** 2) <= 2  # which is: its norm is at most the bound
    assert bound <= estimation.score_norm_bound(d, s)
