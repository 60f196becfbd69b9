"""What tests of several examples ask."""

import functools

import jax
import numpy as np

from tests.rtopk_jax import harness


def check_conserved(tx, shapes, momentum=0.0, *, exact=True, workers=4):
  """What was sent and what is kept make up what came in, and all workers get the same.

  With ``exact`` bit for bit: gradients are small whole numbers, so that every sum is.

  Args:
    tx: an exchange over ``harness.AXIS``.
    shapes: of the leaves.
    momentum: its.
    exact: whether nothing is rounded.
    workers: n.
  """
  rng = np.random.default_rng(0)
  draw = lambda shape: (8.0 * rng.integers(-8, 9, (3, workers, *shape))).astype(np.float32)
  grads = {name: draw(shape) for name, shape in shapes.items()}
  updates, states = harness.run("shard_map", tx, grads)
  for name, g in grads.items():
    came_in, trace, went_out = 0.0, np.zeros(g[0].shape), 0.0
    for step in range(3):
      trace = momentum * trace + g[step]
      came_in = came_in + trace.sum(axis=0)
      kept = np.asarray(states.residual[name][step], np.float64)
      went_out = went_out + workers * np.asarray(updates[name][step], np.float64)
      found = went_out + kept.sum(axis=0)
      np.testing.assert_allclose(found, came_in, rtol=0, atol=0 if exact else 1e-3)
      if momentum:
        trace = np.asarray(states.momentum[name][step], np.float64)


def updates_of_every_worker(tx, shapes, mode, workers=4):
  """Each worker's own update of one step, bit by bit comparable."""
  grads = harness.gradients(shapes, 1, workers, powers=False)
  first = jax.tree.map(lambda g: g[0], grads)
  one = lambda g: tx.update(g, tx.init(g))[0]
  if mode == "vmap":
    return jax.jit(jax.vmap(one, axis_name=harness.AXIS))(first)
  mapped = functools.partial(jax.shard_map, mesh=harness.mesh(workers), check_vma=False)
  spec = jax.sharding.PartitionSpec(harness.AXIS)
  rows = lambda g: jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], g)))
  return jax.jit(mapped(rows, in_specs=spec, out_specs=spec))(first)
