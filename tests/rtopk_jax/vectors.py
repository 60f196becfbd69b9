"""Leaves that make one vector, how it is packed on each platform, and what of it is wanted, in NumPy."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from rtopk_jax.kernels._flat_packing import FlatPacking
from rtopk_jax.kernels._tiled_packing import TiledPacking
from rtopk_jax.select._keys import LARGEST_KEY
from rtopk_jax.vector._layout import Bundle
from rtopk_jax.vector._vector import Run, Vector, places
from tests.rtopk_jax import reference

# With two bits an entry, with one, and with a threshold that is moved until it is the wanted one.
PACKINGS = {
  "two bits": FlatPacking,
  "one bit": functools.partial(FlatPacking, width=1),
  "exact": functools.partial(FlatPacking, width=1, exact=True),
  "tiles": TiledPacking,
  "exact tiles": functools.partial(TiledPacking, exact=True),
}
# Those that are used on each platform.
OF_PLATFORM = {
  "cpu": ("two bits", "one bit", "exact"),
  "gpu": ("two bits", "one bit", "exact"),
  "tpu": ("tiles", "exact tiles"),
}
WAYS = [(platform, packing) for platform, packings in OF_PLATFORM.items() for packing in packings]

# For tiles: rows in whole folds and not, of whole tiles and not, by columns (in whole folds and not, of rows in whole
# folds and not), of one axis, and of next to nothing.
TILED_SHAPES = [
  (3, 80, 500),
  (1, 45, 300),
  (19, 6, 90),
  (1, 200, 140),
  (1, 203, 140),
  (150, 70),
  (7001,),
  (2048,),
  (1, 1, 17),
  (31, 5),
]


def vector_of(leaves: Sequence[np.ndarray], kind: str = "one") -> Vector:
  """A vector of leaves.

  Args:
    leaves: the leaves.
    kind: "one" selects from all at once, "each" from each by itself, "joined" too but lies in one array.

  Returns:
    The ``Vector``.
  """
  arrays = [jnp.asarray(x) for x in leaves]
  shapes = tuple(x.shape for x in leaves)
  if kind == "joined":
    bundle = Bundle(tuple(range(len(leaves))), shapes, apart=True)
    where, arrays = places([bundle.shape], [bundle.runs(0)]), [bundle.join(arrays)]
  else:
    runs = [(Run(0, x.size, 0 if kind == "one" else i),) for i, x in enumerate(leaves)]
    where = places(shapes, runs)
  return Vector(where, tuple((x,) for x in arrays), lambda x: x)


def by_position(leaves: Sequence[np.ndarray]) -> np.ndarray:
  """The entries of leaves by their positions in a vector; NaN where there are none."""
  where = places([x.shape for x in leaves])
  entries = np.full(where[-1].first + where[-1].size, np.nan, leaves[0].dtype)
  for place, x in zip(where, leaves, strict=True):
    entries[place.first : place.first + place.size] = x.reshape(-1)
  return entries


def positions_of(leaves: Sequence[np.ndarray], members: Sequence[int]) -> np.ndarray:
  """The positions of some leaves' entries, ascending."""
  where = places([x.shape for x in leaves])
  return np.concatenate([where[i].first + np.arange(where[i].size) for i in members])


def largest_positions(
  leaves: Sequence[np.ndarray], groups: Sequence[Sequence[int]], counts: Sequence[int]
) -> np.ndarray:
  """The positions of so many largest entries of each group of leaves; of equal ones the lowest."""
  entries, found = by_position(leaves), []
  for members, count in zip(groups, counts, strict=True):
    positions = positions_of(leaves, members)
    found.append(positions[reference.largest(entries[positions], count)])
  return np.concatenate(found)


def hard_keys(size: int) -> dict[str, np.ndarray]:
  """Keys of which a sample says little."""
  rng = np.random.default_rng(5)
  keys = rng.integers(0, 2**30, size)
  found = {
    "even": keys,
    "zero": np.zeros(size),
    "largest": np.full(size, LARGEST_KEY),
    "three values": rng.integers(0, 3, size),
    "one in a hundred": keys * (rng.random(size) < 0.01),
    "one in ten thousand": keys * (rng.random(size) < 1e-4),
    "falling": np.arange(size)[::-1],
    "chunks": np.repeat(keys[: size // 100 + 1], 100)[:size],
    "heavy tail": np.minimum(1 / rng.random(size) ** 3, 2**30),
    "the end alone": np.where(np.arange(size) < size - 50, 0, keys),
  }
  return {name: x.astype(np.int32) for name, x in found.items()}


def laplace(size: int, zeros: float = 0.3) -> np.ndarray:
  """A vector of random entries, some of them zero and a hundred of them subnormal."""
  rng = np.random.default_rng(0)
  vector = rng.laplace(size=size).astype(np.float32)
  vector[rng.random(size) < zeros] = 0
  vector[100:200] *= np.float32(1e-42)
  return vector


def some_positions(shapes: Sequence[tuple[int, ...]], count: int, seed: int = 4) -> np.ndarray:
  """Positions that name entries of leaves, some that name none since they are between two, and beyond all."""
  rng = np.random.default_rng(seed)
  where = places(shapes)
  end = where[-1].first + where[-1].size
  gaps = [place.first + place.size for place in where[:-1]]
  positions = np.concatenate([rng.choice(end, count, replace=False), gaps, [end, end + 5]])
  return np.unique(positions).astype(np.int32)
