"""What the paper's Sections II to IV say, each as one seeded test, with a confidence interval where there is chance."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax import estimation
from tests.rtopk_jax.reference import largest

KEY = jax.random.key(2020)
MODELS = {
  "plain": {},
  "signed": {"signed": True},
  "scaled": {"scale": 5.0},
  "perturbed": {
    "signed": True,
    "scale": 0.5,
    "perturbation": estimation.uniform_perturbation,
  },
}


def risks(model, scheme, theta, num_nodes, repeats):
  return estimation.squared_errors(model, scheme, theta, KEY, num_nodes, repeats)


def nodes(model, scheme, theta, count):
  one = lambda key: estimation.simulate(model, scheme, theta, key, 1)
  return np.asarray(jax.vmap(one)(jax.random.split(KEY, count)))


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_unbiased(name):
  model = estimation.SparseBernoulli(24, 6, **MODELS[name])
  theta = model.power_law(KEY, exponent=0.5)
  samples = nodes(model, estimation.RandomOnes(3), theta, 20_000)
  mean = model.scale * np.asarray(theta, np.float64)
  assert estimation.mean_chi_square(samples, mean).p_value > 1e-3
  # The statistic does see a bias: of top-k', and of one in fifty of the whole.
  biased = nodes(model, estimation.TopOnes(3), theta, 20_000)
  assert estimation.mean_chi_square(biased, mean).p_value < 1e-6
  assert estimation.mean_chi_square(samples, 1.02 * mean).p_value < 1e-3


@pytest.mark.parametrize("signed", [False, True])
def test_the_estimate_from_bit_strings_is_unbiased(signed):
  model = estimation.SparseBernoulli(24, 6, signed=signed)
  theta = model.power_law(KEY, exponent=0.5)
  code = estimation.BernoulliCode(24, bits=20, signed=signed)
  assert code.max_ones < 6  # so that there is something to subsample
  rng = np.random.default_rng(0)
  seen = np.asarray(jax.vmap(model.sample, (0, None))(jax.random.split(KEY, 6000), theta))
  decoded = np.array([code.estimate([code.encode(x, rng)]) for x in seen])
  assert estimation.mean_chi_square(decoded, np.asarray(theta)).p_value > 1e-3


@pytest.mark.parametrize(
  ("name", "bits"),
  [
    ("plain", 30),
    pytest.param("perturbed", 150, marks=pytest.mark.slow),
    pytest.param("plain", 150, marks=pytest.mark.slow),
    pytest.param("perturbed", 30, marks=pytest.mark.slow),
  ],
)
def test_the_risk_is_never_above_inequality_4(name, bits):
  model = estimation.SparseBernoulli(500, 20, **MODELS[name])
  ones = estimation.max_ones(500, bits, signed=model.signed)
  square = model.scale**2
  for sampler in (model.uniform, model.power_law, model.block, model.cube):
    theta = sampler(KEY)
    errors = risks(model, estimation.RandomOnes(ones), theta, 20, 200)
    _, low, high = estimation.mean_interval(errors)  # 99.9 % at either end
    assert low <= square * estimation.inequality_4(theta, ones, 20)
    exact = square * estimation.RandomOnes(ones).risk(theta, 20)
    assert low - 1e-9 <= exact <= high + 1e-9
    # As printed, with k' where the library has the mean number of ones.
    mean = np.abs(np.asarray(theta, np.float64))
    second = mean.sum() ** 2 + (mean * (1 - mean)).sum()
    assert exact <= square * (second / ones + ones) / 20


def exchange_of(gradients, seed, **options):
  """One exchange of the rows of ``gradients``, from an empty memory."""
  tx = rtopk_jax.sparse_exchange(axis_name="node", dense=False, seed=seed, **options)
  exchange = lambda g: tx.update(g, tx.init(g))[0]
  return jax.jit(jax.vmap(exchange, out_axes=None, axis_name="node"))(gradients)


def algorithm_1(gradients, seed):
  """Algorithm 1 as printed, k = 8, r = 24."""
  selector = rtopk_jax.rtop_k(0.2, subsample=3, unbiased=True)
  return exchange_of(gradients, seed, selector=selector, average="sum", error_feedback=False)


def test_algorithm_1_as_printed_is_one_call():
  """Section II-E: r/k times the sum over the nodes of k random ones of the r largest entries."""
  gradients = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
  estimate = np.asarray(algorithm_1(jnp.asarray(gradients), 0), np.float64) / 3
  sent = np.zeros((3, 40), bool)
  for j in range(40):
    # Which nodes' entries add up to what came out; real numbers leave no doubt.
    subsets = np.array(list(itertools.product([False, True], repeat=3)))
    gaps = np.abs(subsets @ gradients[:, j].astype(np.float64) - estimate[j])
    assert np.sort(gaps)[0] < 1e-5 < np.sort(gaps)[1]
    sent[:, j] = subsets[gaps.argmin()]
  large = np.stack([largest(g, 24) for g in gradients])
  for node in range(3):
    assert sent[node].sum() == 8
    assert set(np.flatnonzero(sent[node])) <= set(large[node])


def test_algorithm_1_is_unbiased_for_the_sum_of_the_large_entries():
  gradients = np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)
  draws = jax.jit(jax.vmap(lambda seed: algorithm_1(jnp.asarray(gradients), seed)))
  estimates = np.asarray(draws(jnp.arange(4000)), np.float64)
  large = np.abs(gradients) >= -np.sort(-np.abs(gradients), axis=1)[:, 23:24]
  mean = (gradients * large).sum(0)
  reached = np.flatnonzero(large.any(0))
  assert not np.delete(estimates, reached, axis=1).any()
  # A node sends exactly k entries, so that its last follows from the others: without two all are free.
  free = reached[:-2]
  assert estimation.mean_chi_square(estimates[:, free], mean[free]).p_value > 1e-3
  assert estimation.mean_chi_square(estimates[:, free], mean[free] / 3).p_value < 1e-6


def test_a_coordinate_large_at_every_node_is_sent_by_one_in_expectation():
  """Section III-A, of r/k = n. A share of (1 - 1/n)^n, a third, is sent by none all the same."""
  n, k, d = 5, 200, 4000
  gradients = jnp.broadcast_to(jnp.arange(d) < n * k, (n, d)).astype(jnp.float32)
  selector = rtopk_jax.rtop_k(k / d)
  senders = np.asarray(
    exchange_of(gradients, 0, selector=selector, average="sum", error_feedback=False)
  )
  assert not senders[n * k :].any()
  assert senders[: n * k].mean() == 1
  none, expected = (senders[: n * k] == 0).mean(), (1 - 1 / n) ** n
  assert abs(none - expected) < 3.1 * math.sqrt(expected * (1 - expected) / (n * k))


def check_slope(x, errors, expected, tolerance):
  slope, low, high = estimation.slope_interval(np.asarray(x), np.stack(errors))
  assert abs(slope - expected) <= tolerance
  assert high - low <= 2 * tolerance  # the interval is as narrow as what is claimed


@pytest.mark.slow
def test_the_risk_falls_as_1_over_n():
  model = estimation.SparseBernoulli(500, 20)
  theta, scheme = model.power_law(KEY), estimation.RandomOnes(5)
  n = [5, 20, 80, 320]
  errors = [
    estimation.squared_errors(model, scheme, theta, jax.random.fold_in(KEY, i), i, 300, chunk=5)
    for i in n
  ]
  check_slope(n, errors, -1, 0.05)


def test_the_risk_falls_as_1_over_the_ones_sent():
  model = estimation.SparseBernoulli(2000, 100)
  theta = model.uniform(KEY)
  ones = [2, 20]  # up to s/5
  errors = [risks(model, estimation.RandomOnes(i), theta, 20, 100) for i in ones]
  check_slope(ones, errors, -1, 0.05)


@pytest.mark.slow
def test_in_bits_the_slope_follows_the_code():
  d, s, n = 4000, 100, 20
  model = estimation.SparseBernoulli(d, s)
  theta = model.uniform(KEY)
  bits = np.array([30, 80, 220])
  ones = [estimation.max_ones(d, int(k)) for k in bits]
  errors = [risks(model, estimation.RandomOnes(i), theta, n, 250) for i in ones]
  exact = [estimation.RandomOnes(i).risk(theta, n) for i in ones]
  computed = np.polyfit(np.log(bits), np.log(exact), 1)[0]
  check_slope(bits, errors, computed, 0.03)
  assert computed < -1.05  # steeper than 1/k: the header of log d bits and k' bought at a discount


@pytest.mark.slow
def test_the_risk_grows_as_the_square_of_s():
  d, ones = 20_000, 2
  errors, sparsities = [], [40, 110, 320]  # from 20 k' to d/60
  for s in sparsities:
    model = estimation.SparseBernoulli(d, s)
    errors.append(risks(model, estimation.RandomOnes(ones), model.uniform(KEY), 5, 60))
  check_slope(sparsities, errors, 2, 0.1)


@pytest.mark.parametrize("s", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_the_centralized_risk_is_reached_near_s_log_d_bits(s):
  d, n = 2000, 10
  model = estimation.SparseBernoulli(d, s)
  theta = model.uniform(KEY)
  centralized = estimation.Centralized().risk(theta, n)
  enough = math.ceil(s + 3 * math.sqrt(s))
  bits = next(k for k in range(30, 2000) if estimation.max_ones(d, k) >= enough)
  errors = risks(model, estimation.RandomOnes(estimation.max_ones(d, bits)), theta, n, 600)
  _, low, high = estimation.mean_interval(errors)
  assert estimation.RandomOnes(enough).risk(theta, n) < 1.001 * centralized
  assert low <= 1.03 * centralized
  assert high >= centralized
  assert high - low < 0.1 * centralized
  # The knee, exactly: twice the centralized risk well below s log d bits, 5 % more not far above.
  ratio = lambda k: (
    estimation.RandomOnes(estimation.max_ones(d, round(k))).risk(theta, n) / centralized
  )
  scale = s * math.log2(d)
  assert ratio(0.3 * scale) > 2
  assert ratio(1.5 * scale) < 1.05


@pytest.mark.slow
def test_the_order_of_the_competitors():
  d, s, bits, n = 1000, 20, 100, 400
  model = estimation.SparseBernoulli(d, s)
  ones = estimation.max_ones(d, bits)
  order = [
    estimation.Centralized(),
    estimation.RandomOnes(ones),
    estimation.OneBit(bits),
    estimation.RandomCoordinates(ones),
  ]
  for theta in (model.uniform(KEY), model.power_law(KEY)):
    intervals = [estimation.mean_interval(risks(model, x, theta, n, 25)) for x in order]
    for better, worse in itertools.pairwise(intervals):
      assert better.high < worse.low
    # Top-k' is biased: no number of nodes brings it below its floor, and here that is above Theorem 1's.
    top = estimation.mean_interval(risks(model, estimation.TopOnes(ones), theta, n, 25))
    assert top.low > intervals[1].high
    assert estimation.TopOnes(ones).risk(theta, 10**9) > 0.5 * top.value


def test_for_a_block_subsampling_pays_from_s_over_k_nodes_on():
  # s coordinates at one: top-k' always sends the same k' of them, and r/k' = n is where that gets worse.
  model = estimation.SparseBernoulli(500, 40)
  theta, ones = model.block(KEY), 8
  for n, better in ((3, "top"), (8, "random")):
    top = estimation.mean_interval(risks(model, estimation.TopOnes(ones), theta, n, 100))
    random = estimation.mean_interval(risks(model, estimation.RandomOnes(ones), theta, n, 100))
    assert top.high < random.low if better == "top" else random.high < top.low
  random, top = estimation.RandomOnes(ones), estimation.TopOnes(ones)
  assert math.isclose(random.risk(theta, 5), top.risk(theta, 5))  # n = s/k' = 5


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_the_gaussian_model_needs_bits_linear_in_d(sparsity):
  n, ratios = 600, {}
  for d, bits in ((64, 16), (256, 64), (256, 32)):
    model = estimation.GaussianLocation(d, sparsity)
    theta = model.parameter(KEY)
    errors = estimation.gaussian_squared_errors(model, theta, KEY, n, bits, 60)
    centralized = (sparsity or d) / n
    ratios[d, bits] = estimation.mean_interval(errors / centralized)
  # The same share of d gives the same multiple of the centralized risk, a few times d/k = 4.
  for share in (ratios[64, 16], ratios[256, 64]):
    assert 0.6 * 4 < share.value < 3 * 4
  assert ratios[64, 16].low < 1.1 * ratios[256, 64].high
  assert ratios[256, 64].low < 1.1 * ratios[64, 16].high
  # s log d bits, enough for the sparse Bernoulli model, leave a multiple of order d/(s log d).
  assert ratios[256, 32].low > 0.5 * 256 / 32


def test_gaussian_bits_are_checked():
  model = estimation.GaussianLocation(8)
  with pytest.raises(ValueError, match="bits must be at most dimension=8, got 9"):
    estimation.gaussian_squared_errors(model, model.parameter(KEY), KEY, 10, 9, 2)
