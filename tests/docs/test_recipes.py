"""The recipes: every block runs, and at density 1 a recipe comes to what its dense original does."""

import pathlib
import re
import tempfile
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import rtopk_jax

_FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "recipes"
_SHARED = (_FOLDER / "index.md").read_text()
_PAGES = [path.read_text() for path in sorted(_FOLDER.glob("*.md")) if path.stem != "index"]

# What a recipe ends with, and what its dense original does.
_WEIGHTS = {
  "Flax NNX with `nnx.Optimizer`, BatchNorm and Dropout": lambda names: nnx.to_pure_dict(
    nnx.state(names["model"], nnx.Any(nnx.Param, nnx.BatchStat))
  ),
  "Equinox": lambda names: eqx.filter(names["model"], eqx.is_array),
}


class Recipe(NamedTuple):
  """A dense program and the same with the exchange; both begin with what they share.

  Attributes:
    title: of its section.
    shared: code before either.
    dense: the dense program.
    exchange: the one with the exchange.
  """

  title: str
  shared: str
  dense: str
  exchange: str


def _read_pages() -> list[Recipe]:
  """All pairs: a block after "Dense" is one, those after it up to the next are recipes of it."""
  sections = [part for page in _PAGES for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]]
  blocks = lambda text: re.findall(r"^([^\n]*)\n\n```python\n(.*?)^```$", text, re.M | re.S)
  recipes = []
  for section in sections:
    title = section.splitlines()[0]
    shared, dense = [code for _, code in blocks(_SHARED)], None
    for before, code in blocks(section):
      if before.startswith("Dense"):
        dense = code
      elif dense is None:
        shared.append(code)
      else:
        recipes.append(Recipe(title, "\n".join(shared), dense, code))
  return recipes


_RECIPES = _read_pages()
_NAMES = [f"{i}-{recipe.title}" for i, recipe in enumerate(_RECIPES)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, usual_promotion):
  """Checkpoints go where tests leave nothing behind."""
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


# Dropout differs from worker to worker, and each worker rounds its own gradient to bfloat16.
_EXACT = [
  ("rtop_k(0.01)", "rtop_k(1.0)"),
  ("rate=0.1", "rate=0.0"),
  ("jnp.bfloat16", "jnp.float32"),
]


def _run(recipe: Recipe, code: str, changes: list[tuple[str, str]]) -> dict:
  """The names that a program ends with, after changes to its text."""
  text = recipe.shared + "\n" + code
  for old, new in changes:
    text = text.replace(old, new)
  names: dict = {}
  exec(compile(text, recipe.title, "exec"), names)
  return names


def _weights(recipe: Recipe, names: dict) -> list[np.ndarray]:
  found = _WEIGHTS.get(recipe.title, lambda names: (names["params"], names.get("stats")))(names)
  return [np.asarray(x) for x in jax.tree.leaves(found)]


def _lines(code: str) -> int:
  return sum(bool(line.strip()) for line in code.splitlines())


def test_no_block_is_left_out():
  blocks = {code for recipe in _RECIPES for code in (recipe.dense, recipe.exchange)}
  shared = "\n".join(recipe.shared for recipe in _RECIPES)
  text = "".join([_SHARED, *_PAGES])
  fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
  assert len(fenced) > 30
  assert [code for code in fenced if code not in blocks and code not in shared] == []


@pytest.mark.parametrize("recipe", _RECIPES, ids=_NAMES)
def test_it_takes_at_most_ten_lines_more(recipe):
  assert _lines(recipe.exchange) <= _lines(recipe.dense) + 10


# Another library each, and what is not on every page; the rest in `make test-slow`.
_AT_ONE = ("Plain", "Gradient acc", "Flax NNX", "Equinox", "LoRA", "Restoring on", "Compiled ahead")


@pytest.mark.parametrize(
  "recipe",
  [
    recipe if recipe.title.startswith(_AT_ONE) else pytest.param(recipe, marks=pytest.mark.slow)
    for recipe in _RECIPES
  ],
  ids=_NAMES,
)
def test_at_density_one_it_is_the_dense_program(recipe):
  assert recipe.exchange.count("rtop_k(0.01)") == 1
  dense = _run(recipe, recipe.dense, _EXACT)
  names = _run(recipe, recipe.exchange, _EXACT)
  pairs = zip(_weights(recipe, names), _weights(recipe, dense), strict=True)
  assert max(np.abs(a - b).max() for a, b in pairs) <= 1e-5


# Those that differ most from each other.
_DIFFERENT = ("Plain pytrees with `jax.set_mesh`", "Restoring on")


@pytest.mark.parametrize(
  "recipe",
  [
    recipe if recipe.title.startswith(_DIFFERENT) else pytest.param(recipe, marks=pytest.mark.slow)
    for recipe in _RECIPES
  ],
  ids=_NAMES,
)
def test_as_printed_it_sends_little_and_trains(recipe):
  names = _run(recipe, recipe.exchange, [])
  weights = _weights(recipe, names)
  assert all(np.isfinite(x).all() for x in weights)
  assert np.isfinite(names["loss"]).all()
  metrics = rtopk_jax.exchange_metrics(_state(names))
  assert np.all(metrics["skipped_steps"] == 0)
  # What is left in the memory is most of it.
  assert np.all(metrics["residual_norm"] > metrics["sent_norm"])
  assert np.all(metrics["sent_norm"] > 0)


def _state(names: dict):
  """The optimizer's state, wherever a program has it."""
  state = names["state"]
  if "optimizer" in names:
    return nnx.as_pure(names["optimizer"].opt_state)
  return state.opt_state if hasattr(state, "opt_state") else state


def test_frozen_leaves_starve_an_adapter_unless_they_are_kept_from_the_exchange():
  recipe = next(recipe for recipe in _RECIPES if recipe.title.startswith("LoRA"))
  names: dict = {}
  exec(recipe.shared, names)
  params = {**names["params"], "base": np.ones((400, 40), np.float32)}
  gradient = jax.tree.map(np.ones_like, params) | {"base": 2 * params["base"]}
  exchange = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.01), "data", dense=False)
  frozen = optax.masked(optax.set_to_zero(), {"base": True, "down": False, "up": False})
  groups = {"adapter": exchange, "frozen": optax.set_to_zero()}

  def adapted(tx):
    local = lambda scale: jax.tree.map(lambda g: scale * g, gradient)
    update = lambda scale: tx.update(local(scale), tx.init(params), params)[0]
    mapped = jax.jit(jax.vmap(update, out_axes=None, axis_name="data"))
    updates = mapped(np.ones(4, np.float32))
    return sum(np.count_nonzero(updates[name]) for name in ("down", "up"))

  assert adapted(optax.chain(exchange, frozen)) == 0
  assert adapted(optax.partition(groups, names["labels"])) > 0
