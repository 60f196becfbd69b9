"""Wrong arguments are refused, by an error that names the argument and what would be right."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax.transform.short import SELECTOR, dense, exchange, sgd

KEY = jax.random.key(0)

ARGUMENTS = [
  # density
  *[
    (lambda make=make, x=x: make(x), ValueError, r"density .*\(0, 1\], got")
    for make in (rtopk_jax.rtop_k, rtopk_jax.top_k, rtopk_jax.random_k)
    for x in (0, 0.0, -0.1, 1.5)
  ],
  (lambda: rtopk_jax.rtop_k(99), ValueError, r"99 % is 0\.99"),
  (lambda: rtopk_jax.top_k(math.nan), ValueError, "density must be finite"),
  (lambda: rtopk_jax.top_k("0.1"), TypeError, "density must be a Python number"),
  (lambda: rtopk_jax.top_k(True), TypeError, "density must be a Python number"),
  (lambda: sgd(density=2.0), ValueError, r"density .*\(0, 1\]"),
  (lambda: rtopk_jax.warmup_density(0.0, 10), ValueError, r"final .*\(0, 1\]"),
  (lambda: rtopk_jax.warmup_density(0.1, 0), ValueError, "steps_per_epoch must be at least 1"),
  (lambda: rtopk_jax.warmup_density(0.1, 1.5), TypeError, "steps_per_epoch must be an integer"),
  (lambda: rtopk_jax.warmup_density(0.1, 5, epochs=0), ValueError, "epochs must be at least 1"),
  (lambda: rtopk_jax.warmup_density(0.1, 5, initial=3), ValueError, r"initial .*\(0, 1\]"),
  (lambda: rtopk_jax.Stages((), 3), ValueError, "densities is empty"),
  (lambda: rtopk_jax.Stages((0.1, 2.0), 3), ValueError, r"densities\[1\]"),
  # subsample
  (lambda: rtopk_jax.rtop_k(0.1, 0.5), ValueError, "subsample is r/k.*at least 1.*0.5"),
  (lambda: rtopk_jax.rtop_k(0.1, "5"), TypeError, "subsample must be a Python number"),
  (lambda: SELECTOR(jnp.ones(9), KEY), ValueError, "subsample=None.*pass num_workers"),
  (lambda: SELECTOR(jnp.ones(9), KEY, 0), ValueError, "num_workers must be at least 1"),
  (lambda: SELECTOR(jnp.ones(9), KEY, 2.0), TypeError, "num_workers must be an integer"),
  # the vector
  (lambda: SELECTOR(jnp.ones((3, 3)), KEY, 2), ValueError, r"vector must have one dimension"),
  (lambda: SELECTOR(jnp.ones(9, jnp.int32), KEY, 2), TypeError, "vector must be floating point"),
  (lambda: SELECTOR(jnp.ones(0), KEY, 2), ValueError, r"vector must have at least one entry"),
  (lambda: rtopk_jax.top_k(0.1).counts(0), ValueError, "size must be at least 1, got 0"),
  (lambda: rtopk_jax.top_k(0.1).counts(2.0), TypeError, "size must be an integer"),
  (lambda: rtopk_jax.top_k(0.1).counts(2**31), ValueError, 'size.*int32.*scope="leaf"'),
  (
    lambda: rtopk_jax.top_k(rtopk_jax.Stages((0.5,), 1))(jnp.ones(9), KEY),
    ValueError,
    r"selector\.at\(stage\)",
  ),
  (lambda: rtopk_jax.top_k(rtopk_jax.Stages((0.5,), 1)).at(1), IndexError, r"stage.*\[0, 1\)"),
  # a density where a selector belongs
  (
    lambda: exchange(selector=0.01),
    TypeError,
    r"selector must be rtop_k.*did you mean rtop_k\(0.01",
  ),
  (lambda: exchange(selector="top_k"), TypeError, "selector must be rtop_k.*got 'top_k'"),
  (lambda: exchange(selector=rtopk_jax.Stages((0.1,), 1)), TypeError, "selector must be rtop_k"),
  # strings and objects
  (
    lambda: exchange(scope="layer"),
    ValueError,
    "scope must be 'global', 'leaf' or a rtopk_jax.Block, got 'layer'",
  ),
  (
    lambda: exchange(average="median"),
    ValueError,
    "average must be one of 'workers'.*got 'median'",
  ),
  (lambda: dense(average="median"), ValueError, "average must be one of"),
  (lambda: exchange(collective="ring"), ValueError, "collective must be one of 'all_gather'"),
  (lambda: exchange(collective=3), TypeError, "collective must be a rtopk_jax.Collective, such"),
  (lambda: exchange(wire=3), TypeError, r"wire must be a rtopk_jax\.Wire"),
  (lambda: exchange(wire="int3"), ValueError, "wire must be one of 'float32'.*got 'int3'"),
  (lambda: rtopk_jax.Wire(values="int3"), ValueError, "values must be one of 'float32'"),
  (lambda: rtopk_jax.Wire(indices="int3"), ValueError, "indices must be one of 'int32'"),
  (lambda: exchange(axis_name=3), TypeError, "axis_name must be the name of a mapped axis"),
  (lambda: exchange(axis_name=()), TypeError, "axis_name must be the name"),
  (lambda: exchange(axis_name=("a", "a")), ValueError, "axis_name must name each axis once.*'a'"),
  (lambda: dense(axis_name=None), TypeError, "axis_name must be the name"),
  # numbers
  *[
    (lambda make=make, x=x: make(momentum=x), ValueError, r"momentum must be in \[0, 1\), got")
    for make in (exchange, dense, sgd)
    for x in (1, -0.1, 1.5)
  ],
  (lambda: exchange(momentum="0.9"), TypeError, "momentum must be a Python number"),
  (lambda: exchange(nesterov=True), ValueError, "nesterov=True has no effect with momentum=0"),
  (lambda: exchange(nesterov=1, momentum=0.9), TypeError, "nesterov must be True or False"),
  (lambda: exchange(error_feedback=1), TypeError, "error_feedback must be True or False"),
  (lambda: exchange(momentum_masking=None), TypeError, "momentum_masking must be True or False"),
  (lambda: exchange(clip_norm=0), ValueError, "clip_norm must be above 0, or None"),
  (lambda: dense(clip_norm=-1.0), ValueError, "clip_norm must be above 0, or None"),
  (lambda: exchange(memory_decay=0), ValueError, r"memory_decay must be in \(0, 1\]"),
  (lambda: exchange(memory_decay=-1), ValueError, r"memory_decay must be in \(0, 1\]"),
  (lambda: exchange(memory_decay=1.1), ValueError, r"memory_decay must be in \(0, 1\]"),
  (
    lambda: exchange(memory_decay=0.9, error_feedback=False),
    ValueError,
    "memory_decay=0.9 has no effect with error_feedback=False",
  ),
  (
    lambda: exchange(memory_dtype=jnp.int8),
    TypeError,
    "memory_dtype must be a floating point dtype",
  ),
  *[
    (lambda dtype=dtype: exchange(memory_dtype=dtype), TypeError, f"memory_dtype .*, got {dtype!r}")
    for dtype in ("floaty", 3, ())
  ],
  (lambda: exchange(seed=0.5), TypeError, "seed must be an integer"),
  (lambda: exchange(seed="a"), TypeError, "seed must be an integer.*got 'a' of type str"),
  (lambda: exchange(seed=None), TypeError, "seed must be an integer"),
  (lambda: exchange(seed=jnp.array([1, 2])), TypeError, r"seed .*scalar array, got .*shape \(2,\)"),
  (lambda: exchange(seed=np.float32(1)), TypeError, "seed must be an integer.*got float32"),
  (lambda: exchange(seed=KEY), TypeError, "seed must be an integer.*got key"),
  (lambda: exchange(seed=True), TypeError, "seed must be an integer"),
  (lambda: sgd(weight_decay=-1e-4), ValueError, "weight_decay must be at least 0"),
  (
    lambda: exchange(selector=rtopk_jax.rtop_k(0.1, unbiased=True)),
    ValueError,
    "unbiased=True .*error_feedback=True.*choose one",
  ),
  (lambda: rtopk_jax.rtop_k(0.1, unbiased=1), TypeError, "unbiased must be True or False"),
  # messages
  (lambda: rtopk_jax.Wire().words(0, 9), ValueError, "k must be at least 1, got 0"),
  (lambda: rtopk_jax.Wire("int8", "elias_fano").words(0, 9), ValueError, "k must be at least 1"),
  (lambda: rtopk_jax.Wire().words(10, 9), ValueError, "k must be at most 9, .*got 10"),
  (lambda: rtopk_jax.Wire().words(1.5, 9), TypeError, "k must be an integer"),
  (lambda: rtopk_jax.Wire().words(1, 9.0), TypeError, "d must be an integer"),
  (lambda: rtopk_jax.Wire(indices="block").words(1, 9), ValueError, 'indices="block"'),
  # costs and metrics
  (
    lambda: rtopk_jax.wire_bytes(exchange(), jnp.ones(9), 0),
    ValueError,
    "num_workers must be at least 1",
  ),
  (
    lambda: rtopk_jax.wire_bytes(exchange(), jnp.ones(9), 2, -1),
    ValueError,
    "step must be at least",
  ),
  (
    lambda: rtopk_jax.exchange_metrics(optax.sgd(0.1).init(jnp.ones(9))),
    ValueError,
    "state has no exchange in it",
  ),
]


@pytest.mark.parametrize(("make", "error", "message"), ARGUMENTS)
def test_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()
