"""What a compiled program does, read from its text: collectives, sorts, and bytes moved.

It knows the text of XLA's CPU, GPU and TPU compilers. Arrays count as they lie in memory: on TPUs the last
two dimensions are padded to whole tiles, so that a minor dimension of 8 takes sixteen times its entries.
"""

import dataclasses
import itertools
import math
import re

from rtopk_jax import _loops

_BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_COLLECTIVES = re.compile(
  r"^(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
  r"|collective-broadcast)(-start)?$"
)
# What only names or passes on, and what is counted inside.
_FREE = re.compile(
  r"^(parameter|constant|tuple|get-tuple-element|bitcast|after-all|while|conditional|call|partition-id"
  r"|replica-id|opt-barrier|.*-done)$"
)
_SLICES = ("slice", "dynamic-slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
_VIEWS = ("bitcast", "reshape", "copy")


@dataclasses.dataclass(frozen=True)
class Array:
  """An array of a program.

  Attributes:
    dtype: as XLA spells it.
    shape: its dimensions.
    layout: the text of its layout.
  """

  dtype: str
  shape: tuple[int, ...]
  layout: str

  @property
  def entries(self) -> int:
    """How many there are."""
    return math.prod(self.shape)

  @property
  def item(self) -> int:
    """Bytes of an entry."""
    if self.dtype in _BYTES:
      return _BYTES[self.dtype]
    return -(-int(re.sub(r"\D", "", self.dtype.split("e")[0]) or 0) // 8)

  @property
  def bytes(self) -> int:
    """Bytes in memory, padding included."""
    shape = list(self.shape)
    tile = re.search(r":T\((\d+),(\d+)\)", self.layout)
    order = [int(i) for i in re.findall(r"\d+", self.layout.split(":")[0])]
    if tile and len(shape) >= 2:
      for axis, size in zip(order, (int(tile[2]), int(tile[1])), strict=False):
        shape[axis] = -(-shape[axis] // size) * size
    return math.prod(shape) * self.item

  @property
  def on_chip(self) -> bool:
    """Whether it lies in a TPU's vector memory, where reading it costs little."""
    return "S(1)" in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction of a program.

  Attributes:
    name: its name.
    opcode: what it does.
    results: the arrays it makes.
    operands: names of what it reads.
    text: its whole line.
  """

  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  text: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of a program.

  Attributes:
    kind: "all-gather", "all-reduce" and so on.
    arrays: what a device gets of it.
    groups: the devices that take part, by their numbers in the mesh; None where it is between all.
    between_slices: whether it goes over the network of a data centre, from one TPU slice to others.
  """

  kind: str
  arrays: tuple[Array, ...]
  groups: tuple[tuple[int, ...], ...] | None
  between_slices: bool = False

  def crosses(self, part: dict[int, int]) -> bool:
    """Whether it joins devices of different parts.

    Args:
      part: the part of each device.
    """
    groups = self.groups or (tuple(part),)
    return self.between_slices or any(
      len({part[device] for device in group}) > 1 for group in groups
    )

  def __str__(self):
    arrays = " ".join(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in self.arrays)
    return f"{self.kind} {arrays}"


class Program:
  """A compiled program.

  Args:
    text: ``compiled.as_text()``.

  Attributes:
    entry: the instructions of what is run, in the order of their schedule.
  """

  def __init__(self, text: str):
    self._computations: dict[str, list[Instruction]] = {}
    self.entry: list[Instruction] = []
    body: list[Instruction] = []
    for line in text.splitlines():
      opened = None if line.startswith(" ") else _COMPUTATION.match(line)
      if opened:
        body = self._computations.setdefault(opened[2], [])
        self.entry = body if opened[1] else self.entry
      found = _INSTRUCTION.match(line)
      if found:
        name, shape, opcode, rest = found.groups()
        operands = tuple(re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0]))
        body.append(Instruction(name, opcode, _arrays(shape), operands, line.strip()))
    # Computations that others apply entry by entry, or as one kernel.
    inner = re.findall(r"(?:calls|to_apply|comparator|select|scatter)=%?([\w.\-]+)", text)
    called = re.findall(r" call\(.*to_apply=%?([\w.\-]+)", text)
    self._inner = set(inner) - set(called)
    # Who runs each computation, and how often in one run of its own, if that is known; what is named as running
    # hardly ever counts as if it never did.
    self._runners: dict[str, list[tuple[str, int]]] = {}
    for name, body in self._computations.items():
      for x in body:
        for run, times in _run_by(x):
          self._runners.setdefault(run, []).append((name, times))

  @property
  def instructions(self) -> int:
    """How many there are, those of fused computations included."""
    return sum(len(body) for body in self._computations.values())

  @property
  def launches(self) -> int:
    """Instructions that run on their own, each once; none of what hardly ever runs."""
    outer = [name for name in self._computations if name not in self._inner and self._turns(name)]
    return sum(not _FREE.match(x.opcode) for name in outer for x in self._computations[name])

  def collectives(self) -> list[Collective]:
    """All of them, those between TPU slices (which are sends through the hosts) included."""
    found = []
    for instruction in itertools.chain(*self._computations.values()):
      text, results = instruction.text, instruction.results
      kind = _COLLECTIVES.match(instruction.opcode)
      if kind:
        # An asynchronous one has its operands in front of its results.
        started = results[len(results) // 2 :] if kind[2] and len(results) > 1 else results
        found.append(Collective(kind[1], started, _groups(text)))
      between = re.search(r'megascale_transfer_type="(\w+)"', text)
      if instruction.opcode == "recv" and between:
        name = between[1].lower().replace("_", "-")
        found.append(Collective(name, results[:1], None, between_slices=True))
    return found

  def sorts(self) -> list[int]:
    """The number of entries that each sort or top-k sorts."""
    found = []
    for body in self._computations.values():
      names = {x.name: x for x in body}
      for x in body:
        is_top_k = x.opcode in ("topk", "top-k") or (
          x.opcode == "custom-call" and re.search(r'target="[^"]*[tT]op_?[kK]', x.text)
        )
        if x.opcode == "sort" or is_top_k:
          source = names.get(x.operands[0]) if x.operands else None
          arrays = source.results if source else x.results
          found.append(max(array.entries for array in arrays))
    return found

  def moved(self, turns: bool = False) -> list[tuple[float, Instruction]]:
    """Bytes that every instruction that runs on its own reads and writes in the device's memory.

    Of what is only sliced or gathered from, the slice counts; of what is updated in place, the update.

    Args:
      turns: whether the body of a loop counts as often as it is known to turn, which is what a loop over stretches
        moves; else once, and a loop over messages counts as one message.
    """
    found = []
    for name, body in self._computations.items():
      if name not in self._inner:
        times, names = self._turns(name), {x.name: x for x in body}
        times = times if turns else min(times, 1)
        kept = [x for x in body if not _FREE.match(x.opcode)]
        found += [(times * self._moved(names, x), x) for x in kept]
    return found

  def _turns(self, computation: str) -> int:
    """How often a computation runs in one run of the program, as far as that is known."""
    if computation not in self._runners:
      return 1
    return sum(times * self._turns(runner) for runner, times in self._runners[computation])

  def _moved(self, names: dict[str, Instruction], x: Instruction) -> float:
    sources = [names[name].results if name in names else () for name in x.operands]
    if x.opcode == "fusion":
      called = re.search(r"calls=%?([\w.\-]+)", x.text)
      body = self._computations.get(called[1], []) if called else []
    else:
      body = []
    if not body:
      return _plain(x, sources)
    return _fused(body, x, sources)


def _run_by(x: Instruction) -> list[tuple[str, int]]:
  """The computations that an instruction runs, and how often; each branch counts as if it were taken."""
  if x.opcode == "while":
    return [(name, _turns_of(x)) for name in re.findall(r"body=%?([\w.\-]+)", x.text)]
  if x.opcode == "call":
    return [(name, 1) for name in re.findall(r"to_apply=%?([\w.\-]+)", x.text)]
  if x.opcode == "conditional":
    listed = re.findall(r"branch_computations=\{([^}]*)\}", x.text)
    names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", x.text)
    return [(name, 1) for name in (*names, *re.findall(r"[\w.\-]+", " ".join(listed)))]
  return []


def _turns_of(loop: Instruction) -> int:
  """How often a loop turns: once if that is not known, and not at all if it hardly ever runs."""
  if re.search(rf'op_name="[^"]*/{_loops.SELDOM}/', loop.text):
    return 0
  known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.text)
  return int(known[1]) if known else 1


def _plain(x: Instruction, sources: list[tuple[Array, ...]]) -> float:
  """Bytes of an instruction that is not a fusion."""
  written = sum(_off_chip(array) for array in x.results)
  if x.opcode.removesuffix("-start") in _SLICES:
    size = min((array.bytes for array in x.results if array.entries > 1), default=0)
    # An asynchronous one names its operand in front of its result.
    made = x.results[1 if x.opcode.endswith("-start") and len(x.results) > 1 else 0]
    return size * sum(not array.on_chip for array in (*sources[0][:1], made))
  if x.opcode in _UPDATES:
    place = _UPDATES[x.opcode]
    return 2 * sum(_off_chip(array) for array in sources[place])
  if x.opcode == "copy-start":
    written = _off_chip(x.results[0])
  return written + sum(_off_chip(array) for source in sources for array in source)


def _fused(body: list[Instruction], x: Instruction, sources: list[tuple[Array, ...]]) -> float:
  """Bytes of a fusion, which works out no more of anything inside than its results need."""
  names = {y.name: y for y in body}
  root = body[-1]
  made = [names[name] for name in root.operands] if root.opcode == "tuple" else [root]
  # How many entries of every instruction are needed, from the results backwards.
  needed = dict.fromkeys(names, 0)
  total = 0.0
  for y, result in zip(made, x.results, strict=False):
    needed[y.name] = _entries(y)
    while y.opcode in _VIEWS and y.operands[0] in names:
      y = names[y.operands[0]]
    if y.opcode in _UPDATES:
      update = _entries(names[y.operands[_UPDATES[y.opcode]]])
      # What is added to is read as well.
      times = 1 if y.opcode == "dynamic-update-slice" else 2
      total += 0 if result.on_chip else times * update * result.item
    else:
      total += _off_chip(result)
  for y in reversed(body):
    for place, operand in enumerate(y.operands):
      if operand in names:
        whole = _entries(names[operand])
        needed[operand] = min(whole, needed[operand] + _needs(y, place, whole, needed[y.name]))
  for y in body:
    number = re.search(r"parameter\((\d+)\)", y.text)
    if y.opcode == "parameter" and number and int(number[1]) < len(sources):
      share = needed[y.name] / max(_entries(y), 1)
      total += share * sum(_off_chip(array) for array in sources[int(number[1])])
  return total


def _needs(user: Instruction, place: int, whole: int, wanted: int) -> int:
  """How many of an operand's entries an instruction needs when so many of its own are wanted."""
  if not wanted or (user.opcode in _UPDATES and place == 0):
    return 0
  if user.opcode in _SLICES and place == 0:
    return wanted
  if user.opcode in ("concatenate", "pad") or _entries(user) == whole:
    return min(whole, wanted)
  return whole


def _entries(x: Instruction) -> int:
  return sum(array.entries for array in x.results)


def _off_chip(array: Array) -> int:
  return 0 if array.on_chip else array.bytes


def _arrays(text: str) -> tuple[Array, ...]:
  return tuple(
    Array(dtype, tuple(int(n) for n in dims.split(",") if n), layout)
    for dtype, dims, layout in _ARRAY.findall(text)
  )


def _groups(text: str) -> tuple[tuple[int, ...], ...] | None:
  listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", text)
  if listed:
    return tuple(
      tuple(int(i) for i in group.split(",")) for group in re.findall(r"\{([\d, ]+)\}", listed[1])
    )
  named = re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", text)
  if named:
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
    return _along(axes, re.findall(r"'([^']+)'", named[2]))
  iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if not iota:
    return None
  shape, dims = ([int(i) for i in iota[part].split(",")] for part in (1, 2))
  order = [int(i) for i in iota[3].split(",")] if iota[3] else list(range(len(dims)))
  strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
  ids = [
    sum(i * strides[axis] for i, axis in zip(index, order, strict=True))
    for index in itertools.product(*(range(dims[axis]) for axis in order))
  ]
  size = math.prod(shape[1:])
  return tuple(tuple(ids[i : i + size]) for i in range(0, len(ids), size))


def _along(axes: dict[str, int], together: list[str]) -> tuple[tuple[int, ...], ...]:
  """The groups of devices of a mesh that differ along some of its axes alone."""
  groups: dict[tuple[int, ...], list[int]] = {}
  for number, index in enumerate(itertools.product(*(range(size) for size in axes.values()))):
    key = tuple(i for i, name in zip(index, axes, strict=True) if name not in together)
    groups.setdefault(key, []).append(number)
  return tuple(tuple(group) for group in groups.values())
