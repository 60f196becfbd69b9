"""Ways to trace an exchange other than to run it, and what is said to one from outside.

* A *measurement*: collectives note what they would have done to a link and return zeros of the right shape. That
  is how bytes are counted from the real buffers.
* An *analysis*: the exchange is replaced by the least that shows where its results come from.
* *Outside*: no axis is mapped, whatever is around.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

AxisName = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Traffic:
  """What a collective does to one worker's link.

  Args:
    messages: one after another, each of which waits for the link's latency.
    sent: bytes that the worker hands to the collective.
    received: bytes that it needs of the others.
    link: bytes that leave its network interface, and that enter it.

  Examples:
    >>> import rtopk_jax
    >>> rtopk_jax.Traffic.all_gather(size=100, num_workers=4)
    Traffic(messages=3, sent=100, received=300, link=300)
    >>> both = rtopk_jax.Traffic.all_to_all(400, 4) + rtopk_jax.Traffic.all_gather(100, 4)
    >>> both.messages, both.link
    (6, 600.0)
  """

  messages: int
  sent: float
  received: float
  link: float

  def __add__(self, other: "Traffic") -> "Traffic":
    """Of both, one after the other."""
    return Traffic(
      self.messages + other.messages,
      self.sent + other.sent,
      self.received + other.received,
      self.link + other.link,
    )

  @classmethod
  def none(cls) -> "Traffic":
    """Of nothing.

    Returns:
      No messages, no bytes.
    """
    return cls(0, 0, 0, 0)

  @classmethod
  def all_gather(cls, size: int, num_workers: int) -> "Traffic":
    """Of an all-gather as a ring.

    Args:
      size: bytes that every worker hands over.
      num_workers: n.

    Returns:
      n − 1 messages of that size.
    """
    others = num_workers - 1
    return cls(others, size, others * size, others * size)

  @classmethod
  def all_to_all(cls, size: int, num_workers: int) -> "Traffic":
    """Of an all-to-all pair by pair.

    Args:
      size: bytes that every worker has for all.
      num_workers: n.

    Returns:
      n − 1 messages of 1/n of them.
    """
    others = num_workers - 1
    return cls(others, size, others * size / num_workers, others * size / num_workers)

  @classmethod
  def all_reduce(cls, size: int, num_workers: int) -> "Traffic":
    """Of a sum as a ring.

    Args:
      size: bytes of a worker's vector.
      num_workers: n.

    Returns:
      2(n − 1) messages of 1/n of them.
    """
    others = num_workers - 1
    return cls(2 * others, size, size if others else 0, 2 * others * size / num_workers)


@dataclasses.dataclass
class Measurement:
  """A dry run.

  Attributes:
    num_workers: n.
    step: the step meant; None is the last stage of a warm-up.
    traffic: of every collective.
    choices: what every ``Auto`` chose.
  """

  num_workers: int
  step: int | None
  traffic: list[Traffic] = dataclasses.field(default_factory=list)
  choices: list[Any] = dataclasses.field(default_factory=list)

  def record(self, traffic: Callable[[int, int], Traffic], *arrays: jax.Array) -> None:
    """Notes what one collective does, to which a worker hands some arrays."""
    size = sum(x.size * x.dtype.itemsize for x in arrays)
    self.traffic.append(traffic(size, self.num_workers))


_measurement: contextvars.ContextVar[Measurement | None] = contextvars.ContextVar(
  "rtopk_jax_measurement", default=None
)


def measurement() -> Measurement | None:
  """The dry run under way, if any."""
  return _measurement.get()


@contextlib.contextmanager
def measure(num_workers: int, step: int | None) -> Iterator[Measurement]:
  """Within this context collectives are recorded instead of run."""
  token = _measurement.set(Measurement(num_workers, step))
  try:
    yield _measurement.get()  # pyright: ignore[reportReturnType]
  finally:
    _measurement.reset(token)


class Notes(NamedTuple):
  """What exchanges say of themselves while a transformation is looked at.

  Attributes:
    exchanged: the mapped axes of every exchange.
    rows: the axes that rows are made for.
  """

  exchanged: set[AxisName]
  rows: set[AxisName]


_notes: contextvars.ContextVar[Notes | None] = contextvars.ContextVar(
  "rtopk_jax_notes", default=None
)
_unmapped: contextvars.ContextVar[bool] = contextvars.ContextVar(
  "rtopk_jax_unmapped", default=False
)
_analysing: contextvars.ContextVar[bool] = contextvars.ContextVar(
  "rtopk_jax_analysing", default=False
)


@contextlib.contextmanager
def outside() -> Iterator[Notes]:
  """Within this context no axis is mapped, as outside of every map, and it is noted which ones are asked for."""
  settings = ((_notes, Notes(set(), set())), (_unmapped, True), (_measurement, None))
  with _set(*settings):
    yield _notes.get()  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def analysis() -> Iterator[None]:
  """Within this context an exchange is replaced by the least that shows where its results come from."""
  with _set((_analysing, True), (_unmapped, False), (_measurement, None)):
    yield


def analysing() -> bool:
  """Whether a transformation is traced to see what depends on what."""
  return _analysing.get()


@contextlib.contextmanager
def _set(*settings: tuple[contextvars.ContextVar, Any]) -> Iterator[None]:
  tokens = [(variable, variable.set(value)) for variable, value in settings]
  try:
    yield
  finally:
    for variable, token in tokens:
      variable.reset(token)


def note_exchange(axis_name: AxisName) -> None:
  """Notes that there is an exchange over an axis."""
  notes = _notes.get()
  if notes is not None:
    notes.exchanged.add(axis_name)


def note_rows(axis_name: AxisName) -> None:
  notes = _notes.get()
  if notes is not None:
    notes.rows.add(axis_name)


class Sharding(NamedTuple):
  """How a model is sharded, said where types do not tell.

  Attributes:
    axes: the axes that each parameter is sharded over, by its path.
    every: all of them.
  """

  axes: dict[tuple[Any, ...], frozenset[str]]
  every: frozenset[str]


_sharding: contextvars.ContextVar[Sharding | None] = contextvars.ContextVar(
  "rtopk_jax_sharding", default=None
)


@contextlib.contextmanager
def sharded(sharding: Sharding) -> Iterator[None]:
  """Within this context it is known which axes of the model parameters are sharded over."""
  with _set((_sharding, sharding)):
    yield


def is_unmapped() -> bool:
  """Whether no axis is mapped, whatever is around."""
  return _unmapped.get()


def sharding() -> Sharding | None:
  """How the model is sharded, where it was said."""
  return _sharding.get()
