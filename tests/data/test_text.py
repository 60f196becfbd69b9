"""Vocabularies and corpora against what is known about them."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

import data
from data import text


def test_words_are_numbered_by_frequency_then_name():
  train = [["b", "a", "b"], ["c", "b"]]
  corpus = text.encode(train, valid=[["a"]], test=[["c", "c"]])
  assert corpus.vocabulary == ("b", "<eos>", "a", "c")
  np.testing.assert_array_equal(corpus.train, [0, 2, 0, 1, 3, 0, 1])
  np.testing.assert_array_equal(corpus.valid, [2, 1])
  np.testing.assert_array_equal(corpus.test, [3, 3, 1])
  assert corpus.train.dtype == np.int32


def test_rare_words_become_unknown():
  train = [["b", "a", "b"], ["c", "b"]]
  corpus = text.encode(train, valid=[["z"]], test=[["b"]], size=3)
  assert corpus.vocabulary == ("b", "<eos>", "<unk>")
  np.testing.assert_array_equal(corpus.train, [0, 2, 0, 1, 2, 0, 1])
  np.testing.assert_array_equal(corpus.valid, [2, 1])


def test_an_unknown_word_is_refused_where_there_is_no_unk():
  with pytest.raises(ValueError, match="'z' of valid is not in train, which has no <unk>"):
    text.encode([["a"]], valid=[["a", "z"]], test=[])


def test_python_s_own_docs():
  corpus = data.TEXTS["python_docs"]()
  assert len(corpus.vocabulary) == 1000
  assert {"the", "python", "<eos>", "<unk>", "N"} <= set(corpus.vocabulary)
  for words, least in ((corpus.train, 80_000), (corpus.valid, 5_000), (corpus.test, 5_000)):
    assert len(words) > least
    assert words.min() >= 0
    assert words.max() < 1000
    unknown = np.mean(words == corpus.vocabulary.index("<unk>"))
    assert 0.01 < unknown < 0.2


def test_characters_are_numbered_by_frequency_then_code():
  corpus = text.encode_characters("abba b", "ab", "  ")
  assert corpus.vocabulary == ("b", "a", " ")
  assert corpus.unit == "characters"
  np.testing.assert_array_equal(corpus.train, [1, 0, 0, 1, 2, 0])
  np.testing.assert_array_equal(corpus.test, [2, 2])
  with pytest.raises(ValueError, match="'c' of test is not in train"):
    text.encode_characters("ab", "a", "c")


def test_characters_of_python_s_own_docs():
  corpus = data.TEXTS["python_docs_characters"](None)
  assert {"e", " ", "\n", "_"} <= set(corpus.vocabulary)
  assert all(len(x) == 1 for x in corpus.vocabulary)
  assert len(corpus.train) > 300_000
  words = "".join(corpus.vocabulary[i] for i in corpus.valid[:10_000])
  assert " the " in words


def _loaded(name, where):
  try:
    return data.TEXTS[name](where)
  except FileNotFoundError as missing:
    pytest.skip(" ".join(str(missing).split()))


def test_real_shakespeare(real):
  corpus = _loaded("tiny_shakespeare", real)
  assert [len(x) for x in (corpus.train, corpus.valid, corpus.test)] == [1_003_854, 55_770, 55_770]
  assert len(corpus.vocabulary) == 65
  spelt = "".join(corpus.vocabulary[i] for i in corpus.train[:14])
  assert spelt == "First Citizen:"
  # What others have for this data set reads it as well.
  stock = tfds.builder("tiny_shakespeare", data_dir=real).as_data_source("validation")
  assert len(stock[0]["text"]) == 55_770
  words = _loaded("tiny_shakespeare_words", real)
  assert len(words.vocabulary) == 5000
  assert " ".join(words.vocabulary[i] for i in words.train[:4]) == "first citizen : <eos>"


def test_real_ptb(real):
  corpus = _loaded("ptb", real)
  assert [len(x) for x in (corpus.train, corpus.valid, corpus.test)] == [929_589, 73_760, 82_430]
  assert len(corpus.vocabulary) == 10_000
  assert len(_loaded("ptb_characters", real).vocabulary) == 50
