"""A Sphinx extension: formulas as MathML, which browsers draw themselves, without a script from elsewhere."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def display(text: str) -> str:
  r"""A formula on lines of its own.

  Args:
    text: LaTeX, whose lines end with ``\\`` and are aligned at ``&``.

  Returns:
    A ``math`` element.
  """
  # Markdown names the environment, which a docstring leaves out.
  text = text.strip().removeprefix(r"\begin{aligned}").removesuffix(r"\end{aligned}")
  lines = [line.split("&") for line in text.split("\\\\")]
  if lines == [[text]]:
    return convert(text, display="block")
  rows = "".join(f"<mtr>{''.join(map(_cell, line))}</mtr>" for line in lines)
  return (
    '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">'
    f'<mtable displaystyle="true">{rows}</mtable></math>'
  )


def _cell(text: str) -> str:
  inner = convert(text).partition(">")[2].removesuffix("</math>") if text.strip() else ""
  return f"<mtd>{inner}</mtd>"


def _visit_inline(writer: Any, node: nodes.Element) -> None:
  writer.body.append(convert(node.astext()))
  raise nodes.SkipNode


def _visit_block(writer: Any, node: nodes.Element) -> None:
  writer.body.append(f'<div class="formula">{display(node.astext())}</div>')
  raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
  """Called by Sphinx."""
  app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
  return {"parallel_read_safe": True, "parallel_write_safe": True}
