"""Every process's side of the watch: it joins the hub of process 0, and ends when another process is gone."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any

from train.errors import FAILED, GONE, MISTAKE, UserError
from train.processes import hub


class Member:
  """A process of a job, watched by a thread of its own.

  When another process is gone this one says so and ends by ``os._exit``: what JAX waits for will not come, and
  its own end would wait for the others. Checkpoints are written whole or not at all, so nothing is lost.

  Args:
    address: of process 0, "host:port".
    processes: how many there are.
    process: the number of this one.
    timeout: seconds after which one that is silent is taken for dead.

  Attributes:
    coordinator: the address that JAX is to be given.
    bind: the address of JAX's service in process 0; None elsewhere.

  Raises:
    UserError: when not all have come in time, or they don't fit together.
  """

  def __init__(self, address: str, processes: int, process: int, timeout: float):
    self._host, self._port = _parts(address)
    self._timeout = timeout
    self._hello = dict(
      kind="member",
      process=process,
      processes=processes,
      host=socket.gethostname(),
      pid=os.getpid(),
    )
    self._loop = asyncio.new_event_loop()
    self._writer: asyncio.StreamWriter | None = None
    self._answers: dict[str, concurrent.futures.Future[str | None]] = {}
    self._left, self._first = False, "process 0"
    self._heard = time.monotonic()
    self._tasks: set[asyncio.Task[None]] = set()
    threading.Thread(target=self._loop.run_forever, name="watch", daemon=True).start()
    self.bind = None
    if process == 0:
      service = _free_port()
      self.bind = self.coordinator = f"127.0.0.1:{service}"
      self._open_hub(processes, service)
    complete = self._answers["complete"] = concurrent.futures.Future()
    self._run(self._join())
    if refused := complete.result():
      raise UserError(refused)
    if process > 0:
      self.coordinator = f"127.0.0.1:{self._run(self._open_proxy())}"

  def agree(self, topic: str, fields: dict[str, Any]) -> None:
    """Refuses to go on where processes differ.

    Args:
      topic: a name for the question, which all processes ask.
      fields: what must be the same everywhere.

    Raises:
      UserError: for a field that differs; it names the processes and both values.
    """
    answer = self._answers[topic] = concurrent.futures.Future()
    self._say(agree=topic, fields=fields)
    if refused := answer.result():
      raise UserError(refused)

  def leave(self, code: int, text: str | None = None) -> None:
    """Says that this process ends.

    Args:
      code: that it exits with.
      text: why, if the others cannot go on; they end too.
    """
    self._left = True
    bye = self._answers["bye"] = concurrent.futures.Future()
    self._say(left=code, text=text)
    # Until the others have been told; but not of a hub that is gone.
    with contextlib.suppress(TimeoutError):
      bye.result(2)

  def _run(self, job: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(job, self._loop).result()

  def _say(self, **message: Any) -> concurrent.futures.Future[None]:
    async def send() -> None:
      if self._writer is not None:
        hub.say(self._writer, message)
        await self._writer.drain()

    return asyncio.run_coroutine_threadsafe(send(), self._loop)

  def _open_hub(self, processes: int, service: int) -> None:
    bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    host, self._port = _parts(bound) if bound else (None, self._port)
    try:
      self._run(hub.Hub(processes, self._timeout, service).open(host, self._port))
    except OSError as error:
      # Who was process 0 before may be about to end.
      reason = os.strerror(error.errno or 0)
      raise UserError(f"process 0 cannot listen on port {self._port}: {reason}.", GONE) from error
    # Its own name may not be known yet, where names are given to who is up.
    self._host = "127.0.0.1" if host in (None, "::", "0.0.0.0") else host

  async def _join(self) -> None:
    try:
      reader, self._writer = await hub.connect(self._host, self._port, self._timeout)
    except (OSError, TimeoutError) as error:
      reason = str(error) or "no answer"
      raise UserError(
        f"process 0 did not come within {self._timeout:g} s at {self._host}:{self._port} ({reason}).",
        GONE,
      ) from error
    hub.say(self._writer, self._hello)
    self._heard = time.monotonic()
    for job in (self._listen(reader), self._look_around()):
      self._tasks.add(self._loop.create_task(job))

  async def _listen(self, reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError, ValueError):
      while line := await reader.readline():
        self._heard = time.monotonic()
        self._answer(json.loads(line))
    if not self._left:
      self._end(f"{self._first} is gone: its connection was closed at {hub.clock()}", GONE)

  def _answer(self, message: dict[str, Any]) -> None:
    if "gone" in message:
      self._end(message["gone"], GONE)
    elif "failed" in message:
      # One code for all processes of a job, so that every host's supervisor does the same.
      self._end(message["failed"], message["code"])
    elif "complete" in message:
      self._first = message["complete"]
      self._answers.pop("complete").set_result(None)
    elif "bye" in message:
      self._answers.pop("bye").set_result(None)
    elif "refused" in message:
      # Who was refused ends by itself, as do the others.
      self._left = message["refused"] is not None
      waiting = self._answers.pop(message.get("agreed", "complete"), None)
      if waiting is not None:
        waiting.set_result(message["refused"])

  async def _look_around(self) -> None:
    interval = hub.pause(self._timeout)
    before = time.monotonic()
    while True:
      await asyncio.sleep(interval)
      now = time.monotonic()
      if now - before > 2 * interval:
        self._heard = now  # it was this process that slept
      before = now
      if self._writer is not None:
        hub.say(self._writer, {"alive": True})
      silent = now - self._heard
      if silent > self._timeout - interval:
        since = hub.clock(silent)
        self._end(
          f"{self._first} is gone: nothing was heard of it since {since}, for {silent:.0f} s", GONE
        )

  async def _open_proxy(self) -> int:
    """A port for JAX, from where its bytes go to process 0 and its service."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
      try:
        other = await hub.connect(self._host, self._port, self._timeout)
        hub.say(other[1], {"kind": "jax"})
        await hub.pipe(reader, writer, other)
      except (OSError, TimeoutError):
        pass
      # Closed to JAX only by the end of this process: to JAX, a service that closes is an error to abort for.
      self._parted.append(writer)

    self._parted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]

  def _end(self, text: str, code: int) -> None:
    """Ends the process, whatever its other threads wait for."""
    more = (
      "" if code in (FAILED, MISTAKE) else " The same command goes on from the last checkpoint."
    )
    sys.stdout.flush()
    print(f"error: {text.rstrip('.')}.{more}", file=sys.stderr, flush=True)
    os._exit(code)


def _parts(address: str) -> tuple[str, int]:
  """Host and port; IPv6 addresses stand in brackets."""
  host, _, port = address.rpartition(":")
  return host.strip("[]"), int(port)


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]
