"""Texts as numbers, of words or of characters: Penn Treebank, Shakespeare, and what Python itself carries."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

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
    unit: what they are: "words" or "characters".
  """

  train: np.ndarray
  valid: np.ndarray
  test: np.ndarray
  vocabulary: tuple[str, ...]
  unit: str = "words"

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
  return _numbered(words, known, "words")


def encode_characters(train: str, valid: str, test: str) -> Text:
  """Numbers the characters of a corpus.

  Args:
    train: a text, whose characters make the vocabulary.
    valid: another.
    test: another.

  Returns:
    The corpus.

  Raises:
    ValueError: for a character that is not in ``train``.
  """
  counts = collections.Counter(train)
  known = sorted(counts, key=lambda character: (-counts[character], character))
  return _numbered({"train": train, "valid": valid, "test": test}, known, "characters")


def _numbered(words: Mapping[str, Sequence[str]], known: Sequence[str], unit: str) -> Text:
  numbers = {word: i for i, word in enumerate(known)}
  unknown = numbers.get(UNKNOWN)

  def encoded(name: str) -> np.ndarray:
    found = [numbers.get(word, unknown) for word in words[name]]
    if None in found:
      word = words[name][found.index(None)]
      raise ValueError(f"{word!r} of {name} is not in train, which has no {UNKNOWN}.")
    return np.array(found, np.int32)

  return Text(encoded("train"), encoded("valid"), encoded("test"), tuple(known), unit)


def _ptb(data_dir: str | None) -> list[list[str]]:
  """The sentences of each part."""
  sources = (prepared.source("ptb", x, data_dir) for x in ("train", "validation", "test"))
  return [[example["sentence"].decode() for example in source] for source in sources]


def ptb(data_dir: str | None = None) -> Text:
  """Penn Treebank in Mikolov's version: 929,589, 73,760 and 82,430 words, 10,000 of them different."""
  train, valid, test = ([x.split() for x in part] for part in _ptb(data_dir))
  return encode(train, valid, test)


def ptb_characters(data_dir: str | None = None) -> Text:
  """Its characters, 50 different, each sentence a line: what is no known word is spelt ``<unk>``."""
  return encode_characters(*("".join(f"{line}\n" for line in part) for part in _ptb(data_dir)))


def _shakespeare(data_dir: str | None) -> list[str]:
  """The text of each part."""
  sources = (
    prepared.source("tiny_shakespeare", x, data_dir) for x in ("train", "validation", "test")
  )
  return [source[0]["text"].decode() for source in sources]


def tiny_shakespeare(data_dir: str | None = None) -> Text:
  """Plays of Shakespeare: 1,003,854, 55,770 and 55,770 characters, 65 of them different."""
  return encode_characters(*_shakespeare(data_dir))


def tiny_shakespeare_words(data_dir: str | None = None) -> Text:
  """Its words and marks in lower case, the 5,000 most frequent; a line is a sentence."""
  split = re.compile(r"[a-z]+(?:'[a-z]+)?|[^\sa-z]").findall
  parts = _shakespeare(data_dir)
  train, valid, test = ([split(line) for line in x.lower().splitlines()] for x in parts)
  return encode(train, valid, test, size=5000)


def _python_docs() -> list[list[str]]:
  """The paragraphs of each part, in lower case."""
  from pydoc_data import topics

  parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
  # Dealt by size, so that each part has long and short ones.
  for i, topic in enumerate(sorted(topics.topics.values(), key=lambda x: (len(x), x))):
    part = {2: "valid", 3: "test"}.get(i % 10, "train")
    parts[part].extend(re.split(r"\n\s*\n", topic.lower()))
  return list(parts.values())


def python_docs(data_dir: str | None = None) -> Text:
  """The language reference that Python carries for ``help()``: about 117,000 words, 1,000 different.

  Of ten topics one is for validation and one for testing. The text is that of the running Python, so that
  figures of different versions differ a little.
  """
  del data_dir

  def sentences(paragraphs: list[str]) -> list[list[str]]:
    found = (re.findall(r"[a-z_]+|[0-9]+|[^\sa-z0-9_]", x) for x in paragraphs)
    return [["N" if word.isdigit() else word for word in words] for words in found if words]

  train, valid, test = map(sentences, _python_docs())
  return encode(train, valid, test, size=1000)


def python_docs_characters(data_dir: str | None = None) -> Text:
  """Its characters, in lower case and of ASCII alone."""
  del data_dir
  join = lambda paragraphs: "\n\n".join(paragraphs).encode("ascii", "ignore").decode()
  return encode_characters(*map(join, _python_docs()))


TEXTS: dict[str, Callable[[str | None], Text]] = {
  "ptb": ptb,
  "ptb_characters": ptb_characters,
  "python_docs": python_docs,
  "python_docs_characters": python_docs_characters,
  "tiny_shakespeare": tiny_shakespeare,
  "tiny_shakespeare_words": tiny_shakespeare_words,
}
