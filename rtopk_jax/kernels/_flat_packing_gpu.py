"""Two thresholds of every group as bits, on GPUs: a thread for each word, and as few kernels as possible."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rtopk_jax.kernels._flat_packing import PieceReader, count
from rtopk_jax.kernels._gpu_loops import in_turn
from rtopk_jax.kernels._statistics import Statistics, Tally, sum_and_max

# Parts of a long piece that are read one after another, and how long a piece is for that.
_PARTS, _LONG = 4, 1 << 12


def pack_by_threads(
  pieces: Sequence[PieceReader], packed: jax.Array, groups: int
) -> tuple[jax.Array, Tally]:
  """As ``_flat_packing.pack_by_rows``; what is found of pieces is added up for all of them at once."""
  statistics_of_parts, rows, counts = [], [], []
  for piece in pieces:
    place, arrays = piece.place, piece.packing.vector.arrays[piece.number]
    # What is found of a long vector, as long as its words each, is added up part by part.
    is_alone = len(pieces) == len(arrays) == len(place.runs) == 1
    parts = _PARTS if is_alone and place.size >= _LONG else 1
    for begin, length in _spans(place.size, piece.word, parts):
      # One after another, so that they have the same memory.
      part = piece.after(statistics_of_parts[-1]) if begin and parts > 1 else piece
      words, *found = _words(part, begin, length)
      packed = piece.put(packed, words, begin)
      if parts > 1:
        statistics_of_parts.append(Statistics.of_rows([found]))
      else:
        rows.append(found)
    if groups > 1:
      first = place.first // piece.word
      counts.append(piece.count(packed[first : first + -(-place.size // piece.word)]))
  if rows:
    statistics_of_parts.append(Statistics.of_rows(rows))
  counts = counts or [count(packed, pieces[0].packing.width)]
  in_low, in_high = (jnp.concatenate(x) for x in zip(*counts, strict=True))
  return packed, Tally(functools.reduce(Statistics.with_, statistics_of_parts), in_low, in_high)


def _spans(size: int, word: int, parts: int) -> list[tuple[int, int]]:
  """Beginnings and lengths of equal parts of whole words, of the words left over and of the entries left over."""
  part = size // (word * parts) * word
  ends = [part * (i + 1) for i in range(parts)] + [size // word * word, size]
  return [(begin, end - begin) for begin, end in itertools.pairwise([0, *ends]) if end > begin]


def _words(piece: PieceReader, begin: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The words of ``length`` entries from entry ``begin`` on; of each its sum of squares and its largest key."""
  word = min(piece.word, length)
  coding = piece.coding(begin, length)
  begins = piece.place.first + begin + word * lax.iota(jnp.int32, length // word)[:, None]
  coding = coding.part(0, 1)
  # Column by column, shape (words, 1): a GPU has a thread for each word, and reduces short rows slowly.
  column = functools.partial(piece.packing.vector.read_column, piece.number, begin, length, word)
  codes = lambda i: coding.codes(column(i), begins, i)
  words, squares, keys = in_turn(sum_and_max, codes, word)
  return words, squares, keys
