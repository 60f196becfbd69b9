"""One version everywhere, and one set of lower bounds."""

import pathlib
import re
import tomllib

import rtopk_jax

_ROOT = pathlib.Path(__file__).parents[2]


def test_changelog_and_citation_begin_with_the_version():
  (newest, *_) = re.findall(r"^## (\S+?),", (_ROOT / "CHANGELOG.md").read_text(), re.M)
  (cited,) = re.findall(r"^version: (\S+)$", (_ROOT / "CITATION.cff").read_text(), re.M)
  assert newest == cited == rtopk_jax.__version__


def test_the_lower_bounds_are_those_that_are_tested():
  project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
  bounds = dict(bound.split(">=") for bound in project["dependencies"])
  text = (_ROOT / "requirements-oldest.txt").read_text()
  tested = dict(re.findall(r"^(\w+)==(\S+)$", text, re.M))
  assert tested.pop("jaxlib") == tested["jax"]
  assert tested == bounds
