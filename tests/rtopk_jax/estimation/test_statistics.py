import numpy as np
import pytest

from rtopk_jax import estimation


def test_chi_square_has_the_right_size():
  # A statistic that rejects at 1 % does so in about 1 % of runs where the mean is right.
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(6, 6))
  rejected = sum(
    estimation.mean_chi_square(rng.normal(size=(800, 6)) @ mix + 3, np.full(6, 3)).p_value < 0.01
    for _ in range(2000)
  )
  assert 6 <= rejected <= 40


def test_chi_square_leaves_out_what_does_not_vary():
  samples = np.random.default_rng(0).normal(size=(500, 3))
  samples[:, 2] = 1.5
  result = estimation.mean_chi_square(samples, np.array([0, 0, 1.5]))
  assert result.freedom == 2
  assert result.p_value > 1e-3
  assert estimation.mean_chi_square(samples, np.array([0, 0, 1.4])).p_value == 0


def test_p_values_against_scipy():
  stats = pytest.importorskip("scipy.stats")
  for statistic, freedom in ((0.1, 1), (30.0, 24), (60.0, 24), (900.0, 1000)):
    expected = stats.chi2.sf(statistic, freedom)
    np.testing.assert_allclose(
      estimation.chi_square(statistic, freedom).p_value, expected, rtol=1e-3
    )


def test_intervals_cover():
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(1000):
    low, high = estimation.mean_interval(rng.exponential(size=200), confidence=0.9)[1:]
    covered += low < 1 < high
  assert 860 <= covered <= 930


def test_slopes_cover():
  rng = np.random.default_rng(2)
  x = np.array([1.0, 2.0, 5.0, 20.0])
  covered = 0
  for _ in range(1000):
    errors = rng.exponential(size=(4, 200)) * x[:, None] ** -1.5
    value, low, high = estimation.slope_interval(x, errors, confidence=0.9)
    assert abs(value + 1.5) < 0.3
    covered += low < -1.5 < high
  assert 860 <= covered <= 930


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: estimation.mean_interval(np.ones(1)), r"samples must have shape \(m,\) with m >= 2"),
    (lambda: estimation.mean_interval(np.ones(3), confidence=99), "confidence must be in"),
    (lambda: estimation.slope_interval(np.ones(3), np.ones((2, 5))), "x must have shape"),
    (lambda: estimation.mean_chi_square(np.ones((3, 3)), np.ones(3)), "with m > d"),
  ],
)
def test_bad_samples_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
