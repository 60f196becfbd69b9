"""TensorFlow Datasets builders that make their examples without TensorFlow.

Images are handed over as the bytes of PNG or JPEG files, which Pillow makes where the original has none.
What is made has the names, versions and features of the stock data sets, so that everything that reads
those reads these.
"""

import io
import pathlib
import tarfile
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data import archives

Examples = Iterator[tuple[Any, dict[str, Any]]]


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder of files that are there already.

  Args:
    files: what the examples are made of, by name.
    data_dir: where data sets are kept.
  """

  def __init__(self, files: Mapping[str, Any], data_dir: pathlib.Path):
    self.files = files
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _make_download_manager(self, *args: Any, **options: Any) -> Any:
    """Nothing is downloaded here, and no folder made for it."""
    return types.SimpleNamespace(downloaded_size=0)


CIFAR10_CLASSES = [
  "airplane",
  "automobile",
  "bird",
  "cat",
  "deer",
  "dog",
  "frog",
  "horse",
  "ship",
  "truck",
]


class Cifar10(_Builder, tfds.image_classification.Cifar10, skip_registration=True):
  """CIFAR-10, of the contents of its binary batches."""

  name = "cifar10"

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    features: Any = self.info.features
    features["label"].names = CIFAR10_CLASSES
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return {
      "train": self._generate_examples("train", train),
      "test": self._generate_examples("test", ["test_batch.bin"]),
    }

  def _generate_examples(self, split: str, batches: list[str]) -> Examples:
    number = 0
    for batch in batches:
      # One byte of label, then 32×32 pixels of each colour.
      for row in np.frombuffer(self.files[batch], np.uint8).reshape(-1, 1 + 3 * 32 * 32):
        pixels = row[1:].reshape(3, 32, 32).transpose(1, 2, 0)
        png = _encoded(Image.fromarray(pixels), "PNG")
        yield number, {"id": f"{split}_{number:05d}", "image": png, "label": int(row[0])}
        number += 1


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


class Imagenet2012(_Builder, skip_registration=True):
  """ImageNet, of the tar files of its training and validation set, by their path."""

  name = "imagenet2012"
  VERSION = tfds.core.Version("5.1.0")

  def _info(self) -> tfds.core.DatasetInfo:
    labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    return tfds.core.DatasetInfo(
      builder=self,
      description="The photographs of the ImageNet Large Scale Visual Recognition Challenge 2012.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(encoding_format="jpeg"),
          "label": tfds.features.ClassLabel(names_file=labels),
          "file_name": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://image-net.org/",
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    return {
      split: self._generate_examples(pathlib.Path(path), split)
      for split, path in self.files.items()
    }

  def _generate_examples(self, path: pathlib.Path, split: str) -> Examples:
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    with archives.reading(path), path.open("rb") as stream:
      for name, content in _tar_files(stream):
        if split == "validation":
          # ILSVRC2012_val_00000001.JPEG has the first label.
          number = int(pathlib.Path(name).stem.rsplit("_", 1)[-1])
          yield name, self._example(name, content, labels[number - 1])
        else:
          # A tar file in the tar file for each class, which is named after it.
          for inner, image in _tar_files(io.BytesIO(content)):
            yield inner, self._example(inner, image, pathlib.Path(name).stem)

  def _example(self, name: str, content: bytes, label: str) -> dict[str, Any]:
    with Image.open(io.BytesIO(content)) as image:
      # One PNG and some files for printers are among them.
      if image.format != "JPEG" or image.mode == "CMYK":
        content = _encoded(image.convert("RGB"), "JPEG", quality=100)
    return {"file_name": name, "image": content, "label": label}


def _tar_files(stream: Any) -> Iterator[tuple[str, bytes]]:
  with tarfile.open(fileobj=stream, mode="r|") as tar:
    for entry in tar:
      file = tar.extractfile(entry)
      if file is not None:
        yield pathlib.PurePosixPath(entry.name).name, file.read()


class Ptb(_Builder, skip_registration=True):
  """Penn Treebank in Mikolov's version, a sentence an example, in the order of the text."""

  name = "ptb"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        "The Wall Street Journal part of the Penn Treebank as Mikolov et al. (2010) prepared it for "
        "language modelling: 10,000 different words, others being <unk> and numbers N."
      ),
      features=tfds.features.FeaturesDict({"sentence": tfds.features.Text()}),
      homepage="http://www.fit.vutbr.cz/~imikolov/rnnlm/",
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    parts = {"train": "train", "validation": "valid", "test": "test"}
    return {split: self._generate_examples(f"ptb.{part}.txt") for split, part in parts.items()}

  def _generate_examples(self, name: str) -> Examples:
    for number, line in enumerate(self.files[name].decode().splitlines()):
      yield number, {"sentence": line.strip()}


class TinyShakespeare(_Builder, skip_registration=True):
  """Plays of Shakespeare, each split one example: nine tenths for training, and a twentieth each for the rest."""

  name = "tiny_shakespeare"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="40,000 lines of several plays, as Karpathy put them together (2015) to model characters.",
      features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
      homepage="https://github.com/karpathy/char-rnn/blob/master/data/tinyshakespeare/input.txt",
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Examples]:
    (content,) = self.files.values()
    text = content.decode()
    end = int(0.9 * len(text))
    middle = end + int(0.5 * (len(text) - end))
    parts = {"train": text[:end], "validation": text[end:middle], "test": text[middle:]}
    return {split: self._generate_examples(split, part) for split, part in parts.items()}

  def _generate_examples(self, split: str, text: str) -> Examples:
    yield split, {"text": text}
