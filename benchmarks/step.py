"""The worker's own share of a step, without a link: ``python -m benchmarks.step``.

Clip, memory, selection and code of one worker, then decoding and adding up the messages of four, on the trees
of the paper's two networks, or with ``--size`` (several times, if need be) on 16 leaves of so many entries in
all; beside them, in the same run, one ``optax.sgd(0.1, momentum=0.9)`` update of the same tree and, with torch
installed, one of its ``SGD`` on the same kind of device, which writes the parameters as well. State and gradient
are donated, and a new gradient is put there before each call, outside of the time: in training nobody needs it after
the update. ``passes`` are bytes read and written, as the compiled program says, over 4 d.
"""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo, peers, picture, timing, trees
from rtopk_jax import _axis

AXIS = "workers"
_WORKERS = 4
SGD, _RATE, _MOMENTUM = "optax.sgd", 0.1, 0.9
_SCOPES = ("global", "leaf", rtopk_jax.Block(4096))
_SELECTORS = {
  "rtop_k": functools.partial(rtopk_jax.rtop_k, subsample=_WORKERS),
  "top_k": rtopk_jax.top_k,
  "random_k": rtopk_jax.random_k,
}
_MEMORIES = {
  "residual": {},
  "clip, momentum, residual": {"clip_norm": 1.0, "momentum": 0.9},
}


@contextlib.contextmanager
def _others() -> Iterator[None]:
  """Within this context what is traced hears every message four times, as if all workers had sent it."""
  gather = _axis.all_gather

  def echo(words, axis_name):
    # Gathered all the same: memory changes after a worker has heard of others, and not before.
    return jnp.broadcast_to(gather(words, axis_name), (_WORKERS, *words.shape))

  with mock.patch.object(_axis, "all_gather", echo):
    yield


def _gradient(params: Any, seed: int) -> Any:
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  drawn = [jax.random.laplace(key, x.shape) for key, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, drawn)


class _Update(NamedTuple):
  """An update that is timed.

  Attributes:
    fill: gets ready for an update, outside of its time: puts a gradient where it was given away.
    run: makes an update.
    passes: over d, by the compiled program.
  """

  fill: Callable[[], Any]
  run: Callable[[], Any]
  passes: float


def _update(
  tx: optax.GradientTransformation, params: Any, donate_gradient: bool = False
) -> _Update:
  mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
  specs = rtopk_jax.state_specs(tx, params, AXIS)

  def update(state, gradient):
    updates, state = tx.update(gradient, state)
    # Donated memory goes to the first result of its size: arguments and results are in the same order.
    return state, updates

  mapped = jax.shard_map(
    update, mesh=mesh, in_specs=(specs, P()), out_specs=(specs, P()), check_vma=False
  )
  drawn = _gradient(params, seed=0)
  copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
  gradient = copy(drawn)
  state = rtopk_jax.init(tx, jax.tree.map(jnp.zeros_like, drawn), mesh, AXIS)
  with _others():
    donated = (0, 1) if donate_gradient else (0,)
    step = jax.jit(mapped, donate_argnums=donated).lower(state, gradient).compile()
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  passes = sum(moved for moved, _ in hlo.Program(str(step.as_text())).moved(turns=True)) / (
    4 * size
  )

  updates = None

  def fill():
    nonlocal gradient, updates
    updates = None
    if donate_gradient:
      gradient = jax.block_until_ready(copy(drawn))

  def run():
    nonlocal state, updates
    state, updates = step(state, gradient)
    jax.block_until_ready((state, updates))

  return _Update(fill, run, passes)


def _torch_sgd(params: Any, device: str) -> Callable[[], Any]:
  import torch  # pyright: ignore[reportMissingImports]

  tensors = []
  for leaf in jax.tree.leaves(_gradient(params, seed=0)):
    tensors.append(torch.zeros(leaf.shape, device=device, requires_grad=True))
    tensors[-1].grad = torch.from_numpy(np.array(leaf)).to(device)
  return peers.waited_for(torch.optim.SGD(tensors, _RATE, _MOMENTUM).step, device)


def transformations(
  density: float,
  scopes: Sequence[str | rtopk_jax.Block] = _SCOPES,
  selector: str = "rtop_k",
  wires: Sequence[str] = (),
) -> dict[str, Any]:
  """What is timed.

  Args:
    density: k/d.
    scopes: of the exchange.
    selector: by its name.
    wires: of blocks, with indices within them, beside the plain one: the code of their values.

  Returns:
    A transformation by the name of its row.
  """
  chosen = _SELECTORS[selector](density)
  rivals: dict[str, Any] = {SGD: optax.sgd(_RATE, _MOMENTUM)}
  for scope in scopes:
    of = scope if isinstance(scope, str) else f"blocks of {scope.size}"
    for name, memory in _MEMORIES.items():
      exchange = functools.partial(
        rtopk_jax.sparse_exchange, chosen, AXIS, scope=scope, dense=False, **memory
      )
      rivals[f"{of}: {name}"] = exchange()
      for values in wires if isinstance(scope, rtopk_jax.Block) else ():
        wire = rtopk_jax.Wire(values=values, indices="block")
        rivals[f"{of}: {name}, {values}"] = exchange(wire=wire)
  return rivals


def scope_of(text: str) -> str | rtopk_jax.Block:
  """The scope that an argument stands for: of a number, blocks of so many entries."""
  return rtopk_jax.Block(int(text)) if text.isdigit() else text


def _trees(names: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[str, Any]]:
  """What is updated: the networks, or trees of so many entries."""
  for name in names:
    # Needs what training needs.
    from benchmarks import models

    yield name, models.model(name).params
  for size in sizes:
    yield f"d = {size:,}", [jax.ShapeDtypeStruct(x, jnp.float32) for x in trees.equal(size)]


def measure(
  params: Any, rivals: dict[str, Any], rounds: int = 15, donate_gradient: bool = False
) -> dict[str, Any]:
  """Times updates of one tree in turn, and of PyTorch where it is installed.

  Args:
    params: the tree, arrays or ``ShapeDtypeStruct``.
    rivals: what ``transformations`` returned.
    rounds: how often each is timed.
    donate_gradient: whether an update may have the gradient's memory.

  Returns:
    By the name of each rival "seconds" of every call, and "passes" over d.
  """
  updates = {name: _update(tx, params, donate_gradient) for name, tx in rivals.items()}
  runs = {name: update.run for name, update in updates.items()}
  device = peers.torch_device()
  if device is not None:
    runs["torch.optim.SGD"] = _torch_sgd(params, device)
  first = {name: update.fill for name, update in updates.items()}
  seconds = timing.in_turn(runs, rounds, first=first)
  return {"seconds": seconds, "passes": {name: x.passes for name, x in updates.items()}}


def main() -> None:
  """Prints a table a tree."""
  parser = argparse.ArgumentParser(description="Times the worker-local step beside optax.sgd.")
  parser.add_argument("--only", action="append", choices=trees.NETWORKS, help="networks")
  parser.add_argument(
    "--size",
    type=lambda x: int(float(x)),
    action="append",
    default=[],
    help="d of a tree of equal leaves, in place of networks that --only does not name",
  )
  parser.add_argument(
    "--scope",
    type=scope_of,
    action="append",
    help="global, leaf or a block's entries; default: global, leaf and 4096",
  )
  parser.add_argument("--selector", choices=_SELECTORS, default="rtop_k")
  parser.add_argument(
    "--wire",
    action="append",
    default=[],
    help="values of blocks whose indices are within them, such as float32 or int2, beside the plain wire",
  )
  parser.add_argument("--density", type=float, default=0.001, help="k/d")
  parser.add_argument(
    "--donate-gradient", action="store_true", help="the update may have the gradient's memory"
  )
  parser.add_argument("--rounds", type=int, default=15, help="how often each is timed")
  parser.add_argument("--json", help="a file for the times")
  parser.add_argument("--png", help="a file for the picture")
  options = parser.parse_args()
  told = {**vars(options), "scope": [str(scope) for scope in options.scope or _SCOPES]}
  results, dots = {}, {}
  names = options.only or ([] if options.size else trees.NETWORKS)
  rivals = transformations(
    options.density, options.scope or _SCOPES, options.selector, options.wire
  )
  for name, params in _trees(names, options.size):
    found = measure(params, rivals, options.rounds, options.donate_gradient)
    print(f"\n{name}\n\n{timing.table(found['seconds'], SGD, passes=found['passes'])}")
    results[name] = found
    dots[name] = {rival: 1e3 * float(np.median(x)) for rival, x in found["seconds"].items()}
    timing.save(options.json, {"options": told, "trees": results})
  picture.dots(options.png, dots, "milliseconds")


if __name__ == "__main__":
  main()
