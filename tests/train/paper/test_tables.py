"""Rows of the paper's tables as configs, their collection, and one row that really runs."""

import json
import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict, config_dict

from configs import cifar10, imagenet, ptb, rows, variants
from configs.rows import Row
from tests.train.runs import ROOT
from train import tables
from train.command import program
from train.paper import runs
from train.paper.printed import TABLES
from train.planning import settings

CONFIGS = {"cifar10": cifar10, "imagenet": imagenet, "ptb": ptb}
EVERY_ROW = [(table, row) for table in TABLES.values() for row in table.rows]


@pytest.mark.parametrize(
  ("text", "row", "density"),
  [
    ("distributed,none", Row("distributed", "none"), 1.0),
    ("federated,rtopk,0.95", Row("federated", "rtopk", "0.95"), 0.05),
    (" distributed, topk, 0.999", Row("distributed", "topk", "0.999"), 0.001),
    ("federated,randomk,0", Row("federated", "randomk", "0"), 1.0),
  ],
)
def test_rows_are_read(text, row, density):
  assert rows.parse(text) == row
  assert rows.parse(row.text) == row
  assert row.density == density


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("rtopk", "A row is SETTING,METHOD"),
    ("distributed,rtopk,0.99,1", "A row is SETTING,METHOD"),
    ("local,rtopk,0.99", "SETTING is one of distributed, federated in .* got 'local,rtopk,0.99'"),
    ("distributed,qsgd,0.99", "METHOD is one of none, rtopk, topk, randomk"),
    ("distributed,none,0.99", "METHOD none sends everything"),
    ("distributed,rtopk,99", "COMPRESSION is the share not sent"),
    ("distributed,rtopk,1", "COMPRESSION is the share not sent"),
    ("distributed,rtopk,high", "COMPRESSION is the share not sent"),
    ("distributed,rtopk,nan", "COMPRESSION is the share not sent"),
  ],
)
def test_what_is_no_row_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    rows.parse(text)


@pytest.mark.parametrize("variant", ["full", "small"])
@pytest.mark.parametrize(("table", "row"), EVERY_ROW, ids=lambda x: getattr(x, "text", ""))
def test_every_row_is_a_config_that_may_run(table, row, variant):
  config = CONFIGS[table.config].get_config(row.text)
  config.variant = variant
  config = variants.settle(config)
  settings.check(config)
  assert config.setting == row.setting
  assert tuple(config.methods) == (row.method,)
  if row.compression:
    assert config.density == pytest.approx(1 - float(row.compression))
  assert config.num_workers == 5
  assert config.subsample is None  # r/k = n
  assert config.average == "senders"
  assert bool(config.momentum) == (table.config != "ptb")
  assert config.error_feedback == ((table.config, row.setting) != ("ptb", "federated"))
  if variant == "small":
    assert config.warmup_epochs <= 0.1 * config.epochs
  else:
    assert config.warmup_epochs == 4  # the fifth epoch is at the final density
    assert config.local_steps is None  # a local epoch
    assert config.batch_size == {"cifar10": 128, "imagenet": 32, "ptb": 20}[table.config]


# As printed: compression in percent, then the figure; and which of all nodes' claims stand on it.
PRINTED = {
  1: {"none": 92.40, "rtopk 99": 93.25, "rtopk 99.9": 89.34, "topk 99": 92.46, "topk 99.9": 86.12}
  | {"randomk 99": 66.81},
  2: {"none": 91.16, "rtopk 99": 92.02, "rtopk 99.9": 88.51, "topk 99": 85.62, "topk 99.9": 81.00}
  | {"randomk 99": 61.07},
  3: {"none": 69.70, "rtopk 99": 70.63, "rtopk 99.9": 65.37, "topk 99": 63.06, "topk 99.9": 57.80}
  | {"randomk 99": 29.19},
  4: {
    "none": 84.63,
    "rtopk 99.9": 82.49,
    "topk 99.9": 91.84,
    "topk 99": 84.31,
    "randomk 99": 281.61,
  },
  5: {"none": 82.14, "rtopk 95": 82.02, "topk 95": 97.05, "topk 75": 81.97, "randomk 95": 130.91},
}


def test_tables_are_as_the_paper_prints_them():
  name = lambda row: f"{row.method} {100 * float(row.compression):g}" if row.compression else "none"
  for number, printed in PRINTED.items():
    table = TABLES[number]
    shown = {name(row): table.printed(row) for row in table.rows}
    assert list(shown) == list(printed)
    assert [float(text.removesuffix(" %")) for text in shown.values()] == list(printed.values())
    assert all(text.endswith(" %") == (number <= 3) for text in shown.values())
    assert table.figure == number + 1
    assert all(row == rows.parse(row.text) for row in table.rows)
  settings_of = {number: table.setting for number, table in TABLES.items()}
  assert [n for n in settings_of if settings_of[n] == "distributed"] == [1, 4]


def test_the_papers_rounds_of_an_epoch():
  """Section III-A: 78 on CIFAR-10 and 265 on Penn Treebank, which is what its batches and five nodes give."""
  image, text = cifar10.get_config("distributed,none"), ptb.get_config("distributed,none")
  image, text = variants.settle(image), variants.settle(text)
  assert 50_000 // (image.num_workers * image.batch_size) == 78
  assert 929_589 // (text.num_workers * text.batch_size * text.unroll) == 265


def a_config() -> ConfigDict:
  return ConfigDict(
    dict(model=dict(width=64, stem="small"), epochs=1, share=config_dict.placeholder(int))
    | dict(variant="full", variants=dict(full={}))
  )


def test_variants_fill_in_what_is_open():
  config = a_config()
  variants.vary(
    config,
    full=dict(model=dict(width=64), epochs=150),
    small=dict(model=dict(width=16), epochs=10, share=5),
  )
  assert config.epochs is config.model.width is config.share is None
  full = variants.settle(config)
  assert (full.model.width, full.model.stem, full.epochs, full.share) == (64, "small", 150, None)
  assert list(full.variants) == ["full"]
  config.variant = "small"
  small = variants.settle(config)
  assert (small.model.width, small.epochs, small.share, small.variant) == (16, 10, 5, "small")
  # What a user has set stays, also where it is the other variant's value; types are kept.
  config.epochs = 150
  assert variants.settle(config).epochs == 150
  with pytest.raises(TypeError):
    config.model.width = "wide"
  assert config.variants.small.epochs == 10
  # Settled is settled.
  assert variants.settle(small).epochs == 10


def test_unknown_variants_are_refused():
  config = a_config()
  config.variant = "tiny"
  with pytest.raises(ValueError, match="variant must be one of full, got 'tiny'"):
    variants.settle(config)
  config = cifar10.get_config()
  config.variant = "tiny"
  with pytest.raises(ValueError, match="variant must be one of full, small, got 'tiny'"):
    variants.settle(config)


def record(seed, epoch, **more):
  same = {"seed": seed, "epoch": epoch, "step": 7 * epoch, "parameters": 1040}
  return same | {"train_loss": 2 / epoch, "seconds": 30.0 * epoch} | more


def left_behind(workdir, table, row, records, **config):
  """What a run of a row leaves in its directory."""
  where = runs.directory(workdir, table, row)
  where.mkdir(parents=True)
  config = {"variant": "small", "epochs": 3, "seeds": [0, 1], "density": 0.01} | config
  config["warmup_epochs"] = 1
  (where / "config.json").write_text(json.dumps(config))
  (where / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_table_is_collected_from_what_is_there(tmp_path):
  table = TABLES[1]
  scored = lambda seed, epoch, accuracy: record(
    seed, epoch, test_accuracy=accuracy, sent_bytes=4e6 * epoch
  )
  left_behind(
    tmp_path,
    table,
    table.rows[0],
    # A run that was resumed has written an epoch twice; the best epoch is not the last.
    [
      scored(0, 1, 0.3),
      scored(0, 2, 0.9),
      scored(0, 2, 0.6),
      scored(0, 3, 0.5),
      scored(1, 1, 0.4),
      scored(1, 2, 0.45),
    ],
  )
  left_behind(
    tmp_path,
    table,
    table.rows[1],
    # One epoch of warm-up at 25 %, two at 1 % of 1,040 entries, which is 10 of them.
    [record(0, i, test_accuracy=0.25, sent_bytes=123456) for i in (1, 2, 3)],
    seeds=[0],
    epochs=4,
  )
  text = runs.collect(table, tmp_path)
  assert (tmp_path / "table1.md").read_text() == text
  assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG")
  lines = [line for line in text.splitlines() if line.startswith("| ")]
  assert len(lines) == 1 + len(table.rows)
  cells = lambda line: [cell.strip() for cell in line.strip("|").split("|")]
  # Last epochs 0.5 and 0.45; two of three epochs; bytes and minutes of all seeds.
  assert cells(lines[1]) == [
    *("no compression", "none", "47.50 % ± 3.54 %", "92.40 %", "small"),
    *("2 of 3", "2 of 2", "100 %", "10", "2.5"),
  ]
  assert cells(lines[2]) == [
    *("rTop-k", "99 %", "25.00 %", "93.25 %", "small"),
    *("3 of 4", "1 of 1", f"{100 * (260 + 10 + 10) / (3 * 1040):.3g} %", "0.1235", "1.5"),
  ]
  assert cells(lines[3])[2:4] == ["not run", "89.34 %"]
  # A row whose evaluations are rarer than its epochs, and one that has none yet.
  rare = lambda epoch: {"test_accuracy": 0.7} if epoch == 2 else {}
  records = [record(i, j, sent_bytes=1000, **rare(j)) for i in (0, 1) for j in (1, 2, 3)]
  left_behind(tmp_path, table, table.rows[2], records)
  left_behind(tmp_path, table, table.rows[3], records[:1])
  lines = [line for line in runs.collect(table, tmp_path).splitlines() if line.startswith("| ")]
  assert [cells(line)[2] for line in lines[3:5]] == ["70.00 % ± 0.00 %", "none yet"]


def test_nothing_was_run(tmp_path):
  text = runs.collect(TABLES[5], tmp_path)
  assert text.count("not run") == len(TABLES[5].rows)
  assert "test perplexity" in text
  assert (tmp_path / "figure6.png").exists()


def test_rows_are_chosen_in_the_tables_order():
  table = TABLES[4]
  assert runs.chosen(table, []) == list(table.rows)
  two = ["distributed,topk,0.99", "distributed,none"]
  assert [row.text for row in runs.chosen(table, two)] == two[::-1]
  with pytest.raises(ValueError, match="row='federated,none' is not in table 4, which has"):
    runs.chosen(table, ["federated,none"])


# A shell: it waits for the signal long before an interpreter would.
SAVES = "trap 'kill $!; printf saved > \"$0\"; exit 143' TERM; sleep 60 & wait"


def test_a_row_that_takes_too_long_is_told_to_save(tmp_path):
  file = tmp_path / "file"
  assert runs.run(["sh", "-c", SAVES, str(file)], seconds=1) == "stopped"
  assert file.read_text() == "saved"
  assert runs.run(["true"], seconds=60) == "done"
  assert runs.run(["sh", "-c", "exit 143"], None) == "stopped"
  assert runs.run(["sh", "-c", "exit 3"], None) == "failed (status 3)"


@pytest.mark.parametrize(
  ("row_minutes", "end", "seconds"),
  [(None, None, None), (2, None, 120), (None, 150, 50), (2, 150, 50), (0.5, 150, 30), (2, 90, 0)],
)
def test_rows_share_a_budget(row_minutes, end, seconds):
  assert runs.remaining(row_minutes, end, now=100) == seconds


def _tables(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "train.tables", *arguments],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_a_row_runs_and_is_left_when_it_is_done(tmp_path):
  """On the digits, which need no download."""
  fields = (
    *("dataset=digits", "model.width=4", "model.stem=small", "model.stages=(1,)"),
    *("max_steps=2", "warmup_epochs=0", "batch_size=16", "train_examples=1000"),
  )
  words = (
    "--table=1",
    f"--workdir={tmp_path}",
    "--variant=small",
    "--row=distributed,rtopk,0.99",
    *(f"--set={field}" for field in fields),
  )
  for _ in range(2):
    done = _tables(*words)
    assert done.returncode == 0, done.stderr
    assert "distributed,rtopk,0.99: done" in done.stdout
    # k = 4 of the 398 parameters.
    row = "| small | 1 of 10 | 1 of 1 | "
    assert row in done.stdout
  assert "was finished at step 2 of 2" in done.stdout


def test_unknown_rows_are_refused_before_anything_runs(tmp_path):
  done = _tables("--table=2", f"--workdir={tmp_path}", "--row=distributed,none")
  assert done.returncode == 2
  assert done.stderr.startswith("error: --row='distributed,none' is not in table 2, which has ")
  assert done.stderr.count("\n") == 1
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("field", "said"),
  [
    ("batch_sice=3", "config.batch_sice is not a field; did you mean config.batch_size?"),
    ("epochs=0", "config.epochs must be at least 1, got 0."),
    ("model.width=0", "config.model.width must be at least 1"),
    ("train_examples=100_000", "config.train_examples must be at most 1437, the images there are"),
  ],
)
def test_a_mistake_is_said_once_for_all_rows(usual_promotion, capsys, tmp_path, field, said):
  words = ["--table=1", f"--workdir={tmp_path}", "--set=dataset=digits", f"--set={field}"]
  with pytest.raises(SystemExit) as end:
    program.run(tables.main, words)
  assert end.value.code == 2
  output = capsys.readouterr()
  assert (output.out, output.err.count("\n")) == ("", 1)
  assert output.err.startswith(f"error: distributed,none: {said}")


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ("", "--table is missing, such as --table=1."),
    ("--table=1", "--workdir is missing, such as --workdir=runs/tables."),
    ("--table=6", "Argument --table: invalid choice: 6 (choose from"),
    ("--table=1 --workdir=gs://b/t", "--workdir must be a folder of this machine, got 'gs://b/t'"),
    ("--table=1 --workdir=x --minutes=-1", "--minutes must be at least 0, got -1.0."),
    ("--table=1 --workdir=x --budget=nan", "--budget must be at least 0, got nan."),
    ("--table=1 --colect", "--colect is not an option; did you mean --collect?"),
  ],
)
def test_mistakes_are_one_line(capsys, arguments, said):
  with pytest.raises(SystemExit) as end:
    program.run(tables.main, arguments.split())
  assert end.value.code == 2
  assert capsys.readouterr().err.startswith(f"error: {said}")
