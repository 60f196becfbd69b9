"""Which kernels a device ran, and for how long: read from a profile of JAX's own, without TensorBoard."""

import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# Kernels that move numbers and work nothing out, by their names.
_MOVES = re.compile(r"memcpy|memset|copy|transpose|slice|concatenate|broadcast|pad", re.IGNORECASE)


class Kernel(NamedTuple):
  """Kernels of one name.

  Attributes:
    name: without its number.
    count: how many ran.
    seconds: that they took together.
  """

  name: str
  count: int
  seconds: float

  @property
  def moves(self) -> bool:
    """Whether they only move numbers, as far as the name tells."""
    return bool(_MOVES.search(self.name))


def profiled(run: Callable[[], Any]) -> list[Kernel]:
  """The kernels of a function that was called before, so that nothing is compiled.

  Args:
    run: returns when its work is done.

  Returns:
    Kernels by name, those that took longest first.
  """
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      run()
    found = list(pathlib.Path(folder).rglob("*.xplane.pb"))
    if not found:
      raise RuntimeError("The profiler wrote no profile.")
    return of_planes(jax.profiler.ProfileData.from_file(str(found[0])).planes)


def of_planes(planes: Any) -> list[Kernel]:
  """The kernels of a profile.

  Args:
    planes: of ``jax.profiler.ProfileData``: a GPU's own, whose lines are its streams; without one, those of the host,
      where the operations of compiled programs are named as such.

  Returns:
    Kernels by name, those that took longest first.
  """
  planes = list(planes)
  devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
  found: dict[str, list[float]] = {}
  for plane in devices or planes:
    for line in plane.lines:
      # Other lines of a GPU repeat what its streams have, by operations and by programs.
      if devices and not line.name.startswith("Stream"):
        continue
      for event in line.events:
        if devices or any(name == "hlo_op" for name, _ in event.stats):
          name = re.sub(r"[._\d]+$", "", event.name) or event.name
          found.setdefault(name, []).append(event.duration_ns / 1e9)
  kernels = [Kernel(name, len(times), sum(times)) for name, times in found.items()]
  return sorted(kernels, key=lambda kernel: -kernel.seconds)


def table(kernels: list[Kernel], steps: int, most: int = 15) -> str:
  """The kernels that took longest, all that only move numbers, and all together, of a step each.

  Args:
    kernels: of some steps.
    steps: how many.
    most: how many are listed.

  Returns:
    A Markdown table.
  """
  total = sum(kernel.seconds for kernel in kernels) or 1
  moving = [kernel for kernel in kernels if kernel.moves]
  shown = [
    *((kernel.name, [kernel]) for kernel in kernels[:most]),
    ("all that only move", moving),
    ("all", kernels),
  ]
  lines = ["| kernel | of a step | ms of a step | % of the time |", "|---|---|---|---|"]
  for name, group in shown:
    count, seconds = sum(x.count for x in group), sum(x.seconds for x in group)
    lines.append(
      f"| {name} | {count / steps:,.0f} | {1e3 * seconds / steps:.3f} | {100 * seconds / total:.1f} |"
    )
  return "\n".join(lines)
