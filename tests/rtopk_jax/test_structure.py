"""The shape of the library: imports lead downward, platforms are named in one place, modules are short.

Everything is read from the source with ``ast``; nothing is imported. CONTRIBUTING.md explains the rules.
"""

import ast
import pathlib
import re

import pytest

import rtopk_jax

_ROOT = pathlib.Path(__file__).parents[2] / "rtopk_jax"

# From top to bottom. A module imports only from its own folder and from what stands below it.
_LAYERS = (
  "plan",
  "planning",
  "mesh",
  "transform",
  "exchange",
  "wire",
  "memory",
  "select",
  "kernels",
  "vector",
  "_axis",
  "_agreed",
  "_modes",
  "_platform",
  "_precision",
  "_loops",
  "_checks",
)
_FOLDERS = tuple(name for name in _LAYERS if (_ROOT / name).is_dir())
# Where platforms may be named.
_OF_PLATFORMS = ("kernels", "vector", "_platform")

_MOST_LINES = 400
_MOST_LINES_OF_UPDATE = 200
_MOST_LINES_OF_MEMORY = 300
_MOST_DISPATCHES = 6

_PLATFORM = re.compile(
  r"(?<![a-z])(cpu|gpu|tpu)s?(?![a-z])|cuda|rocm|platform_dependent|default_backend", re.IGNORECASE
)


class Module:
  """A file of the library.

  Args:
    path: where it is.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path.relative_to(_ROOT).as_posix()
    self.name = ".".join(["rtopk_jax", *path.relative_to(_ROOT).with_suffix("").parts])
    self.text = path.read_text()
    self.tree = ast.parse(self.text)

  @property
  def layer(self) -> str:
    """The folder that it is in, or itself."""
    return self.path.split("/")[0].removesuffix(".py")

  def imports(self) -> list[tuple[str, int]]:
    """The modules of the library that it imports when it is run, and the lines that say so."""
    for_types = {
      id(inner)
      for node in ast.walk(self.tree)
      if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
      for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(self.tree):
      if id(node) in for_types:
        continue
      if isinstance(node, ast.Import):
        found += [(alias.name, node.lineno) for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{self.path}:{node.lineno} has a relative import"
        found += [(_module_of(node.module or "", alias.name), node.lineno) for alias in node.names]
    return [(name, line) for name, line in found if name.split(".")[0] == "rtopk_jax"]


def _module_of(package: str, name: str) -> str:
  """What ``from package import name`` imports: a module of that name, or something in the package."""
  full = f"{package}.{name}"
  return full if full in _MODULES else package


_PATHS = sorted(_ROOT.rglob("*.py"))
_MODULES: dict[str, Module] = {}
for _path in _PATHS:
  _module = Module(_path)
  _MODULES[_module.name.removesuffix(".__init__")] = _module
# The statistics of the paper stand apart: they use the library as its users do.
_CORE = [x for x in _MODULES.values() if x.layer not in ("__init__", "estimation")]


def test_every_module_has_a_layer():
  assert {x.layer for x in _CORE} == set(_LAYERS)


def test_imports_lead_downward():
  back = []
  for module in _CORE:
    for name, line in module.imports():
      imported = _MODULES[name].layer
      if imported == module.layer and module.path.count("/"):
        continue
      below = _LAYERS[_LAYERS.index(module.layer) + 1 :]
      if imported not in below:
        back.append(f"{module.path}:{line} imports {name}")
  assert not back


def test_nothing_needs_the_statistics():
  found = [
    f"{module.path}:{line}"
    for module in _MODULES.values()
    for name, line in module.imports()
    if module.layer != "estimation" and name.startswith("rtopk_jax.estimation")
  ]
  assert not found


@pytest.mark.parametrize("folder", [*_FOLDERS, "estimation"])
def test_modules_of_a_folder_import_each_other_in_one_direction(folder):
  modules = {name: x for name, x in _MODULES.items() if x.layer == folder}
  left = {
    name: {of for of, _ in module.imports() if of in modules} for name, module in modules.items()
  }
  while left:
    free = [name for name, wanted in left.items() if not wanted & left.keys()]
    assert free, f"these import each other in a circle, or wait for those that do: {sorted(left)}"
    for name in free:
      del left[name]


@pytest.mark.parametrize("folder", _FOLDERS)
def test_a_folder_shows_what_users_get_from_it(folder):
  face = _MODULES[f"rtopk_jax.{folder}"]
  assert ast.get_docstring(face.tree)
  shown = [alias.asname for node in face.tree.body for alias in getattr(node, "names", ())]
  # What is for the layers above alone does not go through the package.
  if folder == "kernels":
    return
  own = [
    name
    for name, x in vars(rtopk_jax).items()
    if getattr(x, "__module__", "").startswith(f"rtopk_jax.{folder}.")
  ]
  assert sorted(map(str, shown)) == sorted(own)


@pytest.mark.parametrize("folder", _FOLDERS)
def test_the_docstring_of_a_folder_names_its_modules(folder):
  text = ast.get_docstring(_MODULES[f"rtopk_jax.{folder}"].tree) or ""
  named = set(re.findall(r"``(_[a-z_]+)(?:\.\w+)?``", text))
  modules = {name.split(".")[-1] for name in _MODULES if name.startswith(f"rtopk_jax.{folder}.")}
  assert named <= modules
  # That of ``kernels`` names operations rather than files.
  assert folder == "kernels" or named == modules


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", "docs/performance.md"])
def test_modules_that_a_page_names_are_there(page):
  text = (_ROOT.parent / page).read_text()
  named = re.findall(rf"`(?:rtopk_jax/)?((?:{'|'.join(_FOLDERS)})/\w+\.py)`", text)
  assert [path for path in named if not (_ROOT / path).exists()] == []


def _docstrings(tree: ast.Module) -> dict[int, tuple[ast.AST, ast.Constant]]:
  """All docstrings by the identity of their node, and what they are of."""
  kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
  found = {}
  for node in ast.walk(tree):
    if isinstance(node, kinds) and node.body and ast.get_docstring(node) is not None:
      text = node.body[0].value  # pyright: ignore[reportAttributeAccessIssue]
      found[id(text)] = (node, text)
  return found


def _words(node: ast.AST) -> list[str]:
  """The names and strings that a node itself has."""
  if isinstance(node, ast.Constant):
    return [node.value] if isinstance(node.value, str) else []
  fields = ("id", "attr", "arg", "name", "asname", "module")
  return [x for x in (getattr(node, field, None) for field in fields) if isinstance(x, str)]


def _names_platforms(module: Module) -> list[tuple[str, int]]:
  """What of a module names a platform, and the line: its code, its docstring, those of its classes."""
  docstrings = _docstrings(module.tree)
  found = []
  for node in ast.walk(module.tree):
    of, text = docstrings.get(id(node), (None, None))
    if text is not None and not isinstance(of, ast.Module | ast.ClassDef):
      continue
    if any(_PLATFORM.search(word) for word in _words(node)):
      owner = "the code" if text is None else getattr(of, "name", "the module")
      found.append((owner, getattr(node, "lineno", 1)))
  return found


def test_platforms_are_named_in_one_place():
  found = {
    (module.path, owner): f"{module.path}:{line}, {owner}"
    for module in _CORE
    if module.layer not in _OF_PLATFORMS
    for owner, line in _names_platforms(module)
  }
  # Docstrings of public classes tell users about hardware of theirs.
  public = set(vars(rtopk_jax))
  assert not [where for key, where in found.items() if key[1] not in public]


@pytest.mark.parametrize(
  ("source", "owners"),
  [
    ('if backend == "gpu": pass', ["the code"]),
    ("is_tpu = True", ["the code"]),
    ("x = lax.platform_dependent(y)", ["the code"]),
    ('x = f"{y} on CPUs"', ["the code"]),
    ('"""As TPUs do."""', ["the module"]),
    ('class A:\n  """On CUDA."""', ["A"]),
    ('def f():\n  """On a GPU."""  # and on CPUs', []),
    ("output, cpuset, tpulse = 1, 2, 3", []),
  ],
)
def test_a_platform_is_found_where_it_is_named(source, owners):
  module = Module(_ROOT / "_checks.py")
  module.tree = ast.parse(source)
  assert [owner for owner, _ in _names_platforms(module)] == owners


def test_the_platform_is_asked_for_in_kernels_alone():
  asked = []
  for module in _CORE:
    for node in ast.walk(module.tree):
      is_call = isinstance(node, ast.Attribute) and ast.unparse(node) == "_platform.current"
      is_import = isinstance(node, ast.ImportFrom) and node.module == "rtopk_jax._platform"
      if is_call or (is_import and any(alias.name == "current" for alias in node.names)):
        asked.append(f"{module.path}:{node.lineno}")
  assert 1 <= len(asked) <= _MOST_DISPATCHES
  assert all(where.startswith("kernels/") for where in asked)


def test_modules_are_short():
  lines = {module.path: module.text.count("\n") for module in _MODULES.values()}
  assert {path: count for path, count in lines.items() if count > _MOST_LINES} == {}


def test_the_memory_is_updated_in_one_short_file():
  lines = {
    path: _MODULES[f"rtopk_jax.memory.{path}"].text.count("\n") for path in ("_rule", "_update")
  }
  assert lines["_update"] <= _MOST_LINES_OF_UPDATE
  assert sum(lines.values()) <= _MOST_LINES_OF_MEMORY
  # ``Memory.accumulate`` is the residual's equation.
  callers = {
    module.path
    for module in _CORE
    for node in ast.walk(module.tree)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".accumulate")
    if ast.unparse(node.func) != "itertools.accumulate"
  }
  assert callers == {"memory/_rule.py", "memory/_update.py"}
