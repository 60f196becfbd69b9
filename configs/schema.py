"""What the fields of a config are: type, range, choices and meaning, declared once and checked before use."""

import ast
import dataclasses
import difflib
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

# Of what networks compute with.
DTYPES = ("float32", "bfloat16", "float16")
# Of their layers, which are made one by one, and of the sizes of one: whoever asks for more has mistyped.
MOST_LAYERS, MOST_WIDTH = 1000, 1 << 20


class ConfigError(ValueError):
  """A config that cannot run; one line that names the field, the value and what would be right."""


@dataclasses.dataclass(frozen=True)
class Field:
  """One field.

  Attributes:
    default: its value where nobody gives another.
    says: what it means, in a line.
    kind: its type: int, float, str, bool, tuple or dict.
    optional: whether it may be None.
    least: the smallest value allowed.
    above: a bound that the value must be above.
    most: the largest value allowed.
    below: a bound that the value must be below.
    choices: the values allowed; empty for all.
    item: of a tuple, what each item is.
    distinct: of a tuple, whether no item may be there twice.
    filled: of a tuple, whether it must have an item.
    longest: of a tuple, how many items it may have.
    fields: of a dictionary, its own fields, where they are always the same.
  """

  default: Any
  says: str
  kind: type
  optional: bool = False
  least: float | None = None
  above: float | None = None
  most: float | None = None
  below: float | None = None
  choices: tuple[str, ...] = ()
  item: "Field | None" = None
  distinct: bool = False
  filled: bool = False
  longest: int | None = None
  fields: "Mapping[str, Field] | None" = None

  @property
  def wanted(self) -> str:
    """What a value must be, as the end of "must be …"."""
    nothing = " or None" if self.optional else ""
    if self.choices:
      return f"one of {', '.join(self.choices)}{nothing}"
    if self.item is not None:
      least = "at least one" if self.filled else "items"
      least += f" and at most {self.longest}" if self.longest else ""
      return f"a tuple of {least}, each {self.item.wanted}{nothing}"
    parts = [
      f"{word} {bound:g}" if isinstance(bound, float) else f"{word} {bound}"
      for word, bound in (
        ("at least", self.least),
        ("above", self.above),
        ("at most", self.most),
        ("below", self.below),
      )
      if bound is not None
    ]
    return f"{' and '.join(parts) or _KINDS[self.kind]}{nothing}"

  def wrong(self, value: Any) -> str | None:
    """What a value should have been, or None when it is right."""
    if value is None:
      return None if self.optional else self.wanted
    right: Any = {float: (float, int), tuple: (tuple, list)}.get(self.kind, self.kind)
    if self.kind is dict:
      return None if hasattr(value, "items") else _KINDS[dict]
    if not isinstance(value, right) or (isinstance(value, bool) and self.kind is not bool):
      return _KINDS[self.kind] + (" or None" if self.optional else "")
    if self.item is not None:
      return self._wrong_items(value)
    if self.choices and value not in self.choices:
      return self.wanted
    if self.kind in (int, float):
      value = value if self.kind is int else _float32(value)
      if not math.isfinite(value):
        return "a finite number" if self.wanted == _KINDS[float] else f"finite and {self.wanted}"
      within = (
        (self.least is None or value >= self.least)
        and (self.above is None or value > self.above)
        and (self.most is None or value <= self.most)
        and (self.below is None or value < self.below)
      )
      if within and self.kind is int and not -(2**31) <= value < 2**31:
        return "an integer of 32 bits"
      return None if within else self.wanted
    return None

  def _wrong_items(self, items: Any) -> str | None:
    assert self.item is not None
    if (self.filled and not len(items)) or (self.longest and len(items) > self.longest):
      return self.wanted
    for item in items:
      if wrong := self.item.wrong(item):
        return f"a tuple whose items are each {wrong}"
    if self.distinct and len(set(items)) < len(items):
      return "a tuple that names each item once"
    return None

  def parse(self, text: str) -> Any:
    """The value that a text stands for on a command line; the text itself where it stands for none."""
    if self.optional and text in ("None", "none"):
      return None
    return read(self.kind, text)


def _float32(value: float) -> float:
  """A number as steps compute with it: infinite where it is too large, 0 where it is too small."""
  try:
    return struct.unpack("f", struct.pack("f", value))[0]
  except OverflowError:
    return math.inf


_KINDS = {
  int: "an integer",
  float: "a number",
  str: "a text",
  bool: "True or False",
  tuple: "a tuple",
  dict: "a dictionary",
}


def integer(default: int | None, says: str, least: int | None = None, **rest: Any) -> Field:
  """A field that is an integer."""
  return Field(default, says, int, default is None, least, **rest)


def number(default: float | None, says: str, **rest: Any) -> Field:
  """A field that is a number; infinite ones are none."""
  return Field(default, says, float, default is None, **rest)


def text(default: str | None, says: str, *choices: str, **rest: Any) -> Field:
  """A field that is a text, or one of some."""
  rest.setdefault("optional", default is None)
  return Field(default, says, str, choices=choices, **rest)


def flag(default: bool, says: str, **rest: Any) -> Field:
  """A field that is True or False."""
  return Field(default, says, bool, **rest)


def several(default: Iterable[Any], says: str, item: Field, **rest: Any) -> Field:
  """A field that is a tuple."""
  return Field(tuple(default), says, tuple, item=item, **rest)


def section(says: str, **fields: Field) -> Field:
  """A field that is a dictionary with fields of its own."""
  return Field({name: field.default for name, field in fields.items()}, says, dict, fields=fields)


def at(schema: Mapping[str, Field], path: Iterable[str]) -> Field | None:
  """The field at a path of names through sections, or None where the schema does not know it."""
  field: Field | None = None
  known: Mapping[str, Field] = schema
  for name in path:
    field = known.get(name)
    known = (field.fields if field is not None else None) or {}
  return field


def read(kind: type, text: str) -> Any:
  """The value of a type that a text stands for on a command line; the text where it stands for none.

  Args:
    kind: int, float, str, bool, tuple, dict, or object for whatever the text looks like.
    text: such as "3", "true", "(0, 1)" or "rtopk,topk".

  Returns:
    The value.
  """
  if kind is str:
    return text
  if kind is bool:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
  try:
    if kind in (int, float):
      return kind(text)
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    # Names without quotes, which shells like to take away.
    return (
      tuple(part.strip() for part in text.split(",") if part.strip()) if kind is tuple else text
    )
  if kind is not tuple:
    return value
  return tuple(value) if isinstance(value, list | tuple) else (value,)


def check(given: Mapping[str, Any], schema: Mapping[str, Field], where: str = "config") -> None:
  """Refuses fields that are unknown or missing, and values that are not what a field must be.

  Args:
    given: names and values.
    schema: the fields by name.
    where: what the names are of, such as "config.model".

  Raises:
    ConfigError: for the first that is wrong.
  """
  for name in given:
    if name not in schema:
      raise ConfigError(unknown(where, name, schema))
  for name, field in schema.items():
    if name not in given:
      raise ConfigError(f"{where} lacks the field {name}, which must be {field.wanted}.")
    if wrong := field.wrong(given[name]):
      raise ConfigError(f"{where}.{name} must be {wrong}, got {_shown(given[name])}.")
    if field.fields is not None:
      check(given[name], field.fields, f"{where}.{name}")


def unknown(where: str, name: str, known: Iterable[str]) -> str:
  """The line about a field that there is not; it names the nearest one.

  Args:
    where: what it would be of.
    name: of the field.
    known: the names of those that there are.

  Returns:
    The line.
  """
  known = sorted(known)
  near = difflib.get_close_matches(name, known, 1)
  if near:
    return f"{where}.{name} is not a field; did you mean {where}.{near[0]}?"
  return f"{where}.{name} is not a field; {where} has {', '.join(known) or 'none'}."


def _shown(value: Any) -> str:
  shown = repr(value)
  return shown if len(shown) <= 80 else f"{shown[:77]}…"
