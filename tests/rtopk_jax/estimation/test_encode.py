import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtopk_jax import estimation
from rtopk_jax.estimation import _codebook


def smallest_bits(d, ones, signed=False):
  """Bits for k′ = ones, from the definition."""
  words = sum(math.comb(d, i) for i in range(ones + 1))
  return math.ceil(math.log2(d + 1)) + math.ceil(math.log2(words)) + ones * signed


@pytest.mark.parametrize("d", range(1, 13))
def test_codebook_is_a_bijection(d):
  subsets = [s for m in range(d + 1) for s in itertools.combinations(range(d), m)]
  numbers = [_codebook.rank(s, d) for s in subsets]
  assert sorted(numbers) == list(range(2**d))
  assert [tuple(_codebook.unrank(i, d)) for i in numbers] == subsets
  # Smaller subsets first, so that those of at most k' elements are an initial run.
  assert [len(_codebook.unrank(i, d)) for i in range(2**d)] == [len(s) for s in subsets]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_codebook_round_trips_at_large_d(data):
  d = data.draw(st.integers(13, 10**7))
  subset = sorted(data.draw(st.sets(st.integers(0, d - 1), max_size=60)))
  number = _codebook.rank(subset, d)
  assert 0 <= number < _codebook.size(d, len(subset))
  assert _codebook.unrank(number, d) == subset


@pytest.mark.slow
@pytest.mark.parametrize("d", range(1, 13))
def test_every_sample_round_trips(d):
  rng = np.random.default_rng(d)
  samples = np.array(list(itertools.product((0, 1), repeat=d)))
  for bits in sorted({smallest_bits(d, ones) for ones in range(1, d + 1)}):  # every k' there is
    code = estimation.BernoulliCode(d, bits)
    for sample in samples:
      check_round_trip(code, sample, rng)


@pytest.mark.parametrize("d", range(1, 7))
def test_every_signed_sample_round_trips(d):
  rng = np.random.default_rng(d)
  for bits in sorted({smallest_bits(d, ones, signed=True) for ones in range(1, d + 1)}):
    code = estimation.BernoulliCode(d, bits, signed=True)
    for sample in itertools.product((-1, 0, 1), repeat=d):
      check_round_trip(code, np.array(sample), rng)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_samples_round_trip(data):
  d = data.draw(st.integers(2, 3000))
  signed = data.draw(st.booleans())
  least = smallest_bits(d, 1, signed)
  code = estimation.BernoulliCode(d, data.draw(st.integers(least, least + 400)), signed)
  sample = np.zeros(d)
  support = data.draw(st.sets(st.integers(0, d - 1), max_size=80))
  sample[list(support)] = data.draw(st.sampled_from([-1, 1])) if signed else 1
  check_round_trip(code, sample, np.random.default_rng(0))


def check_round_trip(code, sample, rng):
  message = code.encode(sample, rng)
  assert message.size <= code.bits
  assert set(message.tolist()) <= {0, 1}
  decoded, total = code.decode(message)
  assert total == np.count_nonzero(sample)
  if total <= code.max_ones:
    np.testing.assert_array_equal(decoded, sample)
  else:
    assert np.count_nonzero(decoded) == code.max_ones
    assert (decoded[decoded != 0] == sample[decoded != 0]).all()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("d", [1, 2, 7, 64, 1000, 1023, 1024, 50_000])
def test_max_ones_is_the_largest_that_fits(d, signed):
  for ones in {1, 2, min(d, 5), min(d, 40)} & set(range(1, d + 1)):
    bits = smallest_bits(d, ones, signed)
    found = estimation.max_ones(d, bits, signed=signed)
    assert smallest_bits(d, found, signed) <= bits
    assert found == d or smallest_bits(d, found + 1, signed) > bits
  assert estimation.max_ones(d, 10**7, signed=signed) == d


@pytest.mark.parametrize("d", [2, 10, 1000, 1024, 10**6])
def test_max_ones_is_at_least_what_the_proof_counts_on(d):
  # The paper spends log d bits a one; sums of binomials need less.
  for bits in range(2 * math.ceil(math.log2(d + 1)), 400, 7):
    floor = int((bits - math.ceil(math.log2(d + 1))) / math.log2(d + 1))
    assert estimation.max_ones(d, bits) >= min(d, floor)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("d", [1, 3, 1000, 1024])
def test_too_few_bits_are_refused_with_the_smallest_that_do(d, signed):
  least = smallest_bits(d, 1, signed)
  with pytest.raises(ValueError, match=f"bits = {least - 1} has no room.*smallest k.* is {least}"):
    estimation.BernoulliCode(d, least - 1, signed)
  assert estimation.BernoulliCode(d, least, signed).max_ones >= 1


def test_kept_ones_are_a_uniform_subset():
  code = estimation.BernoulliCode(5, smallest_bits(5, 2))
  rng = np.random.default_rng(3)
  sample = np.array([1, 1, 0, 1, 1])
  kept = [tuple(np.flatnonzero(code.decode(code.encode(sample, rng)).sample)) for _ in range(6000)]
  counts = np.array([kept.count(s) for s in itertools.combinations((0, 1, 3, 4), 2)])
  assert counts.sum() == 6000
  assert estimation.chi_square(((counts - 1000) ** 2 / 1000).sum(), 5).p_value > 1e-3


def test_estimate_is_the_rescaled_mean():
  code = estimation.BernoulliCode(4, smallest_bits(4, 1, signed=True), signed=True)
  rng = np.random.default_rng(0)
  ones = code.max_ones
  samples = np.array([[1, -1, 1, 1], [0, 0, 0, 0], [0, -1, 0, 0]])
  messages = [code.encode(sample, rng) for sample in samples]
  kept = code.decode(messages[0]).sample
  expected = (kept * max(1, 4 / ones) + samples[2]) / 3
  np.testing.assert_allclose(code.estimate(messages), expected)
  with pytest.raises(ValueError, match="messages is empty"):
    code.estimate([])


@pytest.mark.parametrize(
  ("sample", "message"),
  [(np.zeros(3), r"shape \(4,\), got \(3,\)"), (np.array([0, -1, 2, 0]), r"entries in \(0, 1\)")],
)
def test_bad_samples_are_refused(sample, message):
  with pytest.raises(ValueError, match=message):
    estimation.BernoulliCode(4, 8).encode(sample, np.random.default_rng(0))


def test_messages_that_encode_does_not_make_are_refused():
  code = estimation.BernoulliCode(6, 8)
  message = code.encode(np.array([1, 0, 0, 0, 0, 0]), np.random.default_rng(0))
  more = message.copy()
  more[:3] = [0, 1, 0]  # two ones there were, one there is
  with pytest.raises(ValueError, match="1 ones and 0 sign bits"):
    code.decode(more)
  with pytest.raises(ValueError, match="total 7"):
    code.decode(np.ones_like(message))
  with pytest.raises(ValueError, match="1 sign bits"):
    code.decode(np.append(message, 0))
