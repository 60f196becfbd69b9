"""One process a host: how it joins the others, and where it keeps what it compiled."""

import pathlib

import jax


def join(
  coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
  """Joins the other processes of a job, before anything else is done with JAX.

  Without arguments it does so where JAX detects a cluster (TPU pods, Slurm, Open MPI, ``JAX_…``
  environment variables), and is alone elsewhere.

  Args:
    coordinator: address of process 0, "host:port".
    processes: how many there are.
    process: the number of this one.

  Raises:
    ValueError: when some of the arguments are given, but not all of what cannot be detected.
  """
  asked = (coordinator, processes, process) != (None, None, None)
  try:
    jax.distributed.initialize(coordinator, processes, process)
  except ValueError as error:
    # What JAX says when it finds no cluster to join.
    if asked or "coordinator_address should be defined" not in str(error):
      raise


def keep_compiled(folder: str | None) -> None:
  """Compiled programs are kept on disk, so that a restarted run does not compile them again.

  A folder that JAX was given already (``JAX_COMPILATION_CACHE_DIR``) stays.

  Args:
    folder: where; None: nowhere.
  """
  if folder and not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).expanduser()))
