"""Folders of ``train`` import from folders that its docstring lists above them, and never the other way."""

import ast
import graphlib
import pathlib
import re

import train

ROOT = pathlib.Path(train.__file__).parent
FOLDERS = re.findall(r"^    (\w+) ", str(train.__doc__), re.MULTILINE)
MODULES = {
  ".".join(("train", *path.relative_to(ROOT).with_suffix("").parts)): path
  for path in sorted(ROOT.rglob("*.py"))
  if path.name != "__init__.py"
}


def imported(path: pathlib.Path) -> set[str]:
  """The modules of ``train`` that a file imports, in functions too."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} has a relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  # A name of a module stands for that module.
  found = {
    next((x for x in (name, name.rpartition(".")[0]) if x in MODULES), name) for name in names
  }
  return {name for name in found if name.startswith("train.")}


def folder(module: str) -> str | None:
  """The folder of a module; None for those that lie beside the folders."""
  parts = module.split(".")
  return parts[1] if len(parts) > 2 or parts[1] in FOLDERS else None


def test_every_folder_has_its_place_and_says_how_to_read_it():
  assert sorted(FOLDERS) == sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
  for name in FOLDERS:
    doc = ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text()))
    assert doc
    named = set(re.findall(r"``(\w+)``", doc))
    assert {path.stem for path in (ROOT / name).glob("[!_]*.py")} <= named, name


def test_folders_import_only_from_those_above_them():
  for module, path in MODULES.items():
    here = folder(module)
    if here is None:
      continue
    for name in imported(path) - {"train.errors"}:
      there = folder(name)
      assert there is not None, f"{module} imports {name}, which lies beside the folders"
      assert FOLDERS.index(there) <= FOLDERS.index(here), f"{module} imports {name}"


def test_modules_import_each_other_in_no_circle():
  # Raises for a circle, and names it.
  order = graphlib.TopologicalSorter({name: imported(path) for name, path in MODULES.items()})
  assert set(MODULES) <= set(order.static_order())
