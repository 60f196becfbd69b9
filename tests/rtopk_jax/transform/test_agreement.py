"""Thirty steps of the library against thirty of the NumPy reference."""

import itertools

import jax.numpy as jnp
import pytest

import rtopk_jax
from tests.rtopk_jax import harness

STEPS = 30
SHAPES = {"a": (5, 8), "b": (23,), "empty": (0, 3)}
CLIP = 10.0  # a worker's gradient has a norm of about 26
PRODUCT = {
  "kind": ["rtop_k", "top_k", "random_k"],
  "scope": ["global", "leaf"],
  "average": ["workers", "senders", "sum"],
  "clip_norm": [None, CLIP],
  "error_feedback": [True, False],
}
MOMENTUM = [{"momentum": m, "momentum_masking": x} for m in (0.0, 0.5) for x in (True, False)]


def product(**factors):
  return [dict(zip(factors, case, strict=True)) for case in itertools.product(*factors.values())]


def name(case):
  return ",".join(f"{key}={getattr(value, '__name__', value)}" for key, value in case.items())


# The others take minutes to compile; pairs of all options are in the default suite below.
_IN_DEFAULT = lambda case: (
  case["kind"] == "rtop_k"
  and case["scope"] == "global"
  and case["average"] == "senders"
  and (case["clip_norm"] is None) != case["error_feedback"]
)


@pytest.mark.parametrize(
  "case",
  [
    pytest.param(case, marks=[] if _IN_DEFAULT(case) else pytest.mark.slow, id=name(case))
    for case in product(**PRODUCT)
  ],
)
def test_full_product_simulated_by_five_workers(case):
  grads = harness.gradients(SHAPES, STEPS, 5)
  for options in MOMENTUM:
    harness.check("vmap", grads, **case, **options)


WARM_UP = rtopk_jax.Stages((0.5, 0.01), 15)
FACTORS = {
  "mode": list(harness.MODES),
  "num_workers": [1, 2, 4, 5],
  **PRODUCT,
  "momentum": [0.0, 0.5],
  "nesterov": [False, True],
  "momentum_masking": [True, False],
  "memory_decay": [1.0, 0.5],
  "dense": [False, {"a": False, "b": True, "empty": True}],
  "memory_dtype": [None, jnp.bfloat16],
  "dtype": [jnp.float32, jnp.bfloat16],
  "density": [0.1, WARM_UP],
}


def allowed(case):
  has_momentum = case.get("momentum") != 0.0
  has_memory = case.get("error_feedback") is not False
  return (has_momentum or not case.get("nesterov")) and (
    has_memory or case.get("memory_decay") != 0.5
  )


@pytest.mark.parametrize(
  "case",
  [
    # Every third case, for the time it takes to compile them.
    pytest.param(case, marks=pytest.mark.slow if i % 3 else [], id=name(case))
    for i, case in enumerate(harness.pairwise(FACTORS, allowed))
  ],
)
def test_every_pair_of_options_in_every_mode(case):
  case = dict(case)
  grads = harness.gradients(SHAPES, STEPS, case.pop("num_workers"), dtype=case.pop("dtype"))
  mode = case.pop("mode")
  # In one mode with the machine code that users run.
  harness.check(mode, grads, quick=mode != "shard_map", **case)


@pytest.mark.slow
@pytest.mark.parametrize(
  "case",
  product(
    mode=harness.MODES, num_workers=(1, 2, 4, 5), kind=PRODUCT["kind"], scope=PRODUCT["scope"]
  ),
  ids=name,
)
def test_full_product_in_every_mode(case):
  case = dict(case)
  mode, grads = case.pop("mode"), harness.gradients(SHAPES, STEPS, case.pop("num_workers"))
  rest = {key: values for key, values in PRODUCT.items() if key not in case}
  for options in product(**rest):
    for momentum in MOMENTUM:
      harness.check(mode, grads, **case, **options, **momentum)


NORMAL = [
  {"momentum": 0.9, "nesterov": True, "clip_norm": 2.0},
  {"subsample": 2, "error_feedback": False, "unbiased": True, "momentum": 0.9},
  {"density": 1.0, "momentum": 0.9},
]
SLOW_NORMAL = [
  {"momentum": 0.9},
  {"momentum": 0.9, "memory_decay": 0.95, "average": "senders"},
  {
    "momentum": 0.9,
    "kind": "top_k",
    "dense": {"a": False, "b": True, "empty": False},
    "clip_norm": 2.0,
  },
  {"kind": "random_k", "error_feedback": False, "unbiased": True},
  {"subsample": 1.5, "scope": "leaf", "seed": 7},
]


@pytest.mark.parametrize(
  "options", [*NORMAL, *(pytest.param(x, marks=pytest.mark.slow) for x in SLOW_NORMAL)], ids=name
)
def test_normal_gradients_agree_to_rounding(options):
  grads = harness.gradients(SHAPES, STEPS, 4, powers=False)
  harness.check("vmap", grads, exact=False, **options)


def test_pairs_are_covered_and_cases_allowed():
  cases = list(harness.pairwise(FACTORS, allowed))
  assert all(allowed(case) for case in cases)
  for a, b in itertools.combinations(FACTORS, 2):
    for x, y in itertools.product(FACTORS[a], FACTORS[b]):
      assert not allowed({a: x, b: y}) or any(case[a] == x and case[b] == y for case in cases)
  assert len(cases) < 30


# Each platform's way with shorter ones is in ``test_platforms``.
SEARCHED = {
  "global": ("shard_map", {"momentum": 0.5}),
  "leaf": ("vmap", {"momentum": 0.5, "scope": "leaf", "kind": "top_k"}),
  "momentum": ("vmap", {"momentum": 0.5, "error_feedback": False}),
  "residual": ("vmap", {}),
}


@pytest.mark.parametrize(
  ("mode", "options"),
  [
    pytest.param(*case, id=name, marks=[] if name == "global" else pytest.mark.slow)
    for name, case in SEARCHED.items()
  ],
)
def test_vectors_that_are_searched(mode, options):
  grads = harness.gradients({"c": (3, 40), "v": (300, 301), "w": (90, 500)}, 3, 2)
  harness.check(mode, grads, density=0.001, **options)


@pytest.mark.slow
def test_clipped_vectors_that_are_searched():
  grads = harness.gradients({"c": (3, 40), "w": (350, 400)}, 3, 2)
  harness.check("shard_map", grads, density=0.001, momentum=0.5, clip_norm=CLIP)
