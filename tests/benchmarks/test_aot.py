"""What is amiss with programs compiled for hardware that is not here, as far as it can be told without compilers."""

import pytest

from benchmarks import aot


def _found(workers, instructions, collective="all-gather", scope="leaf"):
  numbers = dict.fromkeys(
    ("sent", "sorted", "temporary", "allowed", "passes", "kernels", "seconds"), 1
  )
  return aot.Found(
    target="some",
    model="resnet18",
    scope=scope,
    collective=collective,
    workers=workers,
    collectives=[],
    instructions=instructions,
    misses=[],
    **numbers,
  )


@pytest.mark.parametrize(
  ("many", "misses"),
  [
    ({"instructions": 1040}, []),
    ({"instructions": 1060}, ["resnet18, leaf: 1,000 instructions for 2 workers, 1,060 for 16"]),
    ({"instructions": 2000, "collective": "hierarchical, all-gather"}, []),
    ({"instructions": 2000, "scope": "global"}, []),
  ],
  ids=["the same", "more", "another collective", "another scope"],
)
def test_code_that_grows_is_a_miss_among_programs_of_one_kind(many, misses):
  found = [_found(2, 1000), _found(16, **many)]
  assert aot.growth(found) == misses
  assert aot.growth(found[::-1]) == misses
