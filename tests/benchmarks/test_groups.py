"""Along which axes of a mesh a compiled program's collectives go."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from benchmarks import groups, hlo


@pytest.mark.parametrize(
  ("members", "axes"),
  [
    (((0, 4), (1, 5), (2, 6), (3, 7)), ("workers",)),
    (((0, 2), (1, 3), (4, 6), (5, 7)), ("chips",)),
    (((0, 1), (2, 3), (4, 5), (6, 7)), ("shards",)),
    (((0, 1, 2, 3), (4, 5, 6, 7)), ("chips", "shards")),
    (((0,), (1,)), ()),
    (None, ("workers", "chips", "shards")),
  ],
)
def test_a_collective_goes_along_the_axes_that_its_members_differ_by(members, axes):
  mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("workers", "chips", "shards"))
  words = hlo.Array("u32", (2, 128), "")
  found = [hlo.Collective("all-gather", (words, words), members)] * 3
  assert groups.rows(found, mesh) == [groups.Row(axes, "all-gather", "u32", 6, 6 * 1024)]
  between = hlo.Collective("all-gather", (words,), None, between_slices=True)
  assert groups.axes_of(between, mesh) == ("workers",)
