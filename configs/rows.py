"""Which row of the paper's tables a config is: ``SETTING,METHOD[,COMPRESSION]`` after the file's name."""

import decimal
from typing import Any, NamedTuple

SETTINGS = ("distributed", "federated")
# Methods, by the names that tables and pictures have for them.
NAMES = {"none": "no compression", "rtopk": "rTop-k", "topk": "top-k", "randomk": "random-k"}
METHODS = tuple(NAMES)


class Row(NamedTuple):
  """A row of a table.

  Attributes:
    setting: "distributed": one exchange a batch; "federated": one a round of local steps.
    method: "none", "rtopk", "topk" or "randomk".
    compression: the share of entries that is not sent, as the tables print it ("0.99"); None without one.
  """

  setting: str
  method: str
  compression: str | None = None

  @property
  def text(self) -> str:
    """What stands after the config's name on the command line."""
    return ",".join(part for part in self if part)

  @property
  def density(self) -> float:
    """The share of entries that is sent: 0.01 for a compression of 0.99."""
    # In decimals: 1 - 0.99 in binary is 0.010000000000000009.
    return float(1 - decimal.Decimal(self.compression or 0))


def parse(text: str) -> Row:
  """Reads a row.

  Args:
    text: such as "distributed,rtopk,0.99" or "federated,none".

  Returns:
    The row.

  Raises:
    ValueError: for what is not one; the message says what would be.
  """
  form = f"SETTING,METHOD[,COMPRESSION], such as distributed,rtopk,0.99; got {text!r}"
  parts = [part.strip() for part in text.split(",")]
  if not 2 <= len(parts) <= 3:
    raise ValueError(f"A row is {form}.")
  setting, method = parts[:2]
  for name, value, known in (("SETTING", setting, SETTINGS), ("METHOD", method, METHODS)):
    if value not in known:
      raise ValueError(f"{name} is one of {', '.join(known)} in {form}.")
  if len(parts) == 2:
    return Row(setting, method)
  if method == "none":
    raise ValueError(f"METHOD none sends everything and has no COMPRESSION in {form}.")
  try:
    is_share = 0 <= decimal.Decimal(parts[2]) < 1
  except decimal.InvalidOperation:  # not a number, or NaN
    is_share = False
  if not is_share:
    raise ValueError(
      f"COMPRESSION is the share not sent, from 0 to below 1 (0.99 for a density of 1 %), in {form}."
    )
  return Row(setting, method, parts[2])


def apply(config: Any, text: str | None) -> None:
  """Makes a config that of a row.

  Args:
    config: the config of a data set, in the distributed setting with all methods.
    text: the row; None leaves the config as it is.

  Raises:
    ValueError: as ``parse`` does.
  """
  if text is None:
    return
  row = parse(text)
  config.setting = row.setting
  config.methods = (row.method,)
  if row.compression is not None:
    config.density = row.density
