"""The pages: their programs run, their tables are the code's, and what they name is there."""

import doctest
import importlib.util
import pathlib
import re
import socket
import subprocess
import sys

import pytest

import rtopk_jax
from docs import tables
from rtopk_jax import estimation

_ROOT = pathlib.Path(__file__).parents[2]
_DOCS = _ROOT / "docs"
_PAGES = {
  path.relative_to(_ROOT).as_posix(): path.read_text()
  for path in [*sorted(_ROOT.glob("*.md")), *sorted(_DOCS.rglob("*.md"))]
}
_BLOCKS = {
  name: re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) for name, text in _PAGES.items()
}
# The README is a doctest, and these have tests of their own.
_ELSEWHERE = ("README.md", "docs/recipes/", "docs/extending.md", "docs/hosts.md")


@pytest.mark.parametrize(
  "page",
  [name for name, blocks in _BLOCKS.items() if blocks and not name.startswith(_ELSEWHERE)],
)
def test_the_blocks_of_a_page_are_a_program(page, usual_promotion):
  names = {"__name__": page}
  runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
  for block in _BLOCKS[page]:
    if block.startswith(">>>"):
      runner.run(
        doctest.DocTestParser().get_doctest(block, names, page, page, 0), clear_globs=False
      )
    else:
      exec(compile(block, page, "exec"), names)
  assert not runner.summarize(verbose=False).failed


def test_the_program_for_many_hosts_runs_in_two_processes(tmp_path):
  (program,) = _BLOCKS["docs/hosts.md"]
  (tmp_path / "own.py").write_text(program)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(_ROOT)}
  processes = [
    subprocess.Popen(
      [sys.executable, tmp_path / "own.py", address, "2", str(rank)],
      env=env,
      stdout=subprocess.PIPE,
      text=True,
    )
    for rank in range(2)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  # Before it stand the lines of what connects the processes.
  assert 0 < float(outputs[0].split()[-1]) < 10


def test_tables_are_what_the_code_says():
  for name, made in tables.TABLES.items():
    page = _PAGES[f"docs/{name}"]
    assert tables.fill(page, made) == page, "python -m docs.tables"
    assert set(re.findall(r"<!-- (\w+) -->", page)) == {*made, "end"}


def _exported(module) -> set[str]:
  return {
    name
    for name, value in vars(module).items()
    if not name.startswith("_") and type(value).__name__ != "module"
  }


@pytest.mark.parametrize("module", [rtopk_jax, estimation], ids=lambda module: module.__name__)
def test_the_reference_has_every_exported_name_once(module):
  found = []
  for name, text in _PAGES.items():
    if name.startswith("docs/api/"):
      for current, part in re.findall(r"currentmodule:: (\S+)\n(.*?)```", text, re.S):
        if current == module.__name__:
          found += re.findall(r"^\.\. auto\w+:: (\w+)", part, re.M)
  assert sorted(found) == sorted(_exported(module))


def test_commands_name_what_is_there():
  text = "\n".join(_PAGES.values())
  modules = set(re.findall(r"python -m ([a-z_]+(?:\.[a-z_]+)*)", text))
  assert len(modules) > 10
  assert [name for name in modules if importlib.util.find_spec(name) is None] == []
  targets = re.findall(r"`make ([a-z-]+)", text) + re.findall(r"^    make ([a-z-]+)", text, re.M)
  known = re.findall(r"^([a-z-]+):", (_ROOT / "Makefile").read_text(), re.M)
  assert set(targets) <= set(known)
  files = re.findall(
    r"(?<![\w/.])((?:configs|examples|study|tests|data|train|docs)/[\w/]+\.\w+)", text
  )
  assert [name for name in files if not (_ROOT / name).exists()] == []


def test_links_between_files_lead_somewhere():
  lost = []
  for name, text in _PAGES.items():
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
      if not ((_ROOT / name).parent / target).exists():
        lost.append(f"{name}: {target}")
  assert lost == []
