import itertools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtopk_jax import estimation
from rtopk_jax.estimation import _ones

KEY = jax.random.key(11)
REFINED = {"signed": True, "scale": 3.0, "perturbation": estimation.uniform_perturbation}


def exact_law(theta, ones):
  """The probability of every vector that Theorem 1's server can read, by enumeration."""
  law = Counter()
  for x in itertools.product((0, 1), repeat=len(theta)):
    chance = np.prod([t if b else 1 - t for b, t in zip(x, theta, strict=True)])
    support = [j for j, b in enumerate(x) if b]
    kept = list(itertools.combinations(support, min(len(support), ones)))
    for subset in kept:
      vector = tuple(max(1.0, len(support) / ones) * (j in subset) for j in range(len(theta)))
      law[vector] += chance / len(kept)
  return law


def goodness_of_fit(vectors, law):
  """The chi-square statistic of counts against a law; vectors outside of it fail."""
  counts = Counter(tuple(round(float(x), 5) for x in vector) for vector in vectors)
  law = {tuple(round(x, 5) for x in vector): chance for vector, chance in law.items()}
  assert set(counts) <= set(law)
  expected = np.array(list(law.values())) * len(vectors)
  seen = np.array([counts[vector] for vector in law])
  return estimation.chi_square(((seen - expected) ** 2 / expected).sum(), len(law) - 1)


def messages(model, scheme, theta, count):
  """What the server reads of independent nodes, shape (count, d)."""
  one = lambda key: estimation.simulate(model, scheme, theta, key, 1)
  return np.asarray(jax.vmap(one)(jax.random.split(KEY, count)))


THETA = np.array([0.3, 0.5, 0.7, 0.4, 0.2], np.float32)


@pytest.mark.parametrize("ones", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_simulation_and_bit_strings_have_the_exact_law(ones):
  law = exact_law(THETA.astype(np.float64), ones)
  assert math.isclose(sum(law.values()), 1)
  model = estimation.SparseBernoulli(5, 3)
  simulated = messages(model, estimation.RandomOnes(ones), jnp.asarray(THETA), 20_000)
  assert goodness_of_fit(simulated, law).p_value > 1e-3

  bits = next(k for k in range(6, 20) if estimation.max_ones(5, k) == ones)
  code = estimation.BernoulliCode(5, bits)
  rng = np.random.default_rng(ones)
  samples = rng.random((20_000, 5)) < THETA
  decoded = [code.estimate([code.encode(x, rng)]) for x in samples]
  assert goodness_of_fit(decoded, law).p_value > 1e-3


def test_goodness_of_fit_sees_what_is_not_the_law():
  model = estimation.SparseBernoulli(5, 3)
  law = exact_law(THETA.astype(np.float64), 2)
  others = messages(model, estimation.RandomOnes(2), jnp.asarray(THETA[::-1].copy()), 20_000)
  assert goodness_of_fit(others, law).p_value < 1e-6


def test_sampled_ones_follow_signs():
  model = estimation.SparseBernoulli(50, 30, signed=True)
  theta = model.uniform(KEY)
  x = np.asarray(model.sample(KEY, theta))
  y = np.asarray(estimation.RandomOnes(4)(KEY, jnp.asarray(x)))
  assert np.count_nonzero(y) == 4
  np.testing.assert_allclose(y[y != 0], x[y != 0] * np.count_nonzero(x) / 4)


SCHEMES = [
  estimation.Centralized(),
  estimation.RandomOnes(3),
  estimation.RandomOnes(40),
  estimation.TopOnes(3),
  estimation.RandomCoordinates(10),
  estimation.OneBit(25),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_risk_is_what_simulation_shows(scheme):
  model = estimation.SparseBernoulli(60, 8)
  for theta in (model.power_law(KEY), model.block(KEY)):
    errors = estimation.squared_errors(model, scheme, theta, KEY, num_nodes=7, repeats=3000)
    _, low, high = estimation.mean_interval(errors)
    risk = scheme.risk(theta, 7)
    assert low - 1e-6 <= risk <= high + 1e-6
    assert high - low < 0.15 * risk + 1e-6


@pytest.mark.parametrize(
  "scheme",
  [pytest.param(SCHEMES[1], marks=pytest.mark.slow), estimation.OneBit(25, signed=True)],
  ids=repr,
)
def test_risk_of_refined_models(scheme):
  model = estimation.SparseBernoulli(60, 8, **REFINED)
  theta = model.power_law(KEY)
  errors = estimation.squared_errors(model, scheme, theta, KEY, num_nodes=7, repeats=3000)
  _, low, high = estimation.mean_interval(errors)
  assert low <= 9 * scheme.risk(theta, 7) <= high


@pytest.mark.parametrize("ones", [1, 2, 5, 9])
def test_exact_risk_against_enumeration(ones):
  theta = np.random.default_rng(0).random(8)
  law = exact_law(theta, ones)
  direct = sum(p * ((np.array(v) - theta) ** 2).sum() for v, p in law.items())
  np.testing.assert_allclose(estimation.RandomOnes(ones).risk(theta, 5), direct / 5, rtol=1e-12)


def test_exact_risk_of_top_ones_against_enumeration():
  theta = np.random.default_rng(1).random(8)
  mean, second = np.zeros(8), 0.0
  for x in itertools.product((0, 1), repeat=8):
    chance = np.prod([t if b else 1 - t for b, t in zip(x, theta, strict=True)])
    sent = np.array(x) * (np.cumsum(x) <= 3)
    mean += chance * sent
    second += chance * sent.sum()
  expected = ((mean - theta) ** 2).sum() + (second - (mean**2).sum()) / 5
  np.testing.assert_allclose(estimation.TopOnes(3).risk(theta, 5), expected, rtol=1e-12)


@pytest.mark.parametrize(("d", "value"), [(30, 0.2), (3000, 0.4), (100_000, 1e-4)])
def test_law_of_the_number_of_ones(d, value):
  stats = pytest.importorskip("scipy.stats")
  size = 60
  binomial = stats.binom.pmf(np.arange(size), d, value)
  np.testing.assert_allclose(_ones.pmf(np.full(d, value), size), binomial, rtol=1e-9, atol=1e-300)
  two = np.concatenate([np.full(d, value), [0.0, 1.0, 0.25]])
  shifted = np.convolve(np.convolve(binomial, [0, 1]), [0.75, 0.25])[:size]
  np.testing.assert_allclose(_ones.pmf(two, size), shifted, rtol=1e-9, atol=1e-300)


def test_chunks_change_the_order_of_the_sum_only():
  model = estimation.SparseBernoulli(300, 20)
  theta = model.power_law(KEY)
  run = lambda chunk: np.asarray(
    estimation.simulate(model, estimation.RandomOnes(5), theta, KEY, 37, chunk=chunk)
  )
  whole = run(None)
  for chunk in (1, 10):
    np.testing.assert_allclose(run(chunk), whole, rtol=1e-5, atol=1e-7)


def test_memory_is_that_of_a_chunk():
  from rtopk_jax.estimation import _simulate

  model = estimation.SparseBernoulli(1_000_000, 1000)
  theta = jax.ShapeDtypeStruct((1_000_000,), jnp.float32)
  nodes = jax.ShapeDtypeStruct((), jnp.int32)  # not known when memory is laid out
  program = _simulate._simulate.lower(model, estimation.RandomOnes(500), theta, KEY, nodes, 4)
  assert program.compile().memory_analysis().temp_size_in_bytes < 300e6


@pytest.mark.slow
def test_a_million_dimensions_and_a_thousand_nodes():
  model = estimation.SparseBernoulli(1_000_000, 1000)
  theta = model.uniform(KEY)
  scheme = estimation.RandomOnes(estimation.max_ones(1_000_000, bits=5_000))
  estimate = estimation.simulate(model, scheme, theta, KEY, num_nodes=1000)
  error = float(np.square(np.asarray(estimate - theta, np.float64)).sum())
  risk = scheme.risk(theta, 1000)
  assert abs(error / risk - 1) < 0.05


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: estimation.RandomOnes(0), "max_ones must be at least 1, got 0"),
    (lambda: estimation.TopOnes(0), "max_ones must be at least 1, got 0"),
    (lambda: estimation.RandomCoordinates(0), "count must be at least 1, got 0"),
    (lambda: estimation.OneBit(0), "count must be at least 1, got 0"),
    (lambda: simulate(num_nodes=0), "num_nodes must be at least 1, got 0"),
    (lambda: simulate(chunk=0), "chunk must be at least 1, got 0"),
    (lambda: simulate(theta=THETA + 1), r"theta must have entries in \[0, 1\]"),
  ],
)
def test_bad_counts_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def simulate(num_nodes=3, chunk=None, theta=THETA):
  model, scheme = estimation.SparseBernoulli(5, 3), estimation.Centralized()
  return estimation.simulate(model, scheme, jnp.asarray(theta), KEY, num_nodes, chunk=chunk)
