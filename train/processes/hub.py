"""Process 0's side of the watch: one port on which all processes of a job meet, and who of them is still there.

Every connection begins with a line of JSON. A member says who it is, and from then on it and the hub exchange
lines: that they are alive, what they have to agree on, and why a process has left. A connection "jax" is
passed on to JAX's own coordination service, which listens for this host alone; so a job needs no second port,
and a process that dies does not pull down the others before they can say which one it was.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from typing import Any

# The longest line, in bytes.
LIMIT = 2**24


@dataclasses.dataclass
class Seat:
  """A member, as the hub knows it.

  Attributes:
    writer: to it.
    name: of process and host.
    heard: when it was heard of last, on the monotonic clock.
    left: whether it has left in peace.
  """

  writer: asyncio.StreamWriter
  name: str
  heard: float
  left: bool = False


class Hub:
  """Where processes meet.

  Args:
    processes: how many there are.
    timeout: seconds after which one that is silent is taken for dead.
    service: the port of JAX's service on this host.
  """

  def __init__(self, processes: int, timeout: float, service: int):
    self._processes, self._timeout, self._service = processes, timeout, service
    self._seats: dict[int, Seat] = {}
    self._wishes: dict[str, dict[int, dict[str, Any]]] = {}
    self._over = False
    self._tasks: set[asyncio.Task[Any]] = set()

  async def open(self, host: str | None, port: int) -> None:
    """Begins to listen; raises ``OSError`` where that is not possible."""
    await asyncio.start_server(self._connected, host, port, limit=LIMIT)
    for job in (self._wait_for_all(), self._look_around()):
      task = asyncio.get_running_loop().create_task(job)
      self._tasks.add(task)

  async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
      hello = json.loads(await asyncio.wait_for(reader.readline(), self._timeout))
      if hello["kind"] == "jax":
        await pipe(reader, writer, await connect("127.0.0.1", self._service, self._timeout))
      elif hello["kind"] == "member":
        await self._seated(hello, reader, writer)
    except (OSError, TimeoutError, ValueError, KeyError, TypeError):
      pass  # someone who is none of us
    finally:
      writer.close()

  async def _seated(
    self, hello: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    number = hello["process"]
    if hello["processes"] != self._processes:
      text = (
        f"--processes must be the same everywhere, got {hello['processes']} in process {number} and "
        f"{self._processes} in process 0."
      )
      self._tell(writer, refused=text)
      return self._refuse_all(text)
    if number in self._seats:
      return self._tell(
        writer,
        refused=f"--process must be different everywhere, got {number} twice: {self._seats[number].name} "
        "has it.",
      )
    seat = Seat(writer, name_of(hello), time.monotonic())
    self._seats[number] = seat
    if len(self._seats) == self._processes:
      self._tell_all(complete=self._seats[0].name)
    why = "its connection was closed"
    with contextlib.suppress(OSError, ValueError):
      while line := await reader.readline():
        seat.heard = time.monotonic()
        self._heard(number, seat, json.loads(line))
    if not seat.left:
      self._gone(seat, f"{why} at {clock()}")

  def _heard(self, number: int, seat: Seat, message: dict[str, Any]) -> None:
    if "agree" in message:
      wishes = self._wishes.setdefault(message["agree"], {})
      wishes[number] = message["fields"]
      if len(wishes) == self._processes:
        refused = self._difference(wishes)
        self._over = refused is not None
        self._tell_all(agreed=message["agree"], refused=refused)
    elif "left" in message:
      seat.left = True
      if message["text"] and not self._over:
        self._over = True
        text = f"{seat.name} has ended: {message['text']}"
        self._tell_all(failed=text, code=message["left"], but=number)
      self._tell(seat.writer, bye=True)

  def _difference(self, wishes: dict[int, dict[str, Any]]) -> str | None:
    first = wishes[0]
    for number, fields in sorted(wishes.items()):
      for name in sorted(first.keys() | fields.keys()):
        ours, theirs = first.get(name), fields.get(name)
        if ours != theirs:
          return (
            f"{name} must be the same in all processes, got {ours!r} in {self._seats[0].name} and "
            f"{theirs!r} in {self._seats[number].name}."
          )
    return None

  async def _wait_for_all(self) -> None:
    await asyncio.sleep(self._timeout)
    missing = [str(i) for i in range(self._processes) if i not in self._seats]
    if missing:
      some = "process" if len(missing) == 1 else "processes"
      self._end(f"{some} {', '.join(missing)} did not come within {self._timeout:g} s")

  async def _look_around(self) -> None:
    interval = pause(self._timeout)
    before = time.monotonic()
    while True:
      await asyncio.sleep(interval)
      now = time.monotonic()
      if now - before > 2 * interval:
        # It was this process that slept; what the others said meanwhile has not been read yet.
        for seat in self._seats.values():
          seat.heard = now
      before = now
      self._tell_all(alive=True)
      for seat in self._seats.values():
        silent = now - seat.heard
        if silent > self._timeout - interval and not seat.left:  # by the next look it would be late
          self._gone(seat, f"nothing was heard of it since {clock(silent)}, for {silent:.0f} s")

  def _gone(self, seat: Seat, why: str) -> None:
    self._end(f"{seat.name} is gone: {why}")

  def _end(self, text: str) -> None:
    if not self._over:
      self._over = True
      self._tell_all(gone=text)

  def _refuse_all(self, text: str) -> None:
    self._over = True
    self._tell_all(refused=text)

  def _tell_all(self, but: int | None = None, **message: Any) -> None:
    # This process comes last: it may end at once, and what was said to others is on its way then.
    for number, seat in sorted(self._seats.items(), reverse=True):
      if number != but:
        self._tell(seat.writer, **message)

  @staticmethod
  def _tell(writer: asyncio.StreamWriter, **message: Any) -> None:
    if not writer.is_closing():
      say(writer, message)


def say(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
  """Sends a line."""
  writer.write(json.dumps(message).encode() + b"\n")


def pause(timeout: float) -> float:
  """Seconds between two signs of life."""
  return min(timeout / 5, 5.0)


def clock(ago: float = 0.0) -> str:
  """The time of day, some seconds ago."""
  return time.strftime("%H:%M:%S", time.localtime(time.time() - ago))


def name_of(hello: dict[str, Any]) -> str:
  """What a member is called."""
  return f"process {hello['process']} (host {hello['host']}, pid {hello['pid']})"


async def connect(
  host: str, port: int, seconds: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
  """Connects to who may not listen yet; raises what the last attempt raised."""
  end = time.monotonic() + seconds
  while True:
    left = end - time.monotonic()
    try:
      return await asyncio.wait_for(
        asyncio.open_connection(host, port, limit=LIMIT), max(left, 0.1)
      )
    except (OSError, TimeoutError):
      if time.monotonic() + 0.2 > end:
        raise
    await asyncio.sleep(0.2)


async def pipe(
  reader: asyncio.StreamReader,
  writer: asyncio.StreamWriter,
  other: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
  """Passes bytes between two connections until one of them ends."""

  async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
      while data := await source.read(2**16):
        target.write(data)
        await target.drain()

  both = [
    asyncio.ensure_future(pass_on(reader, other[1])),
    asyncio.ensure_future(pass_on(other[0], writer)),
  ]
  await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
  for task in both:
    task.cancel()
  other[1].close()
