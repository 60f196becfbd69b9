"""Makes the data sets that are trained on, once, from the official files.

    python -m data.prepare cifar10 --data_dir=DATA
    python -m data.prepare ptb --data_dir=DATA --manual_dir=FOLDER
    python -m data.prepare tiny_shakespeare --data_dir=DATA --manual_dir=FOLDER
    python -m data.prepare imagenet --data_dir=DATA --manual_dir=TARS

CIFAR-10, Penn Treebank and Tiny Shakespeare are downloaded, unless ``--manual_dir`` names a folder that has
the official archive or what is in it; single files may be compressed, as ``NAME.xz``. ImageNet's two tar files have to be there: they are given out on request at
https://image-net.org. Every file is compared with its checksum. A data set appears when it is complete,
and not before: what is interrupted is started again by the same command.
"""

import argparse
import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data import archives, prepared
from data.archives import Archive, File, PrepareError

CIFAR10 = Archive(
  url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
  file=File(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
  ),
  members=(
    File(
      "data_batch_1.bin",
      30_730_000,
      "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    ),
    File(
      "data_batch_2.bin",
      30_730_000,
      "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    ),
    File(
      "data_batch_3.bin",
      30_730_000,
      "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    ),
    File(
      "data_batch_4.bin",
      30_730_000,
      "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    ),
    File(
      "data_batch_5.bin",
      30_730_000,
      "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    ),
    File(
      "test_batch.bin",
      30_730_000,
      "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    ),
  ),
)
PTB = Archive(
  url="http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz",
  members=(
    File(
      "ptb.train.txt",
      5_101_618,
      "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    ),
    File(
      "ptb.valid.txt",
      399_782,
      "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    ),
    File(
      "ptb.test.txt",
      449_945,
      "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    ),
  ),
)
TINY_SHAKESPEARE = Archive(
  url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
  members=(
    File(
      "input.txt",
      1_115_394,
      "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
  ),
)
IMAGENET = {
  "train": File(
    "ILSVRC2012_img_train.tar",
    147_897_477_120,
    "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
  ),
  "validation": File(
    "ILSVRC2012_img_val.tar",
    6_744_924_160,
    "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
  ),
}


def _tars(manual_dir: pathlib.Path | None, files: Mapping[str, File]) -> dict[str, pathlib.Path]:
  if manual_dir is None:
    raise PrepareError(
      "ImageNet can't be downloaded by a program. Get ILSVRC2012_img_train.tar and "
      "ILSVRC2012_img_val.tar at https://image-net.org and name their folder with --manual_dir=DIR."
    )
  for file in files.values():
    if not (manual_dir / file.name).exists():
      raise PrepareError(f"{manual_dir} has no {file.name}.")
  for file in files.values():
    archives.check(manual_dir / file.name, file)
  return {split: manual_dir / file.name for split, file in files.items()}


def cifar10(
  data_dir: pathlib.Path, manual_dir: pathlib.Path | None = None, archive: Archive = CIFAR10
) -> Any:
  """A builder of CIFAR-10.

  Args:
    data_dir: where data sets are kept.
    manual_dir: a folder that has the archive, or its members.
    archive: which one.

  Returns:
    The builder, whose files are there and checked.

  Raises:
    PrepareError: when they are not.
  """
  from data import builders

  return builders.Cifar10(archives.members(archive, manual_dir, data_dir / "downloads"), data_dir)


def ptb(
  data_dir: pathlib.Path, manual_dir: pathlib.Path | None = None, archive: Archive = PTB
) -> Any:
  """A builder of Penn Treebank; arguments, result and errors are those of ``cifar10``."""
  from data import builders

  return builders.Ptb(archives.members(archive, manual_dir, data_dir / "downloads"), data_dir)


def tiny_shakespeare(
  data_dir: pathlib.Path,
  manual_dir: pathlib.Path | None = None,
  archive: Archive = TINY_SHAKESPEARE,
) -> Any:
  """A builder of Tiny Shakespeare; arguments, result and errors are those of ``cifar10``."""
  from data import builders

  files = archives.members(archive, manual_dir, data_dir / "downloads")
  return builders.TinyShakespeare(files, data_dir)


def imagenet(
  data_dir: pathlib.Path,
  manual_dir: pathlib.Path | None = None,
  files: Mapping[str, File] = IMAGENET,
) -> Any:
  """A builder of ImageNet; ``manual_dir`` has both tar files, the rest is as for ``cifar10``."""
  from data import builders

  return builders.Imagenet2012(_tars(manual_dir, files), data_dir)


def prepare(make_builder: Callable[[], Any], name: str, data_dir: pathlib.Path) -> pathlib.Path:
  """Makes a data set, or finds it made.

  Args:
    make_builder: the builder, once its files are there.
    name: of the data set.
    data_dir: where data sets are kept.

  Returns:
    The folder of the data set.

  Raises:
    PrepareError: why it can't be made.
  """
  data_dir.mkdir(parents=True, exist_ok=True)
  with _alone(data_dir):
    if found := prepared.find(name, data_dir):
      return found
    # What a run that was killed has left.
    for half in (data_dir / name).glob("incomplete.*"):
      shutil.rmtree(half)
    try:
      builder = make_builder()
      builder.download_and_prepare()
    finally:
      with contextlib.suppress(OSError):
        (data_dir / name).rmdir()  # if nothing is in it
  return pathlib.Path(builder.data_dir)


@contextlib.contextmanager
def _alone(data_dir: pathlib.Path) -> Iterator[None]:
  """Holds a folder against other runs of this program, leaving no trace in it."""
  folder = os.open(data_dir, os.O_RDONLY)
  try:
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
  except BlockingIOError:
    raise PrepareError(f"Another run is preparing a data set in {data_dir}.") from None
  finally:
    os.close(folder)


DATASETS = {
  "cifar10": ("cifar10", cifar10),
  "imagenet": ("imagenet2012", imagenet),
  "ptb": ("ptb", ptb),
  "tiny_shakespeare": ("tiny_shakespeare", tiny_shakespeare),
}


def main(arguments: list[str] | None = None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m data.prepare", description="Makes a data set from the official files."
  )
  parser.add_argument("dataset", choices=DATASETS, help="which one")
  parser.add_argument(
    "--data_dir",
    type=pathlib.Path,
    default=prepared.DEFAULT_DIR,
    help="the folder of data sets that it is put into; %(default)s",
  )
  parser.add_argument("--manual_dir", type=pathlib.Path, help="a folder that has the files already")
  options = parser.parse_args(arguments)
  data_dir = options.data_dir.expanduser()
  manual_dir = options.manual_dir and options.manual_dir.expanduser()
  # Half-made data sets are removed on the way out, which a plain SIGTERM would not allow.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  status, line = _outcome(options.dataset, data_dir, manual_dir)
  print(line, file=sys.stderr if status else sys.stdout)
  return status


def _outcome(
  dataset: str, data_dir: pathlib.Path, manual_dir: pathlib.Path | None
) -> tuple[int, str]:
  """Exit status and last line; by then the bars of what was interrupted are gone with their frames."""
  name, make = DATASETS[dataset]
  try:
    made = prepare(lambda: make(data_dir, manual_dir), name, data_dir)
  except KeyboardInterrupt:
    return 128 + signal.SIGINT, "error: interrupted; the same command starts again."
  except (PrepareError, OSError, RuntimeError) as error:
    if (line := explain(error, data_dir)) is None:
      raise
    return 1, f"error: {line}"
  return 0, f"{name} is in {made}"


def explain(error: BaseException, data_dir: pathlib.Path) -> str | None:
  """What to tell of an error, or None for one that is not understood."""
  chain: list[BaseException] = []
  cause: BaseException | None = error
  while cause is not None:
    chain.append(cause)
    cause = cause.__cause__ or cause.__context__
  # Writers of records in other languages report a full disk in words alone.
  if any(os.strerror(errno.ENOSPC) in str(x) for x in chain):
    return f"There is no space left on the disk of {data_dir}."
  for x in reversed(chain):
    if isinstance(x, PrepareError):
      return str(x)
  return str(error) if isinstance(error, OSError) else None


if __name__ == "__main__":
  sys.exit(main())
