"""The one place where a platform's way of doing things is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rtopk_jax import _platform

if TYPE_CHECKING:
  from rtopk_jax.kernels._portable import Portable

# Filled in by the package, since every way of doing things is built on what asks for one.
KERNELS: dict[str, Portable] = {}


def here() -> Portable:
  """The operations as the platform that is traced for does them best."""
  return KERNELS[_platform.current()]
