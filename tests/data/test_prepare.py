"""Data sets made from small archives of the official layout, and all that can go wrong."""

import errno
import hashlib
import io
import lzma
import os
import pathlib
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

import data
from data import archives, prepare, prepared
from data.archives import Archive, File, PrepareError

ROOT = pathlib.Path(__file__).parents[2]


def _tar(members, mode="w"):
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as tar:
    for name, content in members.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      tar.addfile(entry, io.BytesIO(content))
  return file.getvalue()


def _file(name, content):
  return File(name, len(content), hashlib.sha256(content).hexdigest())


def _archive(members, folder, name):
  """An archive of ``members`` in a folder of its own, and what is known about it."""
  content = _tar({f"{folder}/{file}": members[file] for file in members}, "w:gz")
  known = tuple(_file(*member) for member in members.items())
  return content, Archive(f"http://localhost:1/{name}", known, _file(name, content))


@pytest.fixture
def cifar10(tmp_path):
  """Six batches of three images in an archive in ``tmp_path/manual``; what is in them, and about it."""
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 256, (6, 3, 3073), np.uint8)
  rows[..., 0] %= 10
  names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
  members = {name: row.tobytes() for name, row in zip(names, rows, strict=True)}
  content, archive = _archive(members, "cifar-10-batches-bin", "cifar-10-binary.tar.gz")
  (tmp_path / "manual").mkdir()
  (tmp_path / "manual" / archive.name).write_bytes(content)
  return rows, members, archive


def _prepare_cifar10(tmp_path, archive, data_dir="data"):
  where = tmp_path / data_dir
  make = lambda: prepare.cifar10(where, tmp_path / "manual", archive)
  return prepare.prepare(make, "cifar10", where)


def _bytes(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_cifar10_comes_out_as_it_went_in(cifar10, tmp_path):
  rows, _, archive = cifar10
  made = _prepare_cifar10(tmp_path, archive)
  assert made == tmp_path / "data" / "cifar10" / "3.0.2"
  for split, batches in (("train", rows[:5]), ("test", rows[5:])):
    examples = {x["id"]: x for x in prepared.source("cifar10", split, str(tmp_path / "data"))}
    expected = batches.reshape(-1, 3073)
    assert len(examples) == len(expected)
    for i, row in enumerate(expected):
      example = examples[f"{split}_{i:05d}".encode()]
      assert example["label"] == row[0]
      np.testing.assert_array_equal(example["image"].transpose(2, 0, 1).ravel(), row[1:])
  assert (made / "label.labels.txt").read_text().split()[:2] == ["airplane", "automobile"]


def test_a_second_run_makes_the_same_bytes_and_a_third_nothing(cifar10, tmp_path):
  archive = cifar10[2]
  one = _prepare_cifar10(tmp_path, archive, "one")
  two = _prepare_cifar10(tmp_path, archive, "two")
  assert _bytes(one) == _bytes(two)
  (tmp_path / "manual" / archive.name).unlink()
  assert _prepare_cifar10(tmp_path, archive, "one") == one


def test_members_on_disk_serve_as_well(cifar10, tmp_path):
  _, members, archive = cifar10
  from_archive = _prepare_cifar10(tmp_path, archive, "one")
  (tmp_path / "manual" / archive.name).unlink()
  (tmp_path / "manual" / "unpacked").mkdir()
  for name, content in members.items():
    (tmp_path / "manual" / "unpacked" / name).write_bytes(content)
  assert _bytes(_prepare_cifar10(tmp_path, archive, "two")) == _bytes(from_archive)
  (tmp_path / "manual" / "unpacked" / "data_batch_3.bin").unlink()
  with pytest.raises(PrepareError, match=r"has data_batch_1.bin, but not data_batch_3.bin"):
    _prepare_cifar10(tmp_path, archive, "three")


def test_a_run_that_breaks_leaves_nothing_and_can_be_repeated(cifar10, tmp_path, monkeypatch):
  archive = cifar10[2]
  expected = _bytes(_prepare_cifar10(tmp_path, archive, "whole"))
  monkeypatch.setattr(archives, "members", _breaking(archives.members))
  with pytest.raises(KeyboardInterrupt):
    _prepare_cifar10(tmp_path, archive)
  assert list((tmp_path / "data").iterdir()) == []
  monkeypatch.undo()
  # A run that was killed could not clean up.
  half = tmp_path / "data" / "cifar10" / "incomplete.ABC123_3.0.2"
  half.mkdir(parents=True)
  (half / "dataset_info.json").write_text("{")
  with pytest.raises(FileNotFoundError, match="cifar10 is not in"):
    data.IMAGES["cifar10"](str(tmp_path / "data"))
  assert _bytes(_prepare_cifar10(tmp_path, archive)) == expected
  assert not half.exists()


def _breaking(members):
  """The contents, the third of which interrupts who reads it."""

  class Breaking(dict):
    def __getitem__(self, name):
      if name == "data_batch_3.bin":
        raise KeyboardInterrupt
      return super().__getitem__(name)

  return lambda *args: Breaking(members(*args))


def test_two_runs_at_once_are_refused(cifar10, tmp_path):
  archive = cifar10[2]

  def make():
    _prepare_cifar10(tmp_path, archive)

  (tmp_path / "data").mkdir()
  with pytest.raises(PrepareError, match="Another run is preparing a data set"):
    prepare.prepare(make, "ptb", tmp_path / "data")


def test_damaged_archives_are_refused(cifar10, tmp_path):
  _, members, archive = cifar10
  path = tmp_path / "manual" / archive.name
  content = path.read_bytes()
  path.write_bytes(content[:-9])
  with pytest.raises(PrepareError, match=rf"is truncated: it has {len(content) - 9:,} of"):
    _prepare_cifar10(tmp_path, archive)
  path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(PrepareError, match=r"has the wrong checksum: sha256 [0-9a-f]{64}, expected"):
    _prepare_cifar10(tmp_path, archive)
  path.write_bytes(content + b"\0")
  with pytest.raises(PrepareError, match="has the wrong size"):
    _prepare_cifar10(tmp_path, archive)
  # Without a checksum of the archive its own format and the members' checksums show it.
  unknown = Archive(archive.url, archive.members)
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(PrepareError, match="is truncated or damaged"):
    _prepare_cifar10(tmp_path, unknown)
  wrong = members | {"data_batch_2.bin": bytes(3 * 3073)}
  path.write_bytes(_tar(wrong, "w:gz"))
  with pytest.raises(PrepareError, match=r"data_batch_2.bin in .* has the wrong checksum"):
    _prepare_cifar10(tmp_path, unknown)
  del wrong["data_batch_2.bin"]
  path.write_bytes(_tar(wrong, "w:gz"))
  with pytest.raises(PrepareError, match=r"has no data_batch_2.bin"):
    _prepare_cifar10(tmp_path, unknown)
  assert not (tmp_path / "data" / "cifar10").exists()


def test_downloads(cifar10, tmp_path):
  archive = cifar10[2]
  source = tmp_path / "manual" / archive.name
  path = tmp_path / "downloads" / archive.name
  archives.download(source.as_uri(), path, archive.file)
  assert path.read_bytes() == source.read_bytes()
  path.unlink()
  with pytest.raises(PrepareError, match="wrong checksum"):
    archives.download(source.as_uri(), path, File(archive.name, source.stat().st_size, "0" * 64))
  with pytest.raises(PrepareError, match=r"can't be downloaded .* name it with --manual_dir=DIR"):
    archives.download(archive.url, path, archive.file)
  assert list(path.parent.iterdir()) == []


def test_an_archive_that_was_downloaded_is_used_again(cifar10, tmp_path):
  _, members, archive = cifar10
  (tmp_path / "downloads").mkdir()
  (tmp_path / "manual" / archive.name).rename(tmp_path / "downloads" / archive.name)
  assert archives.members(archive, None, tmp_path / "downloads") == members


def test_ptb_keeps_the_order_of_its_sentences(tmp_path):
  texts = {
    "ptb.train.txt": b" the cat sat \n the <unk> sat on N mats \n",
    "ptb.valid.txt": b" the mats \n",
    "ptb.test.txt": b" cat on cat \n",
  }
  content, archive = _archive(texts, "simple-examples/data", "simple-examples.tgz")
  (tmp_path / archive.name).write_bytes(content)
  where = tmp_path / "data"
  prepare.prepare(lambda: prepare.ptb(where, tmp_path, archive), "ptb", where)
  text = data.TEXTS["ptb"](str(where))
  words = lambda part: " ".join(text.vocabulary[i] for i in part)
  assert words(text.train) == "the cat sat <eos> the <unk> sat on N mats <eos>"
  assert words(text.valid) == "the mats <eos>"
  assert words(text.test) == "cat on cat <eos>"
  assert text.vocabulary[:3] == ("<eos>", "sat", "the")


def test_tiny_shakespeare_is_cut_as_usual_from_a_file_or_a_compressed_one(tmp_path):
  content = "".join(chr(97 + i % 26) for i in range(200)).encode()
  archive = Archive("http://localhost:1/input.txt", (_file("input.txt", content),))
  (tmp_path / "plain").mkdir()
  (tmp_path / "plain" / "input.txt").write_bytes(content)
  (tmp_path / "small").mkdir()
  (tmp_path / "small" / "input.txt.xz").write_bytes(lzma.compress(content))
  made = []
  for name in ("plain", "small"):
    where = tmp_path / f"data_{name}"
    make = lambda name=name, where=where: prepare.tiny_shakespeare(where, tmp_path / name, archive)
    made.append(prepare.prepare(make, "tiny_shakespeare", where))
  assert _bytes(made[0]) == _bytes(made[1])
  text = data.TEXTS["tiny_shakespeare"](str(tmp_path / "data_plain"))
  assert [len(x) for x in (text.train, text.valid, text.test)] == [180, 10, 10]
  assert "".join(text.vocabulary[i] for i in text.valid) == content[180:190].decode()
  (tmp_path / "small" / "input.txt.xz").write_bytes(lzma.compress(content)[:-8])
  with pytest.raises(PrepareError, match=r"input.txt.xz is truncated or damaged"):
    prepare.tiny_shakespeare(tmp_path / "data", tmp_path / "small", archive)
  (tmp_path / "data").mkdir()
  with pytest.raises(PrepareError, match=r"data has no input.txt\.$"):
    prepare.tiny_shakespeare(tmp_path / "data", tmp_path / "data", archive)


def _photograph(shade, kind="JPEG", mode="RGB"):
  file = io.BytesIO()
  Image.new("RGB", (20, 30), (shade,) * 3).convert(mode).save(file, kind)
  return file.getvalue()


@pytest.fixture
def imagenet(tmp_path):
  """Both tar files in small, in ``tmp_path``, and what is known about them."""
  classes = {
    "n01440764.tar": {
      "n01440764_1.JPEG": _photograph(10),
      "n01440764_2.JPEG": _photograph(50, mode="CMYK"),
    },
    "n15075141.tar": {"n15075141_7.JPEG": _photograph(90, kind="PNG")},
  }
  tars = {
    "train": ("ILSVRC2012_img_train.tar", _tar({n: _tar(c) for n, c in classes.items()})),
    "validation": (
      "ILSVRC2012_img_val.tar",
      _tar({f"ILSVRC2012_val_0000000{i}.JPEG": _photograph(20 * i) for i in (3, 1, 2)}),
    ),
  }
  for name, content in tars.values():
    (tmp_path / name).write_bytes(content)
  return {split: _file(*tar) for split, tar in tars.items()}


def test_imagenet_is_read_from_the_usual_tar_files(imagenet, tmp_path):
  where = tmp_path / "data"
  prepare.prepare(lambda: prepare.imagenet(where, tmp_path, imagenet), "imagenet2012", where)
  images = data.IMAGES["imagenet2012"](str(where))
  train = prepared.source("imagenet2012", "train", str(where))
  found = {x["file_name"].decode(): (int(x["label"]), int(x["image"].mean())) for x in train}
  assert {name: label for name, (label, _) in found.items()} == {
    "n01440764_1.JPEG": 0,
    "n01440764_2.JPEG": 0,
    "n15075141_7.JPEG": 999,
  }
  for name, shade in (("0764_1", 10), ("0764_2", 50), ("5141_7", 90)):
    matching = [mean for file, (_, mean) in found.items() if f"{name}." in file]
    assert all(abs(mean - shade) < 4 for mean in matching)
  # The official order of the validation labels starts with these three.
  batch = images.test_batch(np.arange(3))
  shades = batch["image"][:, 100, 100, 0].astype(int)
  labels = {
    round(shade / 20): int(label) for shade, label in zip(shades, batch["label"], strict=True)
  }
  assert labels == {1: 65, 2: 970, 3: 230}


def test_imagenet_without_its_tar_files(imagenet, tmp_path):
  with pytest.raises(PrepareError, match=r"Get ILSVRC2012_img_train.tar and .*--manual_dir=DIR"):
    prepare.imagenet(tmp_path / "data", None, imagenet)
  (tmp_path / "ILSVRC2012_img_val.tar").unlink()
  with pytest.raises(PrepareError, match=r"has no ILSVRC2012_img_val.tar"):
    prepare.imagenet(tmp_path / "data", tmp_path, imagenet)


def _main(*arguments, **options):
  return subprocess.run(
    [sys.executable, "-m", "data.prepare", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "has neither cifar-10-binary.tar.gz nor data_batch_1.bin"),
    (b"short", "is truncated: it has 5 of 170,052,171 bytes"),
  ],
)
def test_command_line_gives_one_clear_line(tmp_path, content, message):
  if content is not None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content)
  run = _main("cifar10", f"--data_dir={tmp_path / 'data'}", f"--manual_dir={tmp_path}")
  assert run.returncode == 1
  (line,) = run.stderr.strip().splitlines()
  assert line.startswith("error: ")
  assert message in line


def test_what_a_full_disk_says(tmp_path):
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert prepare.explain(full, tmp_path) == f"There is no space left on the disk of {tmp_path}."
  # Writers of records say it in their own way.
  other = RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; Failed to close")
  assert prepare.explain(other, tmp_path) == prepare.explain(full, tmp_path)
  assert prepare.explain(RuntimeError("a bug"), tmp_path) is None


def test_a_real_full_disk(tmp_path):
  """In a file system of its own that holds less than Penn Treebank."""
  where = os.environ.get("RTOPK_JAX_PTB")
  if not where:
    pytest.skip(
      "RTOPK_JAX_PTB does not name a folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt"
    )
  script = (
    f"mount -t tmpfs -o size=3m tmpfs {tmp_path} && "
    f"{sys.executable} -m data.prepare ptb --data_dir={tmp_path} --manual_dir={where}; "
    f"code=$?; ls -A {tmp_path}; exit $code"
  )
  run = subprocess.run(
    ["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
  )
  if "unshare failed" in run.stderr or "mount: " in run.stderr:
    pytest.skip("this system lets nobody mount a file system of their own")
  assert run.returncode == 1
  assert run.stderr.strip().endswith(f"error: There is no space left on the disk of {tmp_path}.")
  assert "ptb" not in run.stdout.splitlines()  # nothing in the folder


def test_real_ptb(tmp_path):
  where = os.environ.get("RTOPK_JAX_PTB")
  if not where:
    pytest.skip(
      "RTOPK_JAX_PTB does not name a folder with ptb.train.txt, ptb.valid.txt, ptb.test.txt"
    )
  run = _main("ptb", f"--data_dir={tmp_path}", f"--manual_dir={where}")
  assert run.returncode == 0, run.stderr
  text = data.TEXTS["ptb"](str(tmp_path))
  assert (len(text.train), len(text.valid), len(text.test)) == (929_589, 73_760, 82_430)
  assert len(text.vocabulary) == 10_000
  assert text.vocabulary[:4] == ("the", "<unk>", "<eos>", "N")


def test_termination_leaves_nothing(tmp_path):
  """SIGTERM in the middle of making CIFAR-10's size of data."""
  code = (
    "import os, signal, sys\n"
    "from data import archives, prepare\n"
    "class Files(dict):\n"
    "  def __missing__(self, name):\n"
    "    os.kill(os.getpid(), signal.SIGTERM)\n"
    "    return bytes(3073)\n"
    "archives.members = lambda *args: Files()\n"
    f"sys.exit(prepare.main(['cifar10', '--data_dir={tmp_path}']))\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert run.returncode == 128 + signal.SIGTERM, run.stderr
  assert list(tmp_path.iterdir()) == []
