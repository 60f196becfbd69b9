"""Do all workers have the same weights? They must, bit for bit; a broken device or link parts them."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from train.errors import FAILED, UserError

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
_MIX = 0x9E3779B1  # an odd number whose bits look random


class DriftError(UserError, RuntimeError):
  """Workers have different weights."""

  def __init__(self, text: str):
    super().__init__(text, FAILED)


def fingerprint(tree: Any) -> jax.Array:
  """A hash of the bits of a tree of arrays, uint32.

  A sum of all words, each times an odd number of its own, so that no single word can change unseen, and
  the order of summation does not matter.
  """
  total = jnp.uint32(0)
  for leaf in jax.tree.leaves(tree):
    words = lax.bitcast_convert_type(leaf, _WORDS[leaf.dtype.itemsize]).reshape(-1)
    place = lax.iota(jnp.uint32, words.size)
    total = total * jnp.uint32(_MIX) + jnp.sum(
      words.astype(jnp.uint32) * (place * jnp.uint32(_MIX) << 1 | jnp.uint32(1)),
      dtype=jnp.uint32,
    )
  return total


def check(fingerprints: np.ndarray, step: int) -> None:
  """Stops a run whose workers have parted.

  Args:
    fingerprints: one of each device, (n, chips, shards). Those of one shard must be the same.
    step: that was taken last.

  Raises:
    DriftError: when they are not; it names the workers that differ from most others.
  """
  workers, chips, shards = fingerprints.shape
  drifted: dict[str, None] = {}
  for shard in range(shards):
    column = fingerprints[:, :, shard]
    (common, _), *others = Counter(column.reshape(-1).tolist()).most_common()
    for worker, chip in np.argwhere(column != common).tolist() if others else []:
      place = [f"chip {chip}"] * (chips > 1) + [f"shard {shard}"] * (shards > 1)
      drifted[f"{worker} ({', '.join(place)})" if place else str(worker)] = None
  if drifted:
    copies = workers * chips * shards
    kind = "workers" if copies == workers else "devices"
    raise DriftError(
      f"After step {step} worker {', '.join(drifted)} has other weights than the {copies - len(drifted)} of "
      f"{copies} {kind} that agree. Since all take the same steps, a device, a link or "
      "memory is at fault; go on from the last checkpoint without it."
    )
