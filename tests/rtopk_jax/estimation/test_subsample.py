import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rtopk_jax
from rtopk_jax import estimation


def enumerated_error(gradients, k, r, factor, target):
  """E‖ĝ − target‖² over all choices of all workers."""
  n, d = gradients.shape
  choices = []
  for g in gradients:
    large = sorted(range(d), key=lambda j: (-abs(g[j]), j))[:r]
    choices.append(
      [np.where(np.isin(np.arange(d), subset), g, 0) for subset in itertools.combinations(large, k)]
    )
  errors = [((factor / n * sum(sent) - target) ** 2).sum() for sent in itertools.product(*choices)]
  return np.mean(errors)


@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_closed_form_against_enumeration(seed, n, rescale, own_target, ties):
  rng = np.random.default_rng(seed)
  d = int(rng.integers(1, 6))
  k = int(rng.integers(1, d + 1))
  gradients = rng.normal(size=(n, d))
  gradients = np.round(gradients) if ties else gradients
  target = rng.normal(size=d) if own_target else None
  errors = estimation.subsample_errors(gradients, k, rescale=rescale, target=target)
  assert errors.shape == (d - k + 1,)
  expected = [
    enumerated_error(
      gradients, k, r, r / k if rescale else 1, gradients.mean(0) if target is None else target
    )
    for r in range(k, d + 1)
  ]
  np.testing.assert_allclose(errors, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("ratio", [1, 3, 10])
def test_closed_form_against_the_exchange(ratio, rescale):
  # Algorithm 1's estimate as the library makes it: selectors, wire, gather and reduction.
  rng = np.random.default_rng(ratio)
  gradients = (rng.normal(size=200) + rng.normal(size=(4, 200))).astype(np.float32) ** 3
  gradients[:, ::2] *= np.float32(0.1)
  exchange = rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.05, ratio, unbiased=rescale),
    "workers",
    error_feedback=False,
    dense=False,
    seed=3,
  )

  def run(count):
    def worker(gradient):
      state = exchange.init(gradient)._replace(count=count)
      return exchange.update(gradient, state)[0]

    return jax.vmap(worker, out_axes=None, axis_name="workers")(jnp.asarray(gradients))

  estimates = np.asarray(jax.lax.map(run, jnp.arange(2000)), np.float64)
  errors = ((estimates - gradients.astype(np.float64).mean(0)) ** 2).sum(1)
  closed = estimation.subsample_errors(gradients, 10, rescale=rescale)[10 * ratio - 10]
  _, low, high = estimation.mean_interval(errors)
  assert low - 1e-4 * closed <= closed <= high + 1e-4 * closed


@pytest.mark.parametrize("n", [2, 5, 10])
def test_alike_workers_should_share_out_their_large_entries(n):
  # 5n equally large entries that all workers have, k = 5: each is sent by one in expectation at r/k = n.
  gradient = np.where(np.arange(300) < 5 * n, 1.0, 1e-3)
  assert estimation.best_subsample(np.tile(gradient, (n, 1)), 5) == n


def test_workers_that_share_nothing_should_send_their_largest():
  gradients = np.kron(np.eye(6), np.linspace(2, 1, 20))
  assert estimation.best_subsample(gradients, 4) == 1


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_best_is_the_least(seed, rescale):
  rng = np.random.default_rng(seed)
  gradients = rng.normal(size=(3, 40)) ** 3 + rng.normal(size=40)
  k = int(rng.integers(1, 40))
  errors = estimation.subsample_errors(gradients, k, rescale=rescale)
  best = estimation.best_subsample(gradients, k, rescale=rescale)
  assert errors[round(best * k) - k] == errors.min()
  counts = rtopk_jax.rtop_k(k / 40, best).counts(40)
  assert counts.k == k
  assert errors[counts.r - k] == errors.min()  # the selector takes the r that is meant
  some = estimation.best_subsample(gradients, k, rescale=rescale, candidates=[1, 2, 1e6])
  at = {1: errors[0], 2: errors[min(40, 2 * k) - k], 1e6: errors[-1]}
  assert at[some] == min(at.values())


def test_one_worker_should_send_its_largest():
  gradients = np.random.default_rng(0).normal(size=(1, 50))
  assert estimation.best_subsample(gradients, 5) == 1
  errors = estimation.subsample_errors(gradients, 5)
  rest = np.sort(gradients[0] ** 2)[:-5].sum()
  assert math.isclose(errors[0], rest)


@pytest.mark.parametrize(
  ("arguments", "error", "message"),
  [
    ({"gradients": np.ones(3)}, ValueError, r"gradients must have shape \(n, d\), got \(3,\)"),
    ({"k": 0}, ValueError, "k must be at least 1, got 0"),
    ({"k": 5}, ValueError, "k must be at most d = 4, got 5"),
    ({"k": 1.5}, TypeError, "k must be an integer"),
    ({"target": np.ones(3)}, ValueError, r"target must have shape \(4,\), got \(3,\)"),
    ({"gradients": np.full((2, 4), np.nan)}, ValueError, "gradients must be finite, got nan"),
    ({"rescale": 1}, TypeError, "rescale must be True or False"),
    ({"candidates": []}, ValueError, "candidates is empty"),
    ({"candidates": [0.5]}, ValueError, "candidates must be at least 1, got 0.5"),
  ],
)
def test_bad_arguments_are_refused(arguments, error, message):
  with pytest.raises(error, match=message):
    estimation.best_subsample(**({"gradients": np.ones((2, 4)), "k": 1} | arguments))
