"""The page on what one writes oneself shows the examples, which are short and use public names alone."""

import ast
import pathlib
import re

import pytest

import rtopk_jax

_ROOT = pathlib.Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "extending.md").read_text()
_EXAMPLES = sorted(
  path
  for path in (_ROOT / "examples").glob("own_*.py")
  if path.stem not in ("own_task", "own_model")
)


def test_the_page_shows_the_examples():
  blocks = re.findall(r"^```python\n(.*?)^```$", _PAGE, re.M | re.S)
  texts = [path.read_text() for path in _EXAMPLES]
  assert len(blocks) == len(texts) == 4
  for block in blocks:
    assert sum(text.endswith(block) for text in texts) == 1


@pytest.mark.parametrize("path", _EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_use_public_names_alone(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 90
  tree = ast.parse(text)
  imported = {
    alias.name if isinstance(node, ast.Import) else node.module
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
    for alias in node.names
  }
  allowed = {"dataclasses", "jax", "jax.numpy", "rtopk_jax"}
  assert imported <= allowed | {"jax.flatten_util", "optax", "typing"}
  used = set(re.findall(r"rtopk_jax\.(\w+)", text))
  assert used
  assert all(hasattr(rtopk_jax, name) and not name.startswith("_") for name in used)


@pytest.mark.parametrize("kind", ["Selector", "WireFormat", "Collective"])
def test_what_the_page_names_there_is(kind):
  (row,) = re.findall(rf"^\| `rtopk_jax\.{kind}` \|(.*)\|$", _PAGE, re.M)
  names = set(re.findall(r"`(\w+)`", row)) - {"density"}
  assert names <= set(dir(getattr(rtopk_jax, kind)))
  assert len(names) <= 5
