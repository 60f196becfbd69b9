"""TensorBoard's event files, written without TensorFlow.

A file is a sequence of TFRecords (length, checksum of the length, data, checksum of the data), each of
which holds one ``Event`` message in the wire format of protocol buffers.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed


def _table() -> list[int]:
  table = []
  for value in range(256):
    for _ in range(8):
      value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    table.append(value)
  return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
  """The checksum of iSCSI and of TFRecords."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc = crc >> 8 ^ _TABLE[crc & 0xFF ^ byte]
  return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
  # Rotated and shifted: a checksum of data that has checksums in it would be a weak one.
  crc = crc32c(data)
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
  """A TFRecord."""
  length = struct.pack("<Q", len(data))
  return length + _masked(length) + data + _masked(data)


def _varint(value: int) -> bytes:
  value &= (1 << 64) - 1
  digits = bytearray()
  while value > 0x7F:
    digits.append(value & 0x7F | 0x80)
    value >>= 7
  digits.append(value)
  return bytes(digits)


# A field is its number and the kind of its value, then the value.
def _integer(number: int, value: int) -> bytes:
  return _varint(number << 3) + _varint(value)


def _double(number: int, value: float) -> bytes:
  return _varint(number << 3 | 1) + struct.pack("<d", value)


def _float(number: int, value: float) -> bytes:
  with np.errstate(over="ignore"):  # what is too large is infinite
    return _varint(number << 3 | 5) + np.array(value, "<f8").astype("<f4").tobytes()


def _bytes(number: int, value: bytes) -> bytes:
  return _varint(number << 3 | 2) + _varint(len(value)) + value


class EventFile:
  """A file that TensorBoard reads scalars from.

  Args:
    folder: where it is made.
    step: the steps before, which other files may have; TensorBoard forgets later ones of them.
  """

  def __init__(self, folder: pathlib.Path, step: int):
    name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
    self._file = open(folder / name, "wb")  # noqa: SIM115
    self._write(_bytes(3, b"brain.Event:2"))
    # A session that starts at a step: what was written of that step and later ones is void.
    self._write(_integer(2, step + 1) + _bytes(7, _integer(1, 1)))
    self.flush()

  def _write(self, fields: bytes) -> None:
    self._file.write(record(_double(1, time.time()) + fields))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Adds scalars, by their name, of one step."""
    summary = b"".join(
      _bytes(1, _bytes(1, name.encode()) + _float(2, value)) for name, value in values.items()
    )
    self._write(_integer(2, step) + _bytes(5, summary))

  def flush(self) -> None:
    """What was written is in the file."""
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
