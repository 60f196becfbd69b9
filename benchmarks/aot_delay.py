"""What a delayed exchange's collective waits for, in programs compiled for hardware that is not here.

    python -m benchmarks.aot_delay tpu
    python -m benchmarks.aot_delay gpu [--gather-ms=10]

With ``delay=1`` a step's collective needs the state alone. For each target this compiles the training step of an LSTM.
It prints where the compiler's schedule puts the collective's start and end, and the backward pass. It fails where an
instruction of the gradient comes before the collective because that waits for it, or after it because it waits itself.

Schedulers for GPUs begin a collective as late as its time on the link allows, which they guess. So programs for GPUs
are compiled once more with a profile, which says how long the gather takes. There, and on TPUs, this fails unless the
whole backward pass lies between the collective's start and its end.
"""

import argparse
import dataclasses
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator

# First of all, since it tells JAX what to compile for.
from benchmarks import aot

# isort: split
import jax
import optax
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo, models

_START = re.compile(r"all-gather-start|async-collective-start")
_DONE = re.compile(r"all-gather-done|async-collective-done")
# How JAX names what a backward pass is made of, and what computes nothing under such a name.
_BACKWARD, _NAMES_A_PART = "transpose(", "get-tuple-element"
_TARGETS = {"tpu": ("TPU v5e 4x4",), "gpu": ("8 H100",)}
_MODEL = "lstm"
_PROFILE = "xla_gpu_pgle_profile_file_or_directory_path"


@dataclasses.dataclass(frozen=True)
class Window:
  """Where a schedule has what matters, by the numbers of instructions.

  Attributes:
    start: of the collective.
    done: its end.
    backward: those of the backward pass.
    early: of these, those that the collective's start waits for.
    late: those that wait for its end.
    count: all instructions.
  """

  start: int
  done: int
  backward: tuple[int, ...]
  early: tuple[int, ...]
  late: tuple[int, ...]
  count: int

  @property
  def inside(self) -> float:
    """The share of the backward pass that is scheduled between start and end."""
    return sum(self.start < i < self.done for i in self.backward) / len(self.backward)


def window(program: hlo.Program) -> Window:
  """Finds them.

  Args:
    program: a compiled step with one gather of messages.

  Raises:
    ValueError: when it has no such gather, or several.
  """
  names = {x.name: i for i, x in enumerate(program.entry)}
  edges = [[names[o] for o in x.operands if o in names] for x in program.entry]
  starts, ends = (
    [i for i, x in enumerate(program.entry) if pattern.match(x.name)] for pattern in (_START, _DONE)
  )
  if len(starts) != 1 or len(ends) != 1:
    raise ValueError(
      f"the program has {len(starts)} starts and {len(ends)} ends of a gather, not one."
    )
  backward = [
    i for i, x in enumerate(program.entry) if _BACKWARD in x.text and x.opcode != _NAMES_A_PART
  ]
  before = _reached([starts[0]], edges)
  after = {i for i in backward if ends[0] in _reached([i], edges)}
  return Window(
    starts[0],
    ends[0],
    tuple(backward),
    tuple(sorted(before & set(backward))),
    tuple(sorted(after)),
    len(program.entry),
  )


def _reached(begin: Iterable[int], edges: list[list[int]]) -> set[int]:
  """What some instructions are made of, themselves included."""
  found, rest = set(), list(begin)
  while rest:
    i = rest.pop()
    if i not in found:
      found.add(i)
      rest += edges[i]
  return found


def lowered(target: aot.Target) -> jax.stages.Lowered:
  """The step of an LSTM with a delayed exchange, to be compiled.

  Args:
    target: the hardware.
  """
  mesh, model = target.mesh(), models.model(_MODEL)
  selector = rtopk_jax.rtop_k(0.001)
  exchange = rtopk_jax.sparse_exchange(selector, aot.WORKERS, momentum=0.9, dense=False, delay=1)
  tx = optax.chain(exchange, optax.sgd(0.1))
  step = rtopk_jax.make_train_step(model.loss_fn, tx, mesh, aot.WORKERS, has_aux=True)
  params = aot.placed(model.params, mesh, P())
  state = aot.state(tx, model.params, mesh, aot.WORKERS)
  batch = aot.dealt(model.batch, mesh, aot.WORKERS)
  return step.lower(params, state, batch)


def windows(target: aot.Target, gather_ms: float) -> Iterator[tuple[str, Window, bool]]:
  """A row of the table for each way of compiling the step.

  Args:
    target: the hardware.
    gather_ms: how long a profile says that the gather takes, milliseconds.

  Yields:
    Its name, the ``Window``, and whether all of the backward pass has to be inside.
  """
  step = lowered(target)
  program = hlo.Program(str(step.compile().as_text()))
  plain, is_gpu = window(program), target.platform == "cuda"
  yield target.name, plain, not is_gpu
  if is_gpu:
    with tempfile.NamedTemporaryFile("w", suffix=".pbtxt") as profile:
      profile.write(
        f'costs {{ name: "{program.entry[plain.start].name}" cost_us: {1e3 * gather_ms} }}'
      )
      profile.flush()
      options: dict[str, str | bool] = {_PROFILE: profile.name}
      told = step.compile(compiler_options=options)
    yield f"{target.name}, told {gather_ms:g} ms", window(hlo.Program(str(told.as_text()))), True


def main() -> int:
  """Prints a row for each program; 1 where a collective and a gradient do not go on at once."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("platform", choices=_TARGETS)
  parser.add_argument(
    "--gather-ms", type=float, default=10.0, help="what a profile for GPUs says a gather takes"
  )
  options = parser.parse_args()
  misses = []
  print("| hardware | instructions | start | end | backward pass | of it between start and end |")
  print("|---|---|---|---|---|---|")
  for target in aot.TARGETS[options.platform]:
    if target.name not in _TARGETS[options.platform]:
      continue
    for name, found, hides_all in windows(target, options.gather_ms):
      span = f"{found.backward[0]} to {found.backward[-1]}"
      print(
        f"| {name} | {found.count} | {found.start} | {found.done} | {span} | {found.inside:.0%} |"
      )
      if found.early or found.late:
        misses.append(f"{name}: collective and gradient wait for each other")
      if hides_all and found.inside < 1:
        misses.append(
          f"{name}: {1 - found.inside:.0%} of the backward pass is not under the gather"
        )
  for miss in misses:
    print(miss, file=sys.stderr)
  return 1 if misses else 0


if __name__ == "__main__":
  sys.exit(main())
