"""Shapes of gradients, without the packages that training needs."""

import math

TREES = ("resnet18", "vector")
# What ``benchmarks.models`` has the real trees of.
NETWORKS = ("resnet18", "lstm")
# ResNet-18 for CIFAR-10, d = 11,173,962, as PyTorch orders its axes: (outputs, inputs, 3, 3).
_BLOCKS = [
  (64, 64),
  (64, 64),
  (64, 128),
  (128, 128),
  (128, 256),
  (256, 256),
  (256, 512),
  (512, 512),
]


def resnet18() -> list[tuple[int, ...]]:
  """The shapes of ResNet-18's parameters."""
  shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
  for inputs, outputs in _BLOCKS:
    for source in (inputs, outputs):
      shapes += [(outputs, source, 3, 3), (outputs,), (outputs,)]
    if inputs != outputs:
      shapes += [(outputs, inputs, 1, 1), (outputs,), (outputs,)]
  return [*shapes, (10, 512), (10,)]


def shapes(tree: str) -> list[tuple[int, ...]]:
  """The shapes of a tree.

  Args:
    tree: one of ``TREES``; "vector" has as many entries as ResNet-18, in one leaf.
  """
  leaves = resnet18()
  return leaves if tree == "resnet18" else [(sum(math.prod(shape) for shape in leaves),)]


def equal(size: int, leaves: int = 16) -> list[tuple[int, ...]]:
  """Flat leaves of one length, the last of which may be shorter.

  Args:
    size: entries of all.
    leaves: how many, at most.
  """
  each = -(-size // leaves)
  return [(min(each, size - begin),) for begin in range(0, size, each)]
