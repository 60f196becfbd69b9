"""The platform that a program is traced for: asked once, when it is traced, by ``kernels`` alone.

It is the platform of the devices that the program is for: those of the mesh around it, of
``jax.default_device``, or JAX's default. ``platform`` says it where none of these knows: when a program is
compiled ahead of time, or lowered for several platforms at once.

A wrong guess makes a program slower, never wrong: what is traced for one platform is right on all of them.
"""

import contextlib
from collections.abc import Iterator

import jax

from rtopk_jax import _checks

PLATFORMS = ("cpu", "gpu", "tpu")

# What JAX has traced for one platform it does not take for another.
_override = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def platform(name: str) -> Iterator[None]:
  """Within this context programs are traced for a platform, whatever devices there are.

  Args:
    name: "cpu", "gpu" or "tpu".

  Yields:
    Nothing.

  Raises:
    ValueError: for another name.

  Examples:
    >>> import jax, jax.numpy as jnp, rtopk_jax
    >>> select = jax.jit(lambda x, key: rtopk_jax.top_k(0.01)(x, key).indices)
    >>> shapes = jax.ShapeDtypeStruct((100_000,), jnp.float32), jax.eval_shape(jax.random.key, 0)
    >>> with rtopk_jax.platform("tpu"):
    ...   for_tpus = select.trace(*shapes)
    >>> lowered = for_tpus.lower(lowering_platforms=("tpu",))
  """
  _checks.one_of("name", name, PLATFORMS)
  with _override(name):
    yield


def current() -> str:
  """The platform that what is being traced is for."""
  return _override.value or _kind(_of_mesh() or _of_default_device())


def _of_mesh() -> str | None:
  """The platform of the mesh that is mapped over or set, if there is one."""
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  return device.platform if device is not None else None


def _of_default_device() -> str:
  device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
  if device is None:
    return jax.default_backend()
  return device if isinstance(device, str) else device.platform


def _kind(name: str) -> str:
  """One of ``PLATFORMS`` by JAX's name; anything else is treated as a CPU, whose ways are the plainest."""
  name = name.lower()
  if name in ("cuda", "rocm", "gpu"):
    return "gpu"
  return "tpu" if name == "tpu" else "cpu"
