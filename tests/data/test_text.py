"""Vocabularies and corpora against what is known about them."""

import numpy as np
import pytest

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
