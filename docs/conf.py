"""How Sphinx makes the documentation: `make docs`."""

import os
import pathlib
import re
import sys
from typing import Any

# Docstrings are read from the modules of this copy, and no GPU is asked for.
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import rtopk_jax  # noqa: E402 - found by what stands above

project = "rtopk_jax"
author = "The rtopk_jax authors"
project_copyright = author
version = release = rtopk_jax.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
exclude_patterns = ["_build"]
# Blocks without a language are commands and their output.
highlight_language = "text"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "special-members": "__call__"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"rtopk_jax {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False

linkcheck_anchors = False
linkcheck_timeout = 20


def _skip(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
  """Leaves out the fields of NamedTuples: the docstring of their class says what they are."""
  del app, what, name, skip, options
  return True if type(member).__name__ == "_tuplegetter" else None


def _escape(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
  """Keeps "n." a letter: by itself it begins a list."""
  del app, what, name, item, options
  lines[:] = [re.sub(r"^(\s*|\s*:\w+ \w+: )([A-Za-z])\.", r"\1\2\\.", line) for line in lines]


def setup(app: Any) -> None:
  """Called by Sphinx."""
  app.connect("autodoc-skip-member", _skip)
  # After what turns sections into fields.
  app.connect("autodoc-process-docstring", _escape, priority=900)
