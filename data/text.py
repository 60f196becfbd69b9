"""Texts as numbers: Penn Treebank, and a corpus that Python itself carries."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from data import prepared

END, UNKNOWN = "<eos>", "<unk>"


@dataclasses.dataclass(frozen=True)
class Text:
  """A corpus for language modelling.

  Attributes:
    train: the words of the training text in their order, as numbers of the vocabulary, shape (n,), int32.
    valid: likewise of the text that settings are chosen by.
    test: likewise of the text that is reported on.
    vocabulary: the words, the most frequent first.
  """

  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray
  vocabulary: tuple[str, ...]

  def first(self, count: int | None) -> "Text":
    """The corpus with the first words of its training text alone; None: all."""
    return dataclasses.replace(self, train=self.train[:count])


def encode(
  train: Iterable[Sequence[str]],
  valid: Iterable[Sequence[str]],
  test: Iterable[Sequence[str]],
  size: int | None = None,
) -> Text:
  """Numbers the words of a corpus, each sentence followed by ``<eos>``.

  Args:
    train: sentences, whose words make the vocabulary.
    valid: sentences.
    test: sentences.
    size: of the vocabulary; what is rarer becomes ``<unk>``. None: every word of ``train``.

  Returns:
    The corpus.

  Raises:
    ValueError: for a word that is not in the vocabulary, when that has no ``<unk>``.
  """
  words = {
    name: list(itertools.chain.from_iterable((*sentence, END) for sentence in sentences))
    for name, sentences in (("train", train), ("valid", valid), ("test", test))
  }
  counts = collections.Counter(words["train"])
  known = sorted(counts, key=lambda word: (-counts[word], word))
  if size is not None:
    frequent = [word for word in known if word != UNKNOWN][: size - 1]
    known = [*frequent, UNKNOWN]
  numbers = {word: i for i, word in enumerate(known)}
  unknown = numbers.get(UNKNOWN)

  def encoded(name: str) -> np.ndarray:
    found = [numbers.get(word, unknown) for word in words[name]]
    if None in found:
      word = words[name][found.index(None)]
      raise ValueError(f"{word!r} of {name} is not in train, which has no {UNKNOWN}.")
    return np.array(found, np.int32)

  return Text(encoded("train"), encoded("valid"), encoded("test"), tuple(known))


def ptb(data_dir: str | None = None) -> Text:
  """Penn Treebank in Mikolov's version: 929,589, 73,760 and 82,430 words, 10,000 of them different."""

  def sentences(split: str) -> list[list[str]]:
    source = prepared.source("ptb", split, data_dir)
    return [example["sentence"].decode().split() for example in source]

  return encode(sentences("train"), sentences("validation"), sentences("test"))


def python_docs(data_dir: str | None = None) -> Text:
  """The language reference that Python carries for ``help()``: about 117,000 words, 1,000 different.

  Of ten topics one is for validation and one for testing. The text is that of the running Python, so that
  figures of different versions differ a little.
  """
  del data_dir
  from pydoc_data import topics

  parts: dict[str, list[list[str]]] = {"train": [], "valid": [], "test": []}
  # Dealt by size, so that each part has long and short ones.
  for i, topic in enumerate(sorted(topics.topics.values(), key=lambda x: (len(x), x))):
    part = {2: "valid", 3: "test"}.get(i % 10, "train")
    for paragraph in re.split(r"\n\s*\n", topic.lower()):
      words = re.findall(r"[a-z_]+|[0-9]+|[^\sa-z0-9_]", paragraph)
      if words:
        parts[part].append(["N" if word.isdigit() else word for word in words])
  return encode(**parts, size=1000)


TEXTS = {"ptb": ptb, "python_docs": python_docs}
