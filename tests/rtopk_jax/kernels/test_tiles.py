"""What TPUs run, run here: words of columns, and entries written by looking at words or through flat arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from rtopk_jax.exchange import _collective, _reduce
from rtopk_jax.kernels import _scatter, _scatter_tpu
from rtopk_jax.kernels._flat_packing import FlatPacking
from rtopk_jax.kernels._tiled_packing import TiledPacking
from rtopk_jax.kernels._tiles import TiledBitSet
from rtopk_jax.select import _search
from rtopk_jax.select._keys import magnitude_keys
from rtopk_jax.vector import _layout
from rtopk_jax.vector._layout import Bundle
from rtopk_jax.vector._vector import Run, Vector, places
from tests.rtopk_jax.harness import AXIS, check_mapped, gradients, run

# Rows in whole folds and not, of whole tiles and not, by columns (in whole folds and not, of rows in whole folds
# and not), of one axis, and of next to nothing.
SHAPES = [
  (3, 80, 500),
  (1, 45, 300),
  (19, 6, 90),
  (1, 200, 140),
  (1, 203, 140),
  (150, 70),
  (7001,),
  (2048,),
  (1, 1, 17),
  (31, 5),
]
COUNT = sum(map(np.prod, SHAPES))


def _vector_of(leaves, kind="one"):
  """Leaves as one group, as a group each, or as a group each but one array."""
  arrays = [jnp.asarray(x) for x in leaves]
  shapes = tuple(x.shape for x in leaves)
  if kind == "joined":
    bundle = Bundle(tuple(range(len(leaves))), shapes, apart=True)
    where, arrays = places([bundle.shape], [bundle.runs(0)]), [bundle.join(arrays)]
  else:
    runs = [(Run(0, x.size, 0 if kind == "one" else i),) for i, x in enumerate(leaves)]
    where = places(shapes, runs)
  return Vector(where, tuple((x,) for x in arrays), lambda x: x)


def _leaves(kind):
  rng = np.random.default_rng(7)
  leaves = [rng.laplace(size=shape).astype(np.float32) for shape in SHAPES]
  if kind == "ties":
    leaves = [np.round(x) for x in leaves]
  if kind == "zeros":
    leaves = [np.where(rng.random(x.shape) < 0.001, x, 0).astype(np.float32) for x in leaves]
  return leaves


def _expected(leaves, groups, counts):
  """The largest of each group of leaves, ties to the lowest."""
  where, found = places(SHAPES), []
  for members, count in zip(groups, counts, strict=True):
    positions = np.concatenate([where[i].first + np.arange(leaves[i].size) for i in members])
    keys = np.concatenate([np.abs(leaves[i]).reshape(-1).view(np.int32) for i in members])
    found.append(np.sort(positions[np.argsort(-keys.astype(np.int64), kind="stable")[:count]]))
  return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _found(leaves, kind, counts, exact):
  packing = TiledPacking(_vector_of(leaves, kind), exact)
  found, statistics = _search.largest(packing, counts, magnitude_keys)
  positions = found.locate(jnp.arange(sum(counts), dtype=jnp.int32))
  return positions, packing.take(positions), statistics.square


def _check(leaves, kind, counts, groups, exact=False):
  positions, values, square = _found(leaves, kind, tuple(counts), exact)
  expected = _expected(leaves, groups, counts)
  np.testing.assert_array_equal(positions, expected)
  everything = np.zeros(places(SHAPES)[-1].first + leaves[-1].size, np.float32)
  for place, x in zip(places(SHAPES), leaves, strict=True):
    everything[place.first : place.first + place.size] = x.reshape(-1)
  np.testing.assert_array_equal(values, everything[expected])
  np.testing.assert_allclose(square, sum(np.sum(x**2) for x in leaves), rtol=1e-5)


@pytest.mark.parametrize(
  ("count", "exact"), [(1, False), (700, False), (700, True), (COUNT - 1, False)]
)
def test_one_vector(count, exact):
  for kind in ("plain", "ties", "zeros"):
    _check(_leaves(kind), "one", [count], [range(len(SHAPES))], exact)


@pytest.mark.parametrize(("kind", "exact"), [("each", False), ("joined", False), ("joined", True)])
def test_groups(kind, exact):
  counts = [max(1, int(np.prod(shape)) // 9) for shape in SHAPES]
  counts[1], counts[6] = 1, 7000
  for values in ("plain", "ties"):
    _check(_leaves(values), kind, counts, [[i] for i in range(len(SHAPES))], exact)


LARGE = 140_003


def _large():
  rng = np.random.default_rng(1)
  return np.where(rng.random(LARGE) < 0.3, 0, rng.laplace(size=LARGE)).astype(np.float32)


def test_the_same_entries_are_drawn_on_all_platforms():
  selector = rtopk_jax.rtop_k(0.01, 5)
  vector, key = _large(), jax.random.key(3)
  elsewhere = jax.jit(selector)(vector, key)
  with rtopk_jax.platform("tpu"):
    here = jax.jit(lambda *arguments: selector(*arguments))(vector, key)
  np.testing.assert_array_equal(here.indices, elsewhere.indices)
  np.testing.assert_array_equal(here.values, elsewhere.values)


@pytest.mark.parametrize("platform", ["tpu"], indirect=True)
def test_a_random_k_of_everything(platform):
  """Drawn in another way than elsewhere, where bits of very many entries cost less."""
  vector = _large()
  slices = jax.jit(rtopk_jax.random_k(0.02))(vector, jax.random.key(3))
  assert slices.indices.shape == (round(0.02 * LARGE),)
  assert np.all(np.diff(slices.indices) > 0)
  np.testing.assert_array_equal(slices.values, vector[slices.indices])


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu"], indirect=True)
def test_vmap_and_shard_map_agree(platform):
  selector = rtopk_jax.rtop_k(0.01, 5)
  keys = jax.random.split(jax.random.key(0), 2)
  vectors = jnp.stack([_large(), jnp.zeros(LARGE)])  # one needs more turns than the other
  check_mapped(lambda v, k: selector(v, k).indices, vectors, keys)


def test_members_are_counted_row_by_row():
  members = np.random.default_rng(0).random((37, 512)) < 0.1
  numbers = np.flatnonzero(members)
  ranks = jnp.arange(numbers.size, dtype=jnp.int32)
  found = jax.jit(lambda x, ranks: TiledBitSet.of(x).locate(ranks))(members, ranks)
  np.testing.assert_array_equal(found, numbers)


def _some_positions(count):
  """Positions that name entries, that name none since they are between pieces, and beyond all."""
  rng = np.random.default_rng(4)
  where = places(SHAPES)
  end = where[-1].first + where[-1].size
  gaps = [place.first + place.size for place in where[:-1]]
  positions = np.concatenate([rng.choice(end, count, replace=False), gaps, [end, end + 5]])
  return np.unique(positions).astype(np.int32)


@pytest.mark.parametrize("kind", ["values", "a scalar", "zeros"])
def test_entries_are_put_where_others_put_them(kind):
  leaves, where = [jnp.asarray(x) for x in _leaves("plain")], places(SHAPES)
  positions = jnp.asarray(_some_positions(900))
  keep = positions % 3 > 0
  values = jnp.sin(positions.astype(jnp.float32)) if kind == "values" else jnp.float32(0)
  expected = jax.jit(lambda *x: _scatter.put_in_place(x[0], where, *x[1:]))
  zeros = kind == "zeros"
  here = jax.jit(lambda *x: _scatter_tpu.put_in_tiles(x[0], where, *x[1:], are_zero=zeros))
  for a, b in zip(
    here(leaves, positions, values, keep), expected(leaves, positions, values, keep), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_entries_are_put_to_leaves_in_folds():
  leaves, where = [jnp.asarray(x) for x in _leaves("plain")], places(SHAPES)
  positions = jnp.asarray(_some_positions(900))
  values = jnp.sin(positions.astype(jnp.float32))

  def work(put):
    def function(where, lists):
      both = [a + 2 * b for a, b in zip(*lists, strict=True)]
      return [put(both, where, positions[::2], values[::2]), lists[1], []]

    return function

  write = lambda *x: _scatter.put_in_place(*x, True)
  put = lambda *x: _scatter_tpu.put_in_tiles(*x, True, False)
  expected = jax.jit(lambda x: work(write)(where, [x, x]))(leaves)
  # Entries can be written to leaves in folds as well.
  for function in (put, write):
    found = jax.jit(lambda x, f=function: _scatter_tpu.work_in_folds(where, [x, x], work(f)))(
      leaves
    )
    for a, b in zip(found, expected, strict=True):
      for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
  "options",
  [
    {"nesterov": True},
    {"wire": rtopk_jax.Wire(values="bfloat16"), "scope": "leaf", "memory_dtype": jnp.bfloat16},
    pytest.param(
      {"collective": "reduce_scatter", "wire": rtopk_jax.Wire(values="bfloat16")},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_steps_are_those_of_other_platforms(options, monkeypatch):
  monkeypatch.setattr(_layout, "BUNDLED_BELOW", 1 << 10)
  shapes = {"by columns": (1000, 150), "tiles": (64, 40), "neither": (150, 300), "few": (7, 3)}
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(0.01, 2), AXIS, momentum=0.5, dense=False, **options
  )
  grads = gradients(shapes, 2, 2)

  def after(platform):
    jax.clear_caches()
    with rtopk_jax.platform(platform):
      updates, state = run("vmap", tx, grads)
    return (updates, state.residual, state.momentum), state.metrics

  elsewhere, here = after("cpu"), after("tpu")
  jax.tree.map(np.testing.assert_array_equal, here[0], elsewhere[0])
  # Squares are added up in another order.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), here[1], elsewhere[1])


@pytest.mark.parametrize("average", ["workers", "senders"])
def test_sums_are_those_of_other_platforms(average):
  where = places(SHAPES)
  positions = jnp.stack([jnp.asarray(_some_positions(900)) + i for i in range(3)])
  values = jnp.cos(positions.astype(jnp.float32))
  weights = jnp.array([1, 0, 1], jnp.float32)

  def run(platform):
    read = lambda worker: (positions[worker], values[worker])
    contributions = _collective.Contributions(3, read)
    reduce = lambda: _reduce.reduce(contributions, where, jnp.bool_(True), weights, average)
    with rtopk_jax.platform(platform):
      return jax.tree.leaves(jax.jit(reduce)())

  elsewhere, here = run("cpu"), run("tpu")
  for a, b in zip(here, elsewhere, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_words_of_both_forms_hold_the_same_sets():
  vector = _vector_of(_leaves("plain"))
  ranks = jnp.arange(50, dtype=jnp.int32)

  @functools.partial(jax.jit, static_argnums=0)
  def run(packing):
    return _search.largest(packing(vector), [50], magnitude_keys)[0].locate(ranks)

  np.testing.assert_array_equal(run(TiledPacking), run(FlatPacking))
