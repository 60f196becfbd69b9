"""Every exported name says what it takes, what it returns, what it raises, and shows itself in an example.

Examples are run as doctests. A method of a class may say "As ``Base.method``" of one that says all.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

import rtopk_jax
from rtopk_jax import estimation

_MODULES = (rtopk_jax, estimation)
_EXPORTED = {
  f"{module.__name__}.{name}": value
  for module in _MODULES
  for name, value in vars(module).items()
  if not name.startswith("_") and callable(value)
}
_CLASSES = {name: value for name, value in _EXPORTED.items() if inspect.isclass(value)}


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
  """The public methods that a class has of its own."""
  for name, value in vars(cls).items():
    function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__"):
      yield name, function


_FUNCTIONS = {name: value for name, value in _EXPORTED.items() if not inspect.isclass(value)} | {
  f"{owner}.{name}": function for owner, cls in _CLASSES.items() for name, function in _methods(cls)
}


def _raises(function: Any) -> bool:
  """Whether the body itself raises, functions within it left out."""
  (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
  nodes = list(ast.iter_child_nodes(tree))
  while nodes:
    node = nodes.pop()
    if isinstance(node, ast.Raise):
      return True
    if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
      nodes += ast.iter_child_nodes(node)
  return False


def _sections(value: Any) -> set[str]:
  return set(re.findall(r"^(\w+):$", inspect.getdoc(value) or "", re.M))


def _original(function: Any) -> str | None:
  """Of which method a docstring says that this one is like it."""
  found = re.match(r"As ``(\w+\.\w+)``", inspect.getdoc(function) or "")
  return found[1] if found else None


def test_there_are_many():
  assert len(_FUNCTIONS) > 100
  assert len(_CLASSES) > 30


@pytest.mark.parametrize("name", _CLASSES)
def test_a_class_says_what_it_has_and_shows_it(name):
  sections = _sections(_CLASSES[name])
  assert "Examples" in sections
  fields = getattr(_CLASSES[name], "__annotations__", {})
  if any(not field.startswith("_") for field in fields):
    assert sections & {"Args", "Attributes"}


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_a_function_says_what_it_takes_returns_and_raises(name):
  function = _FUNCTIONS[name]
  original = _original(function)
  if original is not None:
    (owner,) = {
      cls for path, cls in _CLASSES.items() if path.endswith(f".{original.split('.')[0]}")
    }
    function = getattr(owner, original.split(".")[1])
    assert _original(function) is None
  signature = inspect.signature(function)
  wanted = set()
  if set(signature.parameters) - {"self", "cls"}:
    wanted.add("Args")
  if _raises(function):
    wanted.add("Raises")
  sections = _sections(function)
  assert wanted <= sections
  assert sections & {"Returns", "Yields"}


@pytest.mark.parametrize("name", [name for name, x in _EXPORTED.items() if not inspect.isclass(x)])
def test_a_function_shows_itself(name):
  assert "Examples" in _sections(_EXPORTED[name])


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_arguments_that_are_described_are_those_there_are(name):
  function = _FUNCTIONS[name]
  text = inspect.getdoc(function) or ""
  described = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.M | re.S)
  if described is None:
    return
  named = set(re.findall(r"^  \*{0,2}(\w+):", described[1], re.M))
  there = set(inspect.signature(function).parameters) - {"self", "cls"}
  assert named == there
