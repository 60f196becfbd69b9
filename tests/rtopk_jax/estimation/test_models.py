import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtopk_jax import estimation

KEY = jax.random.key(7)


def triangular(key, shape):
  """A perturbation other than the ready-made one: the mean of two uniform ones."""
  first, second = jax.random.uniform(key, (2, *shape), minval=-0.5, maxval=0.5)
  return (first + second) / 2


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("sampler", ["uniform", "power_law", "block", "cube"])
def test_parameters_lie_in_theta(sampler, signed):
  model = estimation.SparseBernoulli(200, 12, signed=signed)
  batch = jax.vmap(getattr(model, sampler))(jax.random.split(KEY, 4))
  assert batch.shape == (4, 200)
  assert batch.dtype == jnp.float32
  for theta in batch:
    model.check(theta)
    total = np.abs(np.asarray(theta, np.float64)).sum()
    least = 6 if sampler == "cube" else 12 * (1 - 1e-5)
    assert least <= total <= 12 * (1 + 1e-5)
  assert bool((batch < 0).any()) == signed


def test_parameters_have_their_shapes():
  model = estimation.SparseBernoulli(200, 12)
  np.testing.assert_array_equal(model.uniform(KEY), np.float32(12 / 200))
  block = np.asarray(model.block(KEY))
  assert sorted(block)[-13:] == [0.0] + [1.0] * 12
  cube = np.asarray(model.cube(KEY))
  assert cube.min() >= np.float32(0.03)
  assert cube.max() <= np.float32(0.06)
  power = np.sort(np.asarray(model.power_law(KEY, exponent=1.5), np.float64))[::-1]
  free = power[power < 1]
  ranks = np.arange(1, 201)[power < 1]
  np.testing.assert_allclose(free * ranks**1.5, free[0] * ranks[0] ** 1.5, rtol=1e-5)
  assert (power == 1).any()


def test_samples_have_independent_entries_of_the_right_law():
  model = estimation.SparseBernoulli(6, 3, signed=True)
  theta = jnp.array([0.0, 1.0, -1.0, 0.25, -0.5, 0.1])
  samples = np.asarray(jax.vmap(model.sample, (0, None))(jax.random.split(KEY, 40_000), theta))
  assert set(np.unique(samples)) == {-1.0, 0.0, 1.0}
  assert not samples[:, 0].any()
  assert (samples[:, 1] == 1).all()
  assert (samples[:, 2] == -1).all()
  assert estimation.mean_chi_square(samples, np.asarray(theta)).p_value > 1e-3
  pairs = samples[:, 3] * samples[:, 4]
  low, high = estimation.mean_interval(pairs)[1:]
  assert low < 0.25 * -0.5 < high


@pytest.mark.slow
def test_small_probabilities_are_not_rounded():
  # Uniforms that are multiples of 2⁻²³ would turn 2e-8 into 1.2e-7, and 2 hits in all into 12.
  model = estimation.SparseBernoulli(1_000_000, 10)
  theta = jnp.full(1_000_000, 2e-8)
  count = lambda key: jnp.count_nonzero(model.sample(key, theta))
  assert int(jax.lax.map(count, jax.random.split(KEY, 100)).sum()) <= 8


@pytest.mark.parametrize("perturbation", [None, estimation.uniform_perturbation, triangular])
@pytest.mark.parametrize("signed", [False, True])
def test_quantising_undoes_scale_and_perturbation(signed, perturbation):
  plain = estimation.SparseBernoulli(5000, 1000, signed=signed)
  refined = estimation.SparseBernoulli(
    5000, 1000, signed=signed, scale=0.25, perturbation=perturbation
  )
  theta = plain.power_law(KEY)
  seen = refined.sample(KEY, theta)
  assert bool((seen == 0.25 * plain.sample(KEY, theta)).all()) == (perturbation is None)
  np.testing.assert_array_equal(refined.quantise(seen), plain.sample(KEY, theta))


@pytest.mark.parametrize("sparsity", [None, 5])
def test_gaussian_location(sparsity):
  model = estimation.GaussianLocation(40, sparsity, sigma=2.0, bound=0.5)
  theta = model.parameter(KEY)
  assert float(jnp.abs(theta).max()) <= 0.5
  if sparsity:
    assert sorted(np.abs(np.asarray(theta)))[-6:] == [0.0] + [0.5] * 5
  samples = np.asarray(jax.vmap(model.sample, (0, None))(jax.random.split(KEY, 20_000), theta))
  assert estimation.mean_chi_square(samples, np.asarray(theta)).p_value > 1e-3
  np.testing.assert_allclose(np.cov(samples, rowvar=False), 4 * np.eye(40), atol=0.2)


@pytest.mark.parametrize(
  ("arguments", "error", "message"),
  [
    ({"dimension": 0}, ValueError, "dimension must be at least 1"),
    ({"dimension": 2.5}, TypeError, "dimension must be an integer"),
    ({"sparsity": 11}, ValueError, r"sparsity must be in \(0, dimension=10\], got 11"),
    ({"signed": 1}, TypeError, "signed must be True or False"),
    ({"scale": 0.0}, ValueError, "scale must be positive, got 0.0"),
    ({"perturbation": 0.5}, TypeError, "perturbation must be a function"),
  ],
)
def test_bad_models_are_refused(arguments, error, message):
  with pytest.raises(error, match=message):
    estimation.SparseBernoulli(**({"dimension": 10, "sparsity": 2} | arguments))


@pytest.mark.parametrize(
  ("theta", "message"),
  [
    (np.full(9, 0.1), r"shape \(10,\), got \(9,\)"),
    (np.full(10, -0.1), r"entries in \[0, 1\]"),
    (np.full(10, np.nan), r"entries in \[0, 1\]"),
    (np.full(10, 0.3), "at most s = 2"),
  ],
)
def test_parameters_outside_theta_are_refused(theta, message):
  with pytest.raises(ValueError, match=message):
    estimation.SparseBernoulli(10, 2).check(theta)


def test_bad_gaussian_models_are_refused():
  with pytest.raises(ValueError, match="sparsity must be at most dimension=3, got 4"):
    estimation.GaussianLocation(3, 4)
  with pytest.raises(ValueError, match="sigma must be positive, got 0"):
    estimation.GaussianLocation(3, sigma=0)
