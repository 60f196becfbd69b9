"""The worker's own share of a step, without a link: ``python -m benchmarks.step``.

Clip, memory, selection and code of one worker, then decoding and adding up the messages of four, on the trees
of the paper's two networks; beside them, in the same run, one ``optax.sgd(0.1, momentum=0.9)`` update of the
same tree. State is donated in both, as it is in training. ``passes`` are bytes read and written, as the
compiled program says, over 4 d.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo, models, picture, timing
from rtopk_jax import _axis

AXIS = "workers"
_WORKERS = 4
_SGD = "optax.sgd"
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
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.laplace(size=x.shape).astype(np.float32)), params)


def _update(tx: optax.GradientTransformation, params: Any) -> tuple[Callable[[], Any], float]:
  """A function that runs one update, and its passes over d."""
  mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
  specs = rtopk_jax.state_specs(tx, params, AXIS)
  mapped = jax.shard_map(
    lambda g, state: tx.update(g, state),
    mesh=mesh,
    in_specs=(P(), specs),
    out_specs=(P(), specs),
    check_vma=False,
  )
  gradient = _gradient(params, seed=0)
  state = rtopk_jax.init(tx, jax.tree.map(jnp.zeros_like, gradient), mesh, AXIS)
  with _others():
    step = jax.jit(mapped, donate_argnums=1).lower(gradient, state).compile()
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  passes = sum(moved for moved, _ in hlo.Program(str(step.as_text())).moved()) / (4 * size)

  def run():
    nonlocal state
    updates, state = step(gradient, state)
    jax.block_until_ready((updates, state))

  return run, passes


def transformations(density: float, scopes: list[str]) -> dict[str, Any]:
  """What is timed.

  Args:
    density: k/d.
    scopes: of the exchange.

  Returns:
    A transformation by the name of its row.
  """
  selector = rtopk_jax.rtop_k(density, subsample=_WORKERS)
  rivals: dict[str, Any] = {_SGD: optax.sgd(0.1, momentum=0.9)}
  for scope in scopes:
    for name, memory in _MEMORIES.items():
      rivals[f"{scope}: {name}"] = rtopk_jax.sparse_exchange(
        selector, AXIS, scope=scope, dense=False, **memory
      )
  return rivals


def main() -> None:
  """Prints a table a network."""
  parser = argparse.ArgumentParser(description="Times the worker-local step beside optax.sgd.")
  parser.add_argument("--only", action="append", choices=models.NAMES, help="networks")
  parser.add_argument("--scope", action="append", help="default: global and leaf")
  parser.add_argument("--density", type=float, default=0.001, help="k/d")
  parser.add_argument("--rounds", type=int, default=15, help="how often each is timed")
  parser.add_argument("--json", help="a file for the times")
  parser.add_argument("--png", help="a file for the picture")
  options = parser.parse_args()
  results, dots = {}, {}
  for name in options.only or models.NAMES:
    params = models.model(name).params
    rivals, passes = {}, {}
    for rival, tx in transformations(options.density, options.scope or ["global", "leaf"]).items():
      rivals[rival], passes[rival] = _update(tx, params)
    seconds = timing.in_turn(rivals, options.rounds)
    print(f"\n{name}\n\n{timing.table(seconds, _SGD, passes=passes)}")
    results[name] = {"seconds": seconds, "passes": passes}
    dots[name] = {rival: 1e3 * float(np.median(times)) for rival, times in seconds.items()}
    timing.save(options.json, {"options": vars(options), "networks": results})
  picture.dots(options.png, dots, "milliseconds")


if __name__ == "__main__":
  main()
