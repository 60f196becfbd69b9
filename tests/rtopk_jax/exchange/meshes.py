"""Meshes of two axes."""

import jax


def of_two(names: tuple[str, str]) -> jax.sharding.Mesh:
  """Two by two of the first devices."""
  kinds = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((2, 2), names, axis_types=kinds, devices=jax.devices()[:4])
