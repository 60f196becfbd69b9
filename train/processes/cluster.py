"""One process a host: how it joins the others, how it leaves them, and where it keeps what it compiled."""

import os
import pathlib
import threading
from typing import Any

from train.errors import UserError
from train.processes.member import Member

_member: Member | None = None
_timeout = 0.0


def check(coordinator: str | None, processes: int | None, process: int | None) -> None:
  """Refuses what cannot name a process of a job.

  Args:
    coordinator: address of process 0, "host:port".
    processes: how many there are.
    process: the number of this one.

  Raises:
    UserError: naming the flag.
  """
  given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
  missing = [name for name, value in given.items() if value is None]
  if missing and len(missing) < len(given):
    there = next(name for name, value in given.items() if value is not None)
    raise UserError(
      f"{missing[0]} is missing beside {there}: a job that is not detected needs all three."
    )
  if coordinator is None or processes is None or process is None:
    return
  host, colon, port = coordinator.rpartition(":")
  if not (colon and host and port.isdigit() and 0 < int(port) < 2**16):
    raise UserError(f"--coordinator must be host:port, such as 10.0.0.1:1234, got {coordinator!r}.")
  if processes < 1:
    raise UserError(f"--processes must be at least 1, got {processes}.")
  if not 0 <= process < processes:
    raise UserError(
      f"--process must be at least 0 and below --processes={processes}, got {process}."
    )


def join(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  timeout: float = 30.0,
) -> None:
  """Joins the other processes of a job, before anything else is done with JAX.

  Without arguments it does so where JAX detects a cluster (TPU pods, Slurm, Open MPI, ``JAX_…``
  environment variables), and is alone elsewhere. From then on the processes watch each other: when one is
  gone the others end, with exit code 75.

  Args:
    coordinator: address of process 0, "host:port".
    processes: how many there are.
    process: the number of this one.
    timeout: seconds after which a process that is not heard of is taken for dead.

  Raises:
    UserError: when some of the arguments are given, but not all of what cannot be detected; when not all
      processes come in time.
  """
  global _member, _timeout
  import jax

  check(coordinator, processes, process)
  coordinator, processes, process, devices = _detected(coordinator, processes, process)
  if coordinator is None or processes is None or process is None:
    return
  options: dict[str, Any] = {}
  if processes > 1:
    _timeout = timeout
    _member = Member(coordinator, processes, process, timeout)
    coordinator, options["coordinator_bind_address"] = _member.coordinator, _member.bind
  jax.distributed.initialize(
    coordinator,
    processes,
    process,
    devices,
    cluster_detection_method="deactivate",
    # JAX's own patience never ends first.
    heartbeat_timeout_seconds=max(100, int(4 * timeout)),
    **options,
  )


def _detected(coordinator: str | None, processes: int | None, process: int | None) -> Any:
  """Address, number of processes, number of this one, its devices; None where there is no cluster."""
  from jax._src.clusters import ClusterEnv  # what ``jax.distributed.initialize`` asks

  coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
  devices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
  local = [int(x) for x in devices.split(",")] if devices else None
  return ClusterEnv.auto_detect_unset_distributed_params(
    coordinator, processes, process, local, None, 300
  )


def agree(topic: str, fields: dict[str, Any]) -> None:
  """Refuses to go on where processes that were joined differ; as ``Member.agree``."""
  if _member is not None:
    _member.agree(topic, fields)


def leave(code: int, text: str | None = None) -> None:
  """Leaves the other processes, if there are any.

  Args:
    code: that this process exits with.
    text: why, if it cannot go on. Then the process ends here, since JAX would wait for the others.
  """
  if _member is None:
    return
  _member.leave(code, text)
  if text is not None:
    os._exit(code)
  import jax

  # The others are waited for, but not for long.
  limit = threading.Timer(_timeout, os._exit, (code,))
  limit.daemon = True
  limit.start()
  jax.distributed.shutdown()
  limit.cancel()


def patience() -> float:
  """Seconds in which the end of another process becomes known; 0 where there are none."""
  return _timeout + 5 if _member is not None else 0.0


def keep_compiled(folder: str | None) -> None:
  """Compiled programs are kept on disk, so that a restarted run does not compile them again.

  A folder that JAX was given already (``JAX_COMPILATION_CACHE_DIR``) stays.

  Args:
    folder: where; None: nowhere.
  """
  import jax

  if folder and not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).expanduser()))
