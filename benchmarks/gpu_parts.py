"""The parts of ``benchmarks.gpu_check``, each a function of its options and of what takes its records.

A record is a check with what is wrong of it, a table with a title, a measurement of a goal, or facts.
"""

import importlib.metadata
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import kernels, parity, peers, simulated, timing, trees
from benchmarks import selection as selecting
from benchmarks import step as stepping
from benchmarks.gpu_check import Options

Emit = Callable[..., None]

_GPU, _DENSITY, _WORKERS, _BATCH = "gpu", 0.001, 5, 128
# Steps of a profile.
_STEPS = 3
# A network that is compiled in seconds.
_SMALL: dict[str, Any] = {"batch_size": 2, "stages": (1,), "width": 8}


def machine(options: Options, emit: Emit) -> None:
  """What there is."""
  del options
  device = jax.devices()[0]
  jax.block_until_ready(jnp.ones(8) + 1)
  versions = {}
  for name in ("jax", "jaxlib", "torch"):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = "not installed"
  facts = {"platform": device.platform, "device": device.device_kind, "devices": len(jax.devices())}
  emit(facts={**facts, **versions, "PyTorch computes on": peers.torch_device() or "nothing"})


def operations(options: Options, emit: Emit) -> None:
  """Each operation."""
  size = 30_000 if options.quick else 3_000_000
  _check(parity.operations(_GPU, size), emit)
  emit(facts={"operations without a check of their own": ", ".join(parity.unchecked()) or "none"})


def selections(options: Options, emit: Emit) -> None:
  """Selections from a vector that is sorted, and from one that is searched."""
  _check(parity.selections(_GPU, [1000] if options.quick else [1000, 2_000_000]), emit)


def exchanges(options: Options, emit: Emit) -> None:
  """Whole exchanges."""
  found = parity.exchanges(_GPU, 8 if options.quick else 700)
  _check(itertools.islice(found, 3) if options.quick else found, emit)


def _check(checks: Iterable[parity.Check], emit: Emit) -> None:
  for check in checks:
    try:
      check.run()
    except Exception as error:
      emit(check=check.name, wrong=f"{type(error).__name__}: {error}")
    else:
      emit(check=check.name, wrong=None)


def selection(options: Options, emit: Emit) -> None:
  """The selection from vectors of all sizes."""
  least = {}
  for size in options.sizes:
    found = selecting.measure(size, _DENSITY, rounds=options.rounds)
    columns = {name: found[name] for name in ("temporary", "passes")}
    table = timing.table(found["seconds"], selecting.OURS, **columns)
    emit(title=_of(size), table=table, measured=found)
    least[size] = {name: min(times) for name, times in found["seconds"].items()}
    if size == options.sizes[0] and selecting.SAMPLED in least[size]:
      _reach("beside torch", _of(size), least[size], selecting.OURS, selecting.SAMPLED, emit)
    if size == options.sizes[-1]:
      _reach("selection", _of(size), least[size], selecting.OURS, selecting.READ, emit)


def step(options: Options, emit: Emit) -> None:
  """A worker's own share of a step, of trees of all sizes."""
  rivals = stepping.transformations(_DENSITY, ["global"])
  for size in options.sizes:
    tree = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in trees.equal(size)]
    found = stepping.measure(tree, rivals, options.rounds)
    table = timing.table(found["seconds"], stepping.SGD, passes=found["passes"])
    emit(title=_of(size), table=table, measured=found)
    least = {name: min(times) for name, times in found["seconds"].items()}
    for name in rivals:
      if name != stepping.SGD:
        _reach("step", f"{_of(size)}, {name}", least, name, stepping.SGD, emit)


def _of(size: int) -> str:
  return f"d = {size:,}, {100 * _DENSITY:g} %"


def _reach(
  goal: str, case: str, least: dict[str, float], ours: str, theirs: str, emit: Emit
) -> None:
  emit(goal=goal, case=case, measured=least[ours] / least[theirs])


def _training(options: Options) -> tuple[dict[str, Callable[[], Any]], int]:
  """Training steps of ResNet-18, and how many images each takes."""
  own: dict[str, Any] = _SMALL if options.quick else {"batch_size": _BATCH}
  return simulated.rivals(_WORKERS, density=_DENSITY, **own), _WORKERS * own["batch_size"]


def training(options: Options, emit: Emit) -> None:
  """A training step of simulated workers."""
  steps, images = _training(options)
  seconds = timing.in_turn(steps, options.rounds, warm=1)
  title = f"{_WORKERS} workers, {images} images, bfloat16"
  emit(title=title, table=simulated.table(seconds, images), measured={"seconds": seconds})
  least = {name: min(times) for name, times in seconds.items()}
  _reach("training", title, least, simulated.SPARSE, simulated.PLAIN, emit)


def profile(options: Options, emit: Emit) -> None:
  """The kernels of a training step of simulated workers, and of one by plain data parallelism."""
  steps, _ = _training(options)
  for name in (simulated.SPARSE, simulated.PLAIN):
    run = steps[name]
    run()
    found = kernels.profiled(lambda run=run: [run() for _ in range(_STEPS)])
    emit(
      title=f"{name}, a step",
      table=kernels.table(found, _STEPS),
      measured=[kernel._asdict() for kernel in found],
    )
