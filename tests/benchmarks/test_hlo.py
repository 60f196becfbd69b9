"""What is read from compiled programs, against programs whose doings are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo, scaling
from rtopk_jax import _loops

D = 40_000


def compiled(function, *arguments, **options):
  return hlo.Program(jax.jit(function, **options).lower(*arguments).compile().as_text())


def passes(program, **options):
  return sum(moved for moved, _ in program.moved(**options)) / (4 * D)


def on_mesh(function, shape=(2, 4), names=("slow", "fast")):
  mesh = jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(shape))
  everywhere = jax.shard_map(
    function, mesh=mesh, in_specs=P(names), out_specs=P(names), check_vma=False
  )
  return compiled(everywhere, jnp.zeros((8 * 1024,), jnp.float32))


@pytest.mark.parametrize(
  ("function", "expected"),
  [
    (lambda x: x + 1, 2),
    (lambda x: jnp.sum(x), 1),
    (lambda x: jnp.maximum(x, 0) * jnp.exp(x), 2),
    (lambda x: x[: D // 4] * 2, 0.5),
    (lambda x: x.at[jnp.arange(8)].get(mode="promise_in_bounds") + 1, 0),
  ],
)
def test_bytes_moved(function, expected):
  assert passes(compiled(function, jnp.zeros(D))) == pytest.approx(expected, abs=0.02)


def test_an_update_in_place_counts_as_the_update():
  update = lambda x, i, v: x.at[i].set(v, unique_indices=True)
  arguments = jnp.zeros(D), jnp.arange(16), jnp.ones(16)
  assert passes(compiled(update, *arguments, donate_argnums=0)) < 0.02
  # Not donated, the vector has to be copied first.
  assert passes(compiled(update, *arguments)) == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize(("known", "turns"), [(True, 10), (False, 1)])
def test_the_body_of_a_loop_counts_as_often_as_it_is_known_to_turn(known, turns):
  turn = lambda i, x: lax.sin(lax.optimization_barrier(lax.sin(x))) + i.astype(jnp.float32)
  loop = lambda x, n: lax.fori_loop(0, 10 if known else n, turn, x)
  program = compiled(loop, jnp.zeros(D), jnp.int32(10))
  # Two functions of an array that read and write it, and a copy perhaps.
  assert 2 * turns <= passes(program, turns=True) <= 4 * turns + 2
  assert 2 <= passes(program) <= 6


def test_a_loop_that_hardly_ever_turns_does_not_count():
  def program(name):
    def function(x):
      with jax.named_scope(name):
        return lax.while_loop(lambda x: x[0] < 0, lambda x: lax.sin(x) - 1, x) * 2

    return compiled(function, jnp.zeros(D), donate_argnums=0)

  often, seldom = program("often"), program(_loops.SELDOM)
  # The loop's body reads and writes the vector.
  assert passes(often) - passes(seldom) == pytest.approx(2, abs=0.02)
  assert often.launches > seldom.launches


def test_a_loop_over_stretches_moves_what_it_goes_over():
  def turn(i, x):
    new = 2 * lax.dynamic_slice(x, (1000 * i,), (1000,))
    return lax.dynamic_update_slice(x, new, (1000 * i,))

  loop = lambda x: lax.fori_loop(0, D // 1000, turn, x)
  assert 2 <= passes(compiled(loop, jnp.zeros(D), donate_argnums=0), turns=True) < 3.1


def test_sorts():
  program = compiled(lambda x: (jnp.sort(x), lax.top_k(x[:1000], 3)[0]), jnp.zeros(D))
  assert max(program.sorts()) == D
  assert compiled(lambda x: jnp.cumsum(x), jnp.zeros(D)).sorts() == []


def test_collectives_and_whom_they_join():
  part = {device: device // 4 for device in range(8)}

  def function(x):
    slow = lax.all_gather(lax.bitcast_convert_type(x[:100], jnp.uint32), "slow")
    fast = lax.psum(x[:10], "fast")
    return x + slow.sum(dtype=jnp.uint32).astype(jnp.float32) + fast.sum()

  found = {x.kind: x for x in on_mesh(function).collectives()}
  assert set(found) == {"all-gather", "all-reduce"}
  assert found["all-gather"].crosses(part)
  assert not found["all-reduce"].crosses(part)
  (gathered,) = found["all-gather"].arrays
  assert (gathered.dtype, gathered.bytes) == ("u32", 2 * 100 * 4)
  assert on_mesh(lambda x: x * 2).collectives() == []


def test_groups_written_by_the_axes_of_a_mesh():
  line = (
    "  %a = f32[8]{0} all-gather(%x), replica_groups=mesh['a'=2,'b'=1,'c'=3] {'c'}, dimensions={0}"
  )
  (found,) = hlo.Program(f"ENTRY %main () -> f32[8] {{\n{line}\n}}").collectives()
  assert found.groups == ((0, 1, 2), (3, 4, 5))


def test_groups_written_as_a_range():
  line = "  %a = f32[8]{0} all-reduce(%x), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add"
  (found,) = hlo.Program(f"ENTRY %main () -> f32[8] {{\n{line}\n}}").collectives()
  assert found.groups == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_padding_of_tiles_counts():
  (array,) = hlo._arrays("s32[87297,8]{1,0:T(8,128)}")
  assert array.bytes == 4 * 87304 * 128
  (array,) = hlo._arrays("f32[3,5]{1,0}")
  assert array.bytes == 4 * 15


def test_a_slice_brought_on_chip_is_read_once():
  lines = [
    "  %x = f32[4096]{0:T(1024)} parameter(0)",
    "  %s = ((f32[4096]{0:T(1024)}), f32[1024]{0:T(1024)S(1)}, s32[]{:S(2)}) slice-start(%x), "
    "slice={[0:1024]}",
    "  %t = ((f32[4096]{0:T(1024)}), f32[1024]{0:T(1024)}, s32[]{:S(2)}) slice-start(%x), "
    "slice={[0:1024]}",
  ]
  program = hlo.Program("\n".join(["ENTRY %main (x: f32[4096]) -> f32[1024] {", *lines, "}"]))
  # The second one is written to memory as well.
  assert [moved for moved, _ in program.moved()] == [4 * 1024, 2 * 4 * 1024]


def test_sends_between_slices_are_collectives():
  line = (
    "  %recv = (u32[64]{0:T(1024)}, u32[], token[]) recv(%t), channel_id=1, "
    'frontend_attributes={_xla_megascale_transfer_type="ALL_GATHER"}'
  )
  (found,) = hlo.Program(f"ENTRY %main () -> f32[8] {{\n{line}\n}}").collectives()
  assert (found.kind, str(found)) == ("all-gather", "all-gather u32[64]")
  assert found.crosses({0: 0, 1: 0})


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=pytest.mark.slow if x == "ReduceScatter" else [])
    for x in scaling.transformations(0.01)
  ],
)
def test_compiled_exchanges_send_what_is_counted(name):
  tx = scaling.transformations(0.01)[name]
  for workers in (2, 4):
    program = scaling.compiled(tx, 4096, workers)
    counted = rtopk_jax.wire_bytes(tx, jax.ShapeDtypeStruct((4096,), np.float32), workers).link
    assert scaling.traffic(program, workers) == pytest.approx(counted, abs=1)


@pytest.mark.parametrize(
  "branches", ["true_computation=%t, false_computation=%f", "branch_computations={%t, %f}"]
)
def test_branches_in_a_loop_move_as_often_as_it_turns(branches):
  """Two branches of a loop of ten turns, each counted as if it were taken; one of them calls another computation."""
  text = f"""
%g (x: f32[1024]) -> f32[1024] {{
  %x.4 = f32[1024]{{0}} parameter(0)
  ROOT %n.4 = f32[1024]{{0}} negate(%x.4)
}}

%t (x: f32[1024]) -> f32[1024] {{
  %x.1 = f32[1024]{{0}} parameter(0)
  ROOT %n.1 = f32[1024]{{0}} call(%x.1), to_apply=%g
}}

%f (x: f32[1024]) -> f32[1024] {{
  %x.2 = f32[1024]{{0}} parameter(0)
  ROOT %n.2 = f32[1024]{{0}} negate(%x.2)
}}

%b (x: f32[1024]) -> f32[1024] {{
  %x.3 = f32[1024]{{0}} parameter(0)
  %p.3 = pred[] constant(true)
  ROOT %n.3 = f32[1024]{{0}} conditional(%p.3, %x.3, %x.3), {branches}
}}

ENTRY %main (x: f32[1024]) -> f32[1024] {{
  %x = f32[1024]{{0}} parameter(0)
  ROOT %w = f32[1024]{{0}} while(%x), condition=%c, body=%b, backend_config={{"known_trip_count":{{"n":"10"}}}}
}}
"""
  program = hlo.Program(text)
  assert sum(moved for moved, _ in program.moved(turns=True)) == 10 * 2 * 2 * 4096
  assert sum(moved for moved, _ in program.moved()) == 2 * 2 * 4096
