"""What local steps, compression and error feedback do to the loss of a transformer, byte for byte.

    RTOPK_JAX_DATA=… python -m study.low_communication --folder=runs/low_communication --minutes=60

The presets of ``configs/lm.py`` in small, 4 workers, 3 seeds, the same batches and as many for all. A run that has ended is
a line of docs/low_communication/runs.jsonl and is not run again; one that was stopped goes on from its checkpoint. The
program may be stopped and started again at any time. ``python -m study.report`` makes the table and the picture.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from configs import lm

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "low_communication"
LOG = FOLDER / "runs.jsonl"
SEEDS = (0, 1, 2)
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, order=True)
class Row:
  """A way to exchange.

  Attributes:
    preset: of ``configs/lm.py``: dense, sparse, diloco or sparseloco.
    steps: H, a worker's batches between two exchanges.
    method: none, topk, rtopk or randomk.
    memory: whether there is error feedback.
  """

  preset: str
  steps: int
  method: str = "none"
  memory: bool = True


def _rows() -> Iterator[Row]:
  """All rows, those first that say most."""
  yield Row("dense", 1)
  for steps in (30, 15):
    yield Row("diloco", steps)
    for memory in (True, False):
      for method in ("topk", "rtopk"):
        yield Row("sparseloco", steps, method, memory)
  for memory in (True, False):
    for method in ("topk", "rtopk"):
      yield Row("sparse", 1, method, memory)
  for steps in (30, 15):
    for memory in (True, False):
      yield Row("sparseloco", steps, "randomk", memory)
  yield Row("diloco", 1)
  for method in ("topk", "rtopk", "randomk"):
    yield Row("sparseloco", 1, method)


ROWS = tuple(_rows())


@dataclasses.dataclass(frozen=True)
class Text:
  """A text, and what a transformer of it is in this study.

  Attributes:
    name: of the data set.
    title: what it is called.
    batches: of a worker in a run.
    changes: of the config.
    rows: what is run on it.
  """

  name: str
  title: str
  batches: int
  changes: dict[str, Any]
  rows: tuple[Row, ...] = ROWS


TEXTS = (
  Text("tiny_shakespeare", "Shakespeare, characters", 600, dict(eval_batch_size=60)),
  # With 10,000 words to choose from a batch takes longer: smaller batches, and no random-k.
  Text(
    "ptb",
    "Penn Treebank, words",
    600,
    dict(eval_batch_size=20, unroll=32, batch_size=4),
    tuple(row for row in ROWS if row.method != "randomk"),
  ),
)


def config_of(text: Text, row: Row) -> Any:
  """The config of a row: a preset, whose model and batches are small enough for a busy CPU.

  Args:
    text: what is trained on.
    row: how workers exchange.

  Returns:
    The config.
  """
  config = lm.get_config(row.preset)
  config.dataset, config.methods, config.seeds = text.name, (row.method,), SEEDS
  config.model.layers, config.model.heads, config.model.width = 2, 2, 64
  config.batch_size, config.max_batches = 8, text.batches
  config.learning_rate, config.learning_rate_end = 3e-3, 3e-4
  config.error_feedback = row.memory
  if not row.memory:
    config.memory_decay = 1.0
  if config.setting == "federated":
    config.local_steps = row.steps
  config.eval_every, config.checkpoint_every, config.log_every = 0, 150, 50
  for name, value in text.changes.items():
    config[name] = value
  return config


def read(path: pathlib.Path = LOG) -> list[Record]:
  """The runs of a log; a last line that was cut short counts as none."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def key(record: Record) -> tuple[str, Row, int]:
  """What a run is known by."""
  row = Row(*(record[field.name] for field in dataclasses.fields(Row)))
  return record["text"], row, record["seed"]


def _append(path: pathlib.Path, records: list[Record]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  content = path.read_text() if path.exists() else ""
  whole = content[: content.rfind("\n") + 1]
  with path.open("w") as file:
    file.write(whole + "".join(json.dumps(record) + "\n" for record in records))


def run(text: Text, row: Row, folder: pathlib.Path) -> list[Record]:
  """Trains with every seed.

  Args:
    text: on what.
    row: how workers exchange.
    folder: where checkpoints and metrics go.

  Returns:
    A line of each seed.
  """
  from train import train_and_evaluate

  name = "-".join(
    str(x) for x in (text.name, row.preset, row.steps, row.method, "memory" if row.memory else "no")
  )
  records = train_and_evaluate(config_of(text, row), str(folder / name))
  ends = {record["seed"]: record for record in records}
  return [
    {
      "text": text.name,
      **dataclasses.asdict(row),
      "seed": seed,
      "parameters": end["parameters"],
      "batches": text.batches,
      "exchanges": end["step"],
      "valid_loss": round(end["valid_loss"], 5),
      "test_loss": round(end["test_loss"], 5),
      "sent_bytes": end["sent_bytes"],
      "link_bytes": end["link_bytes"],
      "seconds": round(end["seconds"], 1),
    }
    for seed, end in ends.items()
  ]


def main() -> None:
  """Runs what is missing."""
  parser = argparse.ArgumentParser(prog="python -m study.low_communication")
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="of checkpoints")
  parser.add_argument("--text", choices=[text.name for text in TEXTS], help="only this one")
  parser.add_argument("--minutes", type=float, default=float("inf"), help="then no run is begun")
  parser.add_argument("--dry_run", action="store_true", help="say what is missing, and run nothing")
  options = parser.parse_args()
  end = time.monotonic() + 60 * options.minutes
  done = {key(record) for record in read()}
  for text in TEXTS:
    for row in text.rows:
      if options.text not in (None, text.name):
        continue
      if all((text.name, row, seed) in done for seed in SEEDS):
        continue
      if options.dry_run:
        print(text.name, row)
        continue
      if time.monotonic() > end:
        return
      _append(LOG, run(text, row, options.folder))


if __name__ == "__main__":
  main()
