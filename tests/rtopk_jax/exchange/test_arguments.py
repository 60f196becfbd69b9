"""Wrong arguments of collectives are refused, by an error that names them."""

import pytest

import rtopk_jax

AUTO = rtopk_jax.Auto(1e3)


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: rtopk_jax.ReduceScatter(-1), ValueError, "slack must be at least 0"),
    (lambda: rtopk_jax.Hierarchical(3), TypeError, "inner_axis must be the name.*got 3"),
    (lambda: rtopk_jax.Hierarchical(("a", "b", "a")), ValueError, "inner_axis .*'a' twice"),
    (
      lambda: rtopk_jax.sparse_exchange(
        rtopk_jax.top_k(0.1),
        ("data", "data", "chip"),
        collective=rtopk_jax.Hierarchical("chip"),
      ),
      ValueError,
      r"axis_name must name each axis once, got \('data', 'data', 'chip'\) with 'data' twice",
    ),
    (
      lambda: rtopk_jax.Hierarchical("chip", "ring"),
      ValueError,
      "outer must be one of 'all_gather'",
    ),
    (lambda: rtopk_jax.Hierarchical("chip", 3), TypeError, "outer must be a rtopk_jax.Collective"),
    (
      lambda: rtopk_jax.Hierarchical("chip", rtopk_jax.Hierarchical("host")),
      ValueError,
      "makes one worker of several itself. Name all fast axes",
    ),
    (
      lambda: rtopk_jax.Auto(1e9, choices=[rtopk_jax.Hierarchical("chip")]),
      ValueError,
      "the memory would depend on what is chosen. Put Auto inside it",
    ),
    (lambda: rtopk_jax.Auto("fast"), ValueError, "fast"),
    (lambda: rtopk_jax.Auto(1e9, choices=()), ValueError, "choices must not be empty"),
    (
      lambda: rtopk_jax.Auto(1e9, choices=rtopk_jax.AllGather()),
      TypeError,
      r"choices must be several.*got AllGather\(\); one alone is a tuple too",
    ),
    (lambda: rtopk_jax.Auto(1e9, choices="all_gather"), TypeError, "choices must be several"),
    (lambda: rtopk_jax.Auto(1e9, choices=["ring"]), ValueError, "choices must be one of.*'ring'"),
    (
      lambda: rtopk_jax.Auto(1e9, choices=[3]),
      TypeError,
      "choices must be a rtopk_jax.Coll.*got 3",
    ),
    (
      lambda: rtopk_jax.Auto(1e9, local=3),
      TypeError,
      "local must be a rtopk_jax.LocalSpeed.*got 3",
    ),
    (lambda: AUTO.choose(10, 11, 2, rtopk_jax.Wire()), ValueError, "k must be at most 10.*got 11"),
    (lambda: AUTO.choose(10, 0, 2, rtopk_jax.Wire()), ValueError, "k must be at least 1, got 0"),
    (lambda: AUTO.choose(10, 1, 0, rtopk_jax.Wire()), ValueError, "num_workers must be at least 1"),
    (lambda: AUTO.choose(1e6, 1, 2, rtopk_jax.Wire()), TypeError, "d must be an integer"),
    (lambda: rtopk_jax.Block(1), ValueError, "size must be at least 2"),
    (lambda: rtopk_jax.Block(1 << 17), ValueError, "size must be at most 65536"),
    (
      lambda: rtopk_jax.sparse_exchange(
        rtopk_jax.top_k(0.1), "data", collective=rtopk_jax.Hierarchical("data")
      ),
      ValueError,
      "must be some but not all",
    ),
    (
      lambda: rtopk_jax.sparse_exchange(
        rtopk_jax.top_k(0.1), "data", wire=rtopk_jax.Wire(indices="block")
      ),
      ValueError,
      'indices="block" need scope',
    ),
  ],
)
def test_wrong_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()
