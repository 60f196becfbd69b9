"""Each platform's own branch, traced and lowered for it: what only that one does."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import rtopk_jax
from rtopk_jax import _loops
from tests.rtopk_jax.harness import AXIS

# JAX's own names.
LOWERED_FOR = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
# Above what is searched by reading it again and again.
SIZE = 500_003
LEAVES = {"w": (640, 512), "v": (300, 401), "b": (7,)}
SELECTORS = {
  "rtop_k": rtopk_jax.rtop_k(0.001, 4),
  "top_k": rtopk_jax.top_k(0.001),
  "random_k": rtopk_jax.random_k(0.001),
}


def selection(selector):
  """The traced selection from one long vector."""
  vector = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
  return jax.jit(lambda *x: selector(*x)).trace(vector, jax.eval_shape(lambda: jax.random.key(0)))


def step(**options):
  """A traced step of two workers from zero memory."""
  tx = rtopk_jax.sparse_exchange(SELECTORS["rtop_k"], AXIS, dense=False, momentum=0.9, **options)
  one = lambda g: tx.update(g, tx.init(g))
  gradient = {name: jax.ShapeDtypeStruct((2, *x), jnp.float32) for name, x in LEAVES.items()}
  return jax.jit(jax.vmap(one, axis_name=AXIS)).trace(gradient)


STEPS = {
  "global": {},
  "leaf": {"scope": "leaf"},
  "owners": {"collective": "reduce_scatter"},
}
PROGRAMS = {
  **{name: lambda name=name: selection(SELECTORS[name]) for name in SELECTORS},
  **{name: lambda name=name: step(**STEPS[name]) for name in STEPS},
}


def operations(jaxpr, scope=""):
  """All operations with the names of the scopes they are in, inner ones too."""
  for equation in jaxpr.eqns:
    where = f"{scope}/{equation.source_info.name_stack}"
    yield equation.primitive.name, where
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
    ):
      if isinstance(inner, ClosedJaxpr | Jaxpr):
        yield from operations(getattr(inner, "jaxpr", inner), where)


def loops_that_ask(traced):
  """The scopes of loops whose end depends on what they work out: others are scans of a known length."""
  return [where for name, where in operations(traced.jaxpr.jaxpr) if name == "while"]


def lowered(traced, *platforms):
  return traced.lower(lowering_platforms=platforms).as_text()


WORDS_IN_TILES = re.compile(r"tensor<\d+x128xui32>")
# A selection on each platform, and more where there is more to go wrong; the rest in `make test-slow`.
ELSEWHERE = {("gpu", "random_k"), ("tpu", "global")}


@pytest.mark.parametrize(
  ("platform", "name"),
  [
    pytest.param(
      platform,
      name,
      marks=[] if name == "rtop_k" or (platform, name) in ELSEWHERE else pytest.mark.slow,
    )
    for platform in LOWERED_FOR
    for name in PROGRAMS
  ],
  indirect=["platform"],
)
def test_each_platform_has_its_own_branch(platform, name):
  traced = PROGRAMS[name]()
  asking = loops_that_ask(traced)
  seldom = [_loops.SELDOM in where for where in asking]
  if platform == "gpu":
    # A GPU waits for the host at each turn of such a loop: those that are left hardly ever turn.
    assert all(seldom)
  else:
    assert asking
    assert not any(seldom)
  text = lowered(traced, LOWERED_FOR[platform])
  assert bool(WORDS_IN_TILES.search(text)) == (platform == "tpu")


@pytest.mark.parametrize(
  "platform", ["cpu", pytest.param("gpu", marks=pytest.mark.slow), "tpu"], indirect=True
)
def test_one_program_for_all_platforms_has_the_branch_it_was_traced_for(platform):
  """Lowered for several platforms at once: the same branch for each of them."""
  text = lowered(PROGRAMS["rtop_k"](), *LOWERED_FOR.values())
  assert bool(WORDS_IN_TILES.search(text)) == (platform == "tpu")
