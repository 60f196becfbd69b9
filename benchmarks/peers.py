"""PyTorch as a rival in one process with JAX: on the same kind of device, and waited for."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax

# Which of PyTorch's devices is the one that JAX computes on.
_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def torch_device() -> str | None:
  """Where rivals in PyTorch run; None where it is not installed or knows no device that JAX uses."""
  device = _DEVICES.get(jax.default_backend())
  if device is None or importlib.util.find_spec("torch") is None:
    return None
  import torch  # pyright: ignore[reportMissingImports]

  return device if device == "cpu" or torch.cuda.is_available() else None


def waited_for(run: Callable[[], Any], device: str) -> Callable[[], Any]:
  """A rival that returns when its work is done, which on a GPU it has only asked for.

  Args:
    run: what PyTorch is to do.
    device: where.
  """
  if device == "cpu":
    return run
  import torch  # pyright: ignore[reportMissingImports]

  def to_the_end():
    result = run()
    torch.cuda.synchronize()
    return result

  return to_the_end
