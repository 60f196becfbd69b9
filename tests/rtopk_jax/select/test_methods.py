"""The two methods of a selector: the search, which sorts nothing and stores little, and the sort."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax.select import _keys, _search
from tests.rtopk_jax import harness
from tests.rtopk_jax.vectors import (
  laplace,
)

LARGE = 140_003  # above what is sorted, and no multiple of anything

LISTED = 400_003  # above what is read again and again, too


def _vector(size, dtype="float32"):
  return jnp.asarray(laplace(size)).astype(dtype)


_SAME = [
  (LARGE, "top_k", "float16"),
  (LISTED, "rtop_k", "bfloat16"),
]
_SELECTORS = {"rtop_k": rtopk_jax.rtop_k(0.01, 5), "top_k": rtopk_jax.top_k(0.8)}


@pytest.mark.parametrize(
  ("size", "name", "dtype"),
  [
    pytest.param(*case, marks=[] if case in _SAME else pytest.mark.slow)
    for case in itertools.product((LARGE, LISTED), _SELECTORS, ("float32", "bfloat16", "float16"))
  ],
)
def test_methods_choose_the_same(size, name, dtype):
  selector = _SELECTORS[name]
  vector, key = _vector(size, dtype), jax.random.key(1)
  by_search = jax.jit(selector)(vector, key)
  by_top_k = jax.jit(dataclasses.replace(selector, method="sort"))(vector, key)
  np.testing.assert_array_equal(by_search.indices, by_top_k.indices)
  np.testing.assert_array_equal(
    by_search.values.astype("float32"), by_top_k.values.astype("float32")
  )
  assert (np.diff(np.asarray(by_search.indices)) > 0).all()


def test_methods_draw_random_entries_in_ways_of_their_own():
  vector, key = _vector(LARGE), jax.random.key(1)
  drawn = [
    np.asarray(jax.jit(rtopk_jax.random_k(0.02, method=x))(vector, key).indices)
    for x in ("search", "sort")
  ]
  for indices in drawn:
    assert indices.shape == (round(0.02 * LARGE),)
    assert (np.diff(indices) > 0).all()
    assert 0 <= indices[0] < indices[-1] < LARGE
  assert not np.array_equal(*drawn)


def test_the_reference_is_a_sort():
  """That is what it is there for: also of all entries."""
  for make in (rtopk_jax.rtop_k, rtopk_jax.top_k, rtopk_jax.random_k):
    texts = [
      jax.jit(lambda v, k, x=x: make(0.01, method=x)(v, k, 2)).lower(
        _vector(LISTED), jax.random.key(0)
      )
      for x in ("search", "sort")
    ]
    by_search, by_top_k = ("top_k" in text.as_text() for text in texts)
    assert by_top_k
    assert not by_search


# Of each kind of search the shortest vector, whose lists are long beside it.
_SHORTEST = [
  (_keys.SORT_BELOW + 1, "float32"),
  (LARGE, "float32"),
  (_search._SHORT + 1, "float32"),
  (1 << 20, "bfloat16"),
  (1 << 22, "float32"),
  (_keys.SORT_BELOW + 1, "bfloat16"),
  (_search._SHORT + 1, "float16"),
  (1 << 20, "float32"),
  (1 << 23, "float16"),
]
_MEASURED = [
  rtopk_jax.top_k(1e-5),
  rtopk_jax.rtop_k(0.001, 5),
  rtopk_jax.top_k(0.003),
  rtopk_jax.rtop_k(0.01, 4),
  rtopk_jax.top_k(0.1),
]
# Each kind of search.
_QUICK = [(1, 4), (2, 0), (4, 1)]


@pytest.mark.parametrize(
  ("size", "dtype", "selector"),
  [
    pytest.param(*shortest, selector, marks=[] if (i, j) in _QUICK else pytest.mark.slow)
    for i, shortest in enumerate(_SHORTEST)
    for j, selector in enumerate(_MEASURED)
  ],
)
def test_nothing_of_the_vectors_length_is_sorted_or_stored(size, dtype, selector):
  vector, key = jax.ShapeDtypeStruct((size,), dtype), jax.random.key(0)
  compiled = jax.jit(selector).lower(vector, key).compile()
  assert not [x for x in compiled.as_text().splitlines() if " sort(" in x or '"TopK"' in x]
  # Two bits an entry, 64 bytes for each that is looked for, and a few numbers.
  allowed = size / 4 + 64 * selector.counts(size).r + 4096
  assert compiled.memory_analysis().temp_size_in_bytes <= allowed


@pytest.mark.slow
@pytest.mark.parametrize(
  ("selector", "size"),
  [
    pytest.param(rtopk_jax.rtop_k(0.01, 5), LISTED, id="two bits"),
    pytest.param(rtopk_jax.top_k(0.001), LISTED, id="one bit"),
    pytest.param(rtopk_jax.rtop_k(0.01, 5), LARGE, id="exact"),
  ],
)
def test_vmap_and_shard_map_agree(selector, size):
  keys = jax.random.split(jax.random.key(0), 2)
  vectors = jnp.stack([_vector(size), jnp.zeros(size)])  # one needs more turns than the other
  harness.check_mapped(lambda v, k: selector(v, k).indices, vectors, keys)


def test_unknown_method_is_refused():
  for make in (rtopk_jax.rtop_k, rtopk_jax.top_k, rtopk_jax.random_k):
    with pytest.raises(ValueError, match="method must be one of 'search', 'sort', got 'top_k'"):
      make(0.1, method="top_k")
