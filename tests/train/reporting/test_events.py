"""Event files, read back by protobuf and a checksum of its own."""

import struct

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from train.reporting.events import EventFile, crc32c


def _event_class():
  """The messages of TensorBoard that matter here, described from their published numbers."""
  file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="t", syntax="proto3")
  field = descriptor_pb2.FieldDescriptorProto

  def message(name, fields):
    made = file.message_type.add(name=name)
    for number, label, kind, what in fields:
      repeated = label.endswith("*")
      made.field.add(
        name=label.rstrip("*"),
        number=number,
        type=kind,
        label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
        type_name=what,
      )

  message(
    "Value", [(1, "tag", field.TYPE_STRING, None), (2, "simple_value", field.TYPE_FLOAT, None)]
  )
  message("Summary", [(1, "value*", field.TYPE_MESSAGE, ".t.Value")])
  message("SessionLog", [(1, "status", field.TYPE_INT32, None)])
  message(
    "Event",
    [
      (1, "wall_time", field.TYPE_DOUBLE, None),
      (2, "step", field.TYPE_INT64, None),
      (3, "file_version", field.TYPE_STRING, None),
      (5, "summary", field.TYPE_MESSAGE, ".t.Summary"),
      (7, "session_log", field.TYPE_MESSAGE, ".t.SessionLog"),
    ],
  )
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Event"))


def _remainder(data):
  """CRC-32C by division of polynomials over GF(2), one bit after another."""
  reflect = lambda value, bits: int(f"{value:0{bits}b}"[::-1], 2)
  bits = "".join(f"{reflect(x, 8):08b}" for x in data)
  dividend = (int(bits, 2) << 32) ^ (0xFFFFFFFF << len(bits))
  for place in range(len(bits) - 1, -1, -1):
    if dividend >> (place + 32) & 1:
      dividend ^= (1 << 32 | 0x1EDC6F41) << place
  return reflect(dividend, 32) ^ 0xFFFFFFFF


def test_checksum():
  assert crc32c(b"123456789") == 0xE3069283  # the check value of the standard
  for data in (b"\0", bytes(range(40)), b"\xff" * 9):
    assert crc32c(data) == _remainder(data)


def _unmasked(masked):
  rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
  return (rotated << 15 | rotated >> 17) & 0xFFFFFFFF


def _events(data):
  event = _event_class()
  while data:
    (length,) = struct.unpack("<Q", data[:8])
    assert _unmasked(*struct.unpack("<I", data[8:12])) == _remainder(data[:8])
    body, check, data = data[12 : 12 + length], data[12 + length : 16 + length], data[16 + length :]
    assert _unmasked(*struct.unpack("<I", check)) == _remainder(body)
    yield event.FromString(body)


def read(path):
  """Step, name and value of all scalars of a file."""
  return [
    (event.step, value.tag, value.simple_value)
    for event in _events(path.read_bytes())
    for value in event.summary.value
  ]


def test_scalars_can_be_read_back(tmp_path):
  file = EventFile(tmp_path, step=40)
  file.scalars(41, {"loss": 0.5, "häufig": -3.0})
  file.scalars(300, {"loss": 1e39})
  file.close()
  (path,) = tmp_path.iterdir()
  assert path.name.startswith("events.out.tfevents.")
  first, start, one, two = _events(path.read_bytes())
  assert first.file_version == "brain.Event:2"
  # What earlier files say of step 41 and later is void.
  assert (start.step, start.session_log.status) == (41, 1)
  assert [(x.tag, x.simple_value) for x in one.summary.value] == [("loss", 0.5), ("häufig", -3.0)]
  assert (one.step, two.step) == (41, 300)
  assert two.summary.value[0].simple_value == float("inf")
  assert 0 <= two.wall_time - first.wall_time < 3600
