"""A training step of workers that share a device, beside plain data parallelism: ``python -m benchmarks.simulated``.

ResNet-18 on images of CIFAR-10's size, momentum 0.9. Plain data parallelism is what somebody with one device has
without this library: one gradient of the whole batch, and ``optax.sgd``. Simulated workers are those of ``train``: a
gradient of each, one after another, then an exchange. They exchange densely, or 0.1 % of the entries.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rtopk_jax
from benchmarks import models, timing
from train.steps.layout import AXIS
from train.steps.rounds import Distributed
from train.steps.workers import Workers

PLAIN, DENSE, SPARSE = "plain data parallelism", "simulated, dense", "simulated, rTop-k"
_RATE, _MOMENTUM = 0.1, 0.9


def _values(tree: Any, rng: np.random.Generator) -> Any:
  """Numbers for a tree of shapes, small enough for a network to stay finite; labels of 10 classes."""

  def draw(x):
    if np.issubdtype(x.dtype, np.integer):
      return jnp.asarray(rng.integers(0, 10, x.shape), x.dtype)
    return jnp.asarray(0.05 * rng.standard_normal(x.shape, np.float32), x.dtype)

  return jax.tree.map(draw, tree)


def rivals(
  workers: int = 5,
  batch_size: int = 128,
  dtype: str = "bfloat16",
  density: float = 0.001,
  stages: Sequence[int] = (2, 2, 2, 2),
  width: int = 64,
) -> dict[str, Callable[[], Any]]:
  """Training steps, each of ``workers`` times ``batch_size`` images.

  Args:
    workers: n.
    batch_size: images of each.
    dtype: of computation.
    density: k/d.
    stages: blocks of the network's stages.
    width: channels of the first.

  Returns:
    By their names, functions that make a step and return when it is done.
  """
  model = models.resnet(batch_size, stages, width, dtype)
  rng = np.random.default_rng(0)
  params = _values(model.params, rng)
  stats = jax.tree.map(lambda x: jnp.ones(x.shape[1:], x.dtype), model.batch["stats"])
  own = {name: model.batch[name] for name in ("image", "label")}
  batch = _values(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct((workers, *x.shape), x.dtype), own), rng
  )

  def loss(params, stats, batch):
    row = jax.tree.map(lambda x: x[None], stats)
    loss, stats = model.loss_fn(params, {**batch, "stats": row})
    return loss, (stats, {"loss": loss})

  exchanges = {
    DENSE: lambda seed: rtopk_jax.dense_exchange(AXIS, momentum=_MOMENTUM),
    SPARSE: lambda seed: rtopk_jax.sparse_exchange(
      rtopk_jax.rtop_k(density), AXIS, momentum=_MOMENTUM, dense=False, seed=seed
    ),
  }
  whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
  return {
    PLAIN: _plain(loss, params, stats, whole),
    **{
      name: _simulated(loss, make, workers, params, stats, batch)
      for name, make in exchanges.items()
    },
  }


def _plain(loss: Callable[..., Any], params: Any, stats: Any, batch: Any) -> Callable[[], Any]:
  tx = optax.sgd(_RATE, _MOMENTUM)

  def step(params, state, stats, batch):
    gradient, (stats, metrics) = jax.grad(loss, has_aux=True)(params, stats, batch)
    updates, state = tx.update(gradient, state)
    return optax.apply_updates(params, updates), state, stats, metrics

  # Copies, since they are donated.
  now = *jax.tree.map(jnp.copy, (params, tx.init(params), stats)), {}
  compiled = jax.jit(step, donate_argnums=(0, 1, 2))

  def run():
    nonlocal now
    now = jax.block_until_ready(compiled(*now[:3], batch))

  return run


def _simulated(
  loss: Callable[..., Any],
  exchange: Callable[[Any], Any],
  count: int,
  params: Any,
  stats: Any,
  batch: Any,
) -> Callable[[], Any]:
  def make_rounds(seed):
    tx = optax.chain(exchange(seed), optax.sgd(_RATE))
    return Distributed(loss, rtopk_jax.lockstep(tx, AXIS), batches=1)

  workers, seed = Workers(make_rounds, count, mesh=None), jnp.uint32(0)
  params, stats = jax.tree.map(jnp.copy, (params, stats))
  state = workers.init(params, stats, seed)

  def run():
    nonlocal state
    state, _ = jax.block_until_ready(workers.step(state, [batch], seed))

  return run


def table(seconds: dict[str, list[float]], images: int) -> str:
  """Times of steps, and images a second.

  Args:
    seconds: of every step, by the name of its rival.
    images: of a step.

  Returns:
    A Markdown table.
  """
  rates = {name: f"{images / float(np.median(times)):,.0f}" for name, times in seconds.items()}
  return timing.table(seconds, PLAIN, **{"images/s": rates})


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description="Times training steps of simulated workers.")
  parser.add_argument("--workers", type=int, default=5)
  parser.add_argument("--batch_size", type=int, default=128, help="images of a worker")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
  parser.add_argument("--density", type=float, default=0.001, help="k/d")
  parser.add_argument("--rounds", type=int, default=15, help="how often each is timed")
  parser.add_argument("--json", help="a file for the times")
  options = parser.parse_args()
  steps = rivals(options.workers, options.batch_size, options.dtype, options.density)
  seconds = timing.in_turn(steps, options.rounds, warm=1)
  print(table(seconds, options.workers * options.batch_size))
  timing.save(options.json, {"options": vars(options), "seconds": seconds})


if __name__ == "__main__":
  main()
