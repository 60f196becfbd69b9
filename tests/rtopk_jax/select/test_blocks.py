"""Selection within blocks, against a sort of each block in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from rtopk_jax.kernels import here
from rtopk_jax.select import _blocks
from rtopk_jax.select._keys import SORT_BELOW
from rtopk_jax.vector._vector import Run, Vector, aligned, places
from tests.rtopk_jax import harness, reference

# Whole blocks and a shorter one; fewer entries than a block; several leaves in one piece; several axes.
LEAVES = (((3, 100),), ((7,),), ((40,), (5, 9), (130,)), ((2, 64),))
# Pieces that are too long to be sorted.
LONG_LEAVES = (((420, 100),), ((7,),), ((30_040,), (5, 900), (9_130,)), ((2, 64),))
assert min(sum(map(math.prod, LONG_LEAVES[i])) for i in (0, 2)) > SORT_BELOW
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def special(size, seed, dtype=jnp.float32):
  """Ties, zeros of both signs, subnormals, infinities and all powers of two."""
  rng = np.random.default_rng(seed)
  tiny = float(jnp.finfo(dtype).smallest_subnormal)
  values = np.array([0.0, -0.0, tiny, -3 * tiny, 1.0, -1.0, np.inf, 0.5, -2.0])
  drawn = np.where(rng.random(size) < 0.6, rng.choice(values, size), rng.standard_normal(size))
  return np.asarray(drawn).astype(dtype)


def pieces(leaves, dtype, seed=0):
  """Arrays of pieces of several leaves each, filled up to whole words, and how they lie."""
  arrays, runs = [], []
  for i, shapes in enumerate(leaves):
    sizes = [math.prod(shape) for shape in shapes]
    if len(shapes) == 1:
      arrays.append(special(sizes[0], seed + i, dtype).reshape(shapes[0]))
      runs.append([Run(0, sizes[0], len(runs))])
      continue
    filled = [
      np.pad(special(x, seed + i + 10 * j, dtype), (0, aligned(x) - x)) for j, x in enumerate(sizes)
    ]
    begins = np.cumsum([0, *(x.size for x in filled)])[:-1]
    arrays.append(np.concatenate(filled))
    runs.append([Run(int(b), x, len(runs)) for b, x in zip(begins, sizes, strict=True)])
  return arrays, places([x.shape for x in arrays], runs)


def blocks_of(arrays, where, size):
  """Every block: where it begins, and its entries."""
  for array, place in zip(arrays, where, strict=True):
    for run in place.runs:
      for begin in range(run.begin, run.begin + run.size, size):
        end = min(begin + size, run.begin + run.size)
        yield place.first + begin, array.reshape(-1)[begin:end]


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _chosen(selector, arrays, where, size, key):
  vector = Vector(where, tuple((x,) for x in arrays), lambda x: x)
  key_of = lambda number: jax.random.fold_in(key, number)
  selection, blocks, scales = _blocks.select(selector, vector, size, key_of, 4)
  return selection.positions, selection.values, blocks.begins, scales


def chosen(selector, arrays, where, size, seed=0):
  return jax.tree.map(np.asarray, _chosen(selector, arrays, where, size, jax.random.key(seed)))


SELECTORS = (
  rtopk_jax.top_k(0.1),
  rtopk_jax.rtop_k(0.05, 4),
  rtopk_jax.rtop_k(0.02, 1.5, unbiased=True),
)


def _sorted_cases():
  """Every selector with a size and a dtype of its own; all with all in `make test-slow`."""
  for i, selector in enumerate(SELECTORS):
    for j, size in enumerate((2, 31, 64, 100)):
      for k, dtype in enumerate(DTYPES):
        marks = [] if j == i + 1 and k == i else pytest.mark.slow
        yield pytest.param("cpu", LEAVES, selector, size, dtype, marks=marks)


SEARCHED = [
  pytest.param("cpu", LONG_LEAVES, SELECTORS[0], 100, jnp.float16, marks=pytest.mark.slow),
  ("cpu", LONG_LEAVES, SELECTORS[1], 31, jnp.float32),
  pytest.param("gpu", LONG_LEAVES, SELECTORS[1], 100, jnp.float32, marks=pytest.mark.slow),
  pytest.param("tpu", LONG_LEAVES, SELECTORS[1], 100, jnp.float32, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
  ("platform", "leaves", "selector", "size", "dtype"),
  [*_sorted_cases(), *SEARCHED],
  indirect=["platform"],
)
def test_k_of_the_r_largest_of_every_block(platform, leaves, selector, size, dtype):
  arrays, where = pieces(leaves, dtype)
  positions, values, begins, scales = chosen(selector, arrays, where, size)
  assert np.all(np.diff(positions) > 0)
  start = 0
  for begin, entries in blocks_of(arrays, where, size):
    k, r = selector.counts(entries.size, 4)
    mine = positions[start : start + k] - begin
    assert set(mine) <= set(reference.largest(entries, r))
    np.testing.assert_array_equal(begins[start : start + k], begin)
    assert values[start : start + k].tobytes() == entries[mine].tobytes()
    if scales is not None:
      np.testing.assert_array_equal(scales[start : start + k], np.float32(r / k))
    start += k
  assert start == positions.size


@pytest.mark.parametrize(
  ("leaves", "selector"),
  [
    pytest.param(LEAVES, rtopk_jax.random_k(0.1), id="sorted", marks=pytest.mark.slow),
    pytest.param(LONG_LEAVES, rtopk_jax.random_k(0.1), id="searched"),
    pytest.param(LEAVES, rtopk_jax.top_k(1.0), id="all sorted"),
    pytest.param(LONG_LEAVES, rtopk_jax.top_k(1.0), id="all searched", marks=pytest.mark.slow),
  ],
)
def test_random_k_takes_so_many_of_every_block(selector, leaves):
  arrays, where = pieces(leaves, jnp.float32)
  positions, _, begins, _ = chosen(selector, arrays, where, 64)
  sizes = {begin: entries.size for begin, entries in blocks_of(arrays, where, 64)}
  assert np.all(np.diff(positions) > 0)
  found, times = np.unique(begins, return_counts=True)
  assert dict(zip(found.tolist(), times.tolist(), strict=True)) == {
    begin: selector.counts(size).k for begin, size in sizes.items()
  }
  within = positions - begins
  assert np.all((within >= 0) & (within < [sizes[x] for x in begins.tolist()]))


@pytest.mark.parametrize("kind", ["normal", "equal", "one large", "columns"])
def test_many_blocks_a_stretch_at_a_time(kind):
  """More rows than are counted together, the last chunk reaching back; also where most of a row is alike."""
  size, count = 256, 1500
  rng = np.random.default_rng(0)
  rows = rng.standard_normal((count, size)).astype(np.float32)
  if kind == "equal":
    rows = np.sign(rows)
  elif kind == "one large":
    rows = np.where(np.arange(size) == np.arange(count)[:, None] % size, 1e30, 0 * rows)
  elif kind == "columns":
    # All that is large stands in columns that are looked at as one.
    rows = rows * np.where(np.arange(size) % 64 == 5, 1e3, 1)
  rows = rows.astype(np.float32)
  where = places([rows.shape], [[Run(0, rows.size, 0)]])
  positions, *_ = chosen(rtopk_jax.top_k(0.03), [rows], where, size)
  order = np.stack([reference.largest(row, round(0.03 * size)) for row in rows])
  np.testing.assert_array_equal(positions, (order + size * np.arange(count)[:, None]).reshape(-1))


def test_blocks_of_more_entries_than_16_bits_count():
  """Many of their entries are equal, so that places decide, which are numbers of more than 16 bits."""
  size, k = 1 << 16, 6_554
  values = special(2 * size + 50_000, 0)
  where = places([values.shape], [[Run(0, values.size, 0)]])
  positions, *_ = chosen(rtopk_jax.top_k(0.1), [values], where, size)
  for i in range(2):
    block = values[i * size : (i + 1) * size]
    mine = positions[i * k : (i + 1) * k] - i * size
    np.testing.assert_array_equal(mine, reference.largest(block, k))


# Few blocks under many keys, and so many blocks that they are searched.
@pytest.mark.parametrize(("blocks", "times"), [(3, 6000), (SORT_BELOW // 10 + 100, 4)])
def test_draws_within_a_block_are_uniform(blocks, times):
  # 15 subsets of 2 of the 6 largest; the 0.999 quantile of chi-square with 14 degrees is 36.1.
  block = np.float32([9, -0.1, 8, 7, 0, -6, 5, 4, 0.3, 0.2])
  where = places([(10 * blocks,)], [[Run(0, 10 * blocks, 0)]])
  largest = {0, 2, 3, 5, 6, 7}
  vector = Vector(where, ((jnp.asarray(np.tile(block, blocks)),),), lambda x: x)

  def draw(key):
    return _blocks.select(rtopk_jax.rtop_k(0.2, 3), vector, 10, lambda _: key, 1)[0].positions

  keys = jax.random.split(jax.random.key(0), times)
  positions = np.asarray(jax.jit(jax.vmap(draw))(keys)).reshape(times, blocks, 2)
  positions = positions - 10 * np.arange(blocks)[:, None]
  assert set(positions.reshape(-1).tolist()) == largest
  for pairs in np.array_split(positions, min(blocks, 3), axis=1):
    _, counts = np.unique(pairs.reshape(-1, 2), axis=0, return_counts=True)
    expected = pairs.size / 2 / 15
    assert len(counts) == 15
    assert np.sum((counts - expected) ** 2 / expected) < 36.1
  # Blocks draw for themselves.
  same = np.all(positions[:, 0::2][:, : blocks // 2] == positions[:, 1::2], axis=-1)
  assert abs(same.mean() - 1 / 15) < 5 * math.sqrt(1 / 15 / same.size)


@pytest.mark.slow
def test_alike_under_jit_vmap_and_shard_map():
  size = SORT_BELOW + 200
  rows = np.stack([special(size, seed) for seed in range(2)])
  where = places([(size // 100, 100)], [[Run(0, size, 0)]])
  selector = rtopk_jax.rtop_k(0.05, 3)

  def select(row):
    vector = Vector(where, ((row.reshape(-1, 100),),), lambda x: x)
    key_of = lambda number: jax.random.fold_in(jax.random.key(3), number)
    return _blocks.select(selector, vector, 64, key_of, 4)[0].positions

  expected = [jax.jit(select)(row) for row in rows]
  np.testing.assert_array_equal(jax.jit(jax.vmap(select))(rows), expected)
  mapped = jax.shard_map(
    lambda x: select(x[0])[None],
    mesh=harness.mesh(len(rows)),
    in_specs=P(harness.AXIS),
    out_specs=P(harness.AXIS),
  )
  np.testing.assert_array_equal(jax.jit(mapped)(rows), expected)


def test_no_sort_and_little_memory():
  size = 1 << 22
  selector = rtopk_jax.rtop_k(0.001, 4)
  where = places([(size,)], [[Run(0, size, 0)]])

  def select(x, key):
    vector = Vector(where, ((x,),), lambda x: x)
    key_of = lambda number: jax.random.fold_in(key, number)
    return _blocks.select(selector, vector, 4096, key_of, 4)[0].positions

  shape = jax.ShapeDtypeStruct((size,), jnp.float32)
  compiled = jax.jit(select).lower(shape, jax.random.key(0)).compile()
  program = compiled.as_text() or ""
  assert "sort(" not in program
  assert '"TopK"' not in program
  rows = size // 4096
  r = rows * selector.counts(4096, 4).r
  # And the keys of a chunk, made and as columns.
  chunk = 3 * 4 * here().keys_at_once
  memory = compiled.memory_analysis()
  assert memory is not None
  assert memory.temp_size_in_bytes <= size / 4 + 64 * r + chunk


def test_leaves_do_not_share_blocks():
  """Whether small leaves are put together makes no difference: what each sends is the largest of its own blocks."""
  leaves = {
    "a": special(70, 0),
    "b": np.zeros((3, 50), np.float32),
    "c": special(4000, 1).reshape(40, 100),
  }
  leaves = {name: np.nan_to_num(x, posinf=3.0) for name, x in leaves.items()}
  tx = rtopk_jax.sparse_exchange(rtopk_jax.top_k(0.1), "w", scope=rtopk_jax.Block(50), dense=False)
  one = jax.tree.map(lambda x: x[None], leaves)
  step = lambda g: tx.update(g, tx.init(g))[0]
  updates = jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(step, axis_name="w"))(one))
  for name, x in leaves.items():
    flat, sent = x.reshape(-1), np.asarray(updates[name]).reshape(-1)
    for begin in range(0, flat.size, 50):
      block, here = flat[begin : begin + 50], sent[begin : begin + 50]
      k = max(1, round(0.1 * block.size))
      np.testing.assert_array_equal(here, reference.keep_largest(block, k))
