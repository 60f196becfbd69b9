"""The cost model against ``wire_bytes``, against arithmetic written out here, and what it advises."""

import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtopk_jax
from rtopk_jax import plan
from rtopk_jax.exchange import _cost, _names
from rtopk_jax.planning import _speed
from rtopk_jax.wire import _wire

D = 100_000
PARAMS = {"w": jax.ShapeDtypeStruct((D,), jnp.float32)}
FREE = rtopk_jax.LocalSpeed(compress=0.0, place=0.0, dense=0.0)
WIRES = [rtopk_jax.Wire(), rtopk_jax.Wire("bfloat16", "elias_fano")]


def exchange(collective, density, wire):
  if collective == "dense":
    return rtopk_jax.dense_exchange("w")
  return rtopk_jax.sparse_exchange(
    rtopk_jax.rtop_k(density, 4), "w", dense=False, wire=wire, collective=collective
  )


def cost_of(collective, d, k, workers, wire="float32", local=None):
  """What the cost model says of an exchange."""
  local = local or rtopk_jax.LocalSpeed()
  if collective == "dense":
    return _cost.dense_cost(d, workers, local)
  return _names.resolve(collective).cost(d, k, workers, _wire.resolve(wire), local)


@pytest.mark.parametrize("collective", ["dense", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize(
  ("workers", "wire"),
  [
    # Both wires, and most numbers.
    pytest.param(n, wire, marks=[] if i % 2 == j and n < 64 else pytest.mark.slow)
    for i, n in enumerate((1, 2, 5, 64))
    for j, wire in enumerate(WIRES)
  ],
)
def test_bytes_are_those_of_the_buffers(collective, wire, workers):
  for density in (0.1, 0.01, 0.001):
    tx = exchange(collective, density, wire)
    traffic = cost_of(collective, D, round(density * D), workers, wire).traffic
    counted = rtopk_jax.wire_bytes(tx, PARAMS, workers)
    found = tuple(round(x) for x in (traffic.sent, traffic.received, traffic.link))
    assert found == counted


def test_the_time_of_a_dense_exchange_is_that_of_a_ring():
  link = rtopk_jax.Link(1e8, latency=0.01, framing=1.25)
  local = rtopk_jax.LocalSpeed(dense=1e-6)
  found = cost_of("dense", D, 1, 4, local=local).seconds(link)
  # Twice three steps of a quarter of the vector.
  assert found == pytest.approx(6 * (0.01 + 8 * 1.25 * 4 * D / 4 / 1e8) + 1e-6 * D)


def test_the_time_of_an_all_gather():
  link = rtopk_jax.Link(1e6, latency=0.5, framing=1.0)
  local = rtopk_jax.LocalSpeed(compress=1e-6, place=1e-3, overhead=7.0)
  k = 100
  cost = cost_of("all_gather", D, k, 3, local=local)
  found, operand = cost.seconds(link), cost.traffic.sent
  network = 2 * (0.5 + 8 * operand / 1e6)
  assert found == pytest.approx(network + 7 + 1e-6 * D + 1e-3 * 3 * k)


def test_the_time_of_an_owner():
  link = rtopk_jax.Link(1e6, latency=0.5, framing=1.0)
  local = rtopk_jax.LocalSpeed(compress=1e-6, place=1e-3, overhead=7.0, own=1e-5, sort=1e-2)
  k = 100
  cost = cost_of(rtopk_jax.ReduceScatter(slack=0.5), D, k, 4, local=local)
  found = cost.seconds(link)
  # Room for 38 entries of each worker: 152 come to an owner, who sends on 25 in a whole tile.
  dealt, returned = 4 * 4 * 2 * 38, 512
  assert cost.traffic.sent == dealt + returned
  network = 3 * (0.5 + 8 * dealt / 4 / 1e6) + 3 * (0.5 + 8 * returned / 1e6)
  owner = 1e-5 * D / 4 + 1e-2 * (k + 152) + 1e-3 * 2 * (k + 152)
  assert found == pytest.approx(network + 7 + 1e-6 * D + owner)


def test_a_reduce_scatter_stops_growing_with_the_number_of_workers():
  of = lambda name, n: cost_of(name, 10_000_000, 10_000, n).traffic.link
  assert of("all_gather", 64) > 60 * of("all_gather", 2)
  assert of("reduce_scatter", 64) < 3 * of("reduce_scatter", 2)


@pytest.mark.parametrize(
  ("text", "bits"),
  [
    ("1Gbit/s", 1e9),
    ("100 Mbit/s", 1e8),
    ("2.5gbps", 2.5e9),
    ("10GB/s", 8e10),
    ("1e9", 1e9),
    (5e8, 5e8),
    ("9600 bit/s", 9600),
  ],
)
def test_bandwidths(text, bits):
  assert _cost.parse_bandwidth(text) == bits


@pytest.mark.parametrize(
  "text", ["", "fast", "1Gb/h", "1Qbit/s", "-1Gbit/s", 0, math.nan, "1.2.3Gbit/s"]
)
def test_what_is_no_bandwidth_is_refused(text):
  with pytest.raises(ValueError, match="bandwidth"):
    rtopk_jax.advise(1e6, 4, text)


@given(
  # Of every order of magnitude: in small models a message is longer than the vector.
  d=st.one_of(st.integers(1, 100), st.integers(1, 10**5), st.integers(1, 10**9)),
  n=st.integers(2, 1_000),
  bandwidth=st.floats(1e5, 1e12),
  density=st.sampled_from([1.0, 0.1, 0.01, 0.001]),
  local=st.sampled_from([None, FREE, rtopk_jax.LocalSpeed(dense=1e-3)]),
)
def test_at_the_break_even_bandwidth_both_take_as_long(d, n, bandwidth, density, local):
  advised = lambda rate: rtopk_jax.advise(d, n, rate, densities=[density], local=local)
  advice = advised(bandwidth)
  for number, x in enumerate(advice.estimates):
    faster = x.seconds < advice.dense.seconds
    if not 0 < x.break_even < math.inf:
      assert faster == (x.break_even == math.inf)
      assert not x.pays_above
      continue
    even = advised(x.break_even)
    same = even.estimates[number]
    np.testing.assert_allclose(same.seconds, even.dense.seconds, rtol=1e-6)
    if not math.isclose(bandwidth, x.break_even):
      assert faster == ((bandwidth > x.break_even) == x.pays_above)
    # On either side of it, too.
    for rate, below in ((x.break_even / 2, True), (x.break_even * 2, False)):
      other = advised(rate)
      assert (other.estimates[number].seconds < other.dense.seconds) == (below != x.pays_above)


def test_more_bytes_in_fewer_messages_pay_above_a_bandwidth():
  advice = rtopk_jax.advise(1, 4, "1Gbit/s")
  found = advice.choice
  assert found.bytes > advice.dense.bytes
  assert found.pays_above
  assert 0 < found.break_even < 1e9
  assert advice.reason.endswith(f"It {found.pays}.")
  assert found.pays.startswith("pays above ")
  assert f"> {found.pays.removeprefix('pays above ')}" in str(advice)
  # So that it is not advised where it does not pay.
  assert not rtopk_jax.advise(1, 4, found.break_even / 2).compress


@pytest.mark.parametrize(
  ("local", "workers", "pays"),
  [
    (rtopk_jax.LocalSpeed(dense=1e-6), 16, "pays at any bandwidth"),
    (rtopk_jax.LocalSpeed(overhead=1.0), 16, "pays below "),
    (rtopk_jax.LocalSpeed(), 1, "pays at no bandwidth"),
  ],
)
def test_where_an_exchange_pays(local, workers, pays):
  advice = rtopk_jax.advise(1e6, workers, "1Gbit/s", local=local, densities=[0.01])
  assert advice.estimates[0].pays.startswith(pays)


def test_advice_follows_the_link():
  slow, fast = (rtopk_jax.advise(25.6e6, 16, rate) for rate in ("100Mbit/s", "800Gbit/s"))
  assert slow.compress
  assert slow.choice.seconds < slow.dense.seconds / 10
  assert "Compress: " in str(slow)
  assert not fast.compress
  assert fast.choice == fast.dense
  assert "Don't compress" in str(fast)
  assert "nobody to exchange with" in rtopk_jax.advise(25.6e6, 1, "100Mbit/s").reason


def test_a_dense_exchange_that_hardly_counts_is_left_alone():
  patient = rtopk_jax.advise(1e6, 4, "1Gbit/s", compute=10.0)
  assert not patient.compress
  assert "under a tenth of the 10 s of a step" in patient.reason
  assert rtopk_jax.advise(1e6, 4, "1Gbit/s", compute=0.01).compress


@pytest.mark.parametrize(("local_steps", "exchanges"), [(1, 1000), (30, 33), (2000, 0)])
def test_a_training_is_its_batches_and_its_exchanges(local_steps, exchanges):
  advice = rtopk_jax.advise(1e6, 4, "100Mbit/s")
  for x in (advice.dense, *advice.estimates):
    expected = 1000 * 0.05 + exchanges * (x.network + x.local)
    assert math.isclose(x.training(0.05, 1000, local_steps), expected)


def test_trainings_are_a_row_of_each_exchange():
  advice = rtopk_jax.advise(1e6, 4, "100Mbit/s", densities=(0.1, 0.01))
  heads, *rows = advice.trainings(0.05, 1000, local_steps=(1, 30)).splitlines()
  assert heads.endswith("every batch     every 30")
  assert len(rows) == 1 + len(advice.estimates)
  assert rows[0].split()[:3] == ["dense", f"{advice.dense.training(0.05, 1000):.3g}", "s"]


@pytest.mark.parametrize(
  ("change", "error", "words"),
  [
    ({"compute": -1.0}, ValueError, "compute must be at least 0, got -1.0"),
    ({"batches": 0}, ValueError, "batches must be at least 1, got 0"),
    ({"batches": 1.5}, TypeError, "batches must be an integer, got 1.5"),
    ({"local_steps": 0}, ValueError, "local_steps must be at least 1, got 0"),
  ],
)
def test_what_is_no_training_is_refused(change, error, words):
  dense = rtopk_jax.advise(1e6, 4, "100Mbit/s").dense
  with pytest.raises(error, match=words):
    dense.training(**{"compute": 0.1, "batches": 100, **change})


def test_a_lower_density_has_to_gain_something():
  """Where the worker's own work decides, the density that loses least is taken."""
  local = rtopk_jax.LocalSpeed(compress=1e-6)
  advice = rtopk_jax.advise(1e6, 2, "1Mbit/s", local=local, densities=[0.001, 0.0011])
  assert advice.choice.density == 0.0011
  assert rtopk_jax.advise(1e6, 2, "1Mbit/s", densities=[0.001, 0.01]).choice.density == 0.001


@pytest.mark.parametrize(
  ("change", "error", "words"),
  [
    ({"params": 0}, ValueError, "params must be at least 1"),
    ({"params": 1.5}, ValueError, "whole number"),
    ({"num_workers": 2.0}, TypeError, "num_workers must be an integer"),
    ({"num_workers": 0}, ValueError, "num_workers"),
    ({"latency": -1.0}, ValueError, "latency"),
    ({"params": math.inf}, ValueError, "params must be finite"),
    ({"params": True}, TypeError, "params must be a Python number"),
    ({"densities": []}, ValueError, "densities must name at least one"),
    ({"densities": [2.0]}, ValueError, "densities"),
    ({"densities": 0.1}, TypeError, r"densities must be several.*got 0\.1.*a tuple too, such as"),
    ({"densities": np.float32(0.5)}, TypeError, "densities must be several"),
    ({"densities": np.array(0.5)}, TypeError, r"densities must be several.*got 0\.5"),
    ({"densities": np.ones((1, 2))}, TypeError, r"densities must be a Python number, got \[1\.0"),
    ({"densities": "0.1"}, TypeError, "densities must be several.*got '0.1'"),
    ({"densities": None}, TypeError, "densities must be several"),
    ({"wire": "int32"}, ValueError, "wire must be one of 'float32'.*got 'int32'"),
    ({"wire": 8}, TypeError, "wire must be a rtopk_jax.Wire.*got 8"),
    ({"collectives": "ring"}, TypeError, "collectives must be several.*got 'ring'"),
    ({"collectives": ["ring"]}, ValueError, "collectives must be one of 'all_gather'.*got 'ring'"),
    ({"collectives": []}, ValueError, "collectives must name at least one"),
    (
      {"collectives": [rtopk_jax.Collective()]},
      TypeError,
      "Collective.*does not say how many bytes",
    ),
    ({"local": 3}, TypeError, "LocalSpeed"),
    ({"compute": -1.0}, ValueError, "compute"),
  ],
)
def test_what_cannot_be_is_refused(change, error, words):
  with pytest.raises(error, match=words):
    rtopk_jax.advise(**{"params": 1e6, "num_workers": 4, "bandwidth": 1e9, **change})
  with pytest.raises(ValueError, match="compress"):
    rtopk_jax.LocalSpeed(compress=-1.0)
  with pytest.raises(ValueError, match="bandwidth"):
    rtopk_jax.LocalSpeed.of_memory(0)


def test_the_command_prints_the_advice(capsys):
  plan.main(["--params=25.6e6", "--workers=64", "--bandwidth=1Gbit/s", "--memory_bandwidth=3e12"])
  printed = capsys.readouterr().out
  local = rtopk_jax.LocalSpeed.of_memory(3e12)
  assert printed.strip() == str(rtopk_jax.advise(25.6e6, 64, "1Gbit/s", local=local))


def test_the_command_says_how_long_a_training_takes(capsys):
  link = ["--params=1e6", "--workers=4", "--bandwidth=100Mbit/s"]
  plan.main([*link, "--compute=0.05", "--batches=1000", "--local_steps", "1", "15"])
  advice = rtopk_jax.advise(1e6, 4, "100Mbit/s", compute=0.05)
  printed = capsys.readouterr().out
  assert str(advice) in printed
  assert advice.trainings(0.05, 1000, (1, 15)) in printed


@pytest.mark.parametrize("array", [np.array, jnp.array, list, tuple])
def test_densities_may_be_an_array(array):
  found = rtopk_jax.advise(1e6, 4, "1Gbit/s", densities=array([0.5, 0.25, 0.5]))
  assert [x.density for x in found.estimates] == [0.5, 0.5, 0.25, 0.25]
  assert found == rtopk_jax.advise(1e6, 4, "1Gbit/s", densities=(0.25, 0.5))


def test_a_link_keeps_its_bandwidth_as_a_number():
  link = rtopk_jax.Link("1Gbit/s")
  assert link == rtopk_jax.Link(1e9)
  assert link.bandwidth == 1e9
  traffic = rtopk_jax.Traffic.all_reduce(1000, 2)
  assert link.seconds(traffic) == rtopk_jax.Link(1e9).seconds(traffic)


@pytest.mark.parametrize(
  ("bandwidth", "error", "message"),
  [
    ("fast", ValueError, "bandwidth must be bits a second.*got 'fast'"),
    (0, ValueError, "bandwidth must be above 0 bits a second"),
    (None, TypeError, "bandwidth must be a Python number, got None"),
    (True, TypeError, "bandwidth must be a Python number, got True"),
  ],
)
def test_what_no_link_has_is_refused(bandwidth, error, message):
  with pytest.raises(error, match=message):
    rtopk_jax.Link(bandwidth)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--bandwidth=fast"], "--bandwidth must be bits a second"),
    (["--bandwidth=0"], "--bandwidth must be above 0 bits a second"),
    (["--params=inf"], "--params must be finite"),
    (["--params=0"], "--params must be at least 1"),
    (["--params=1.5"], "--params must be a whole number"),
    (["--params=many"], "--params: invalid float value: 'many'"),
    (["--measure", "--params=inf"], "--params must be finite"),
    (["--measure", "--params=0"], "--params must be at least 1"),
    (["--measure", "--params=1e12"], "--params must be at most 2147483647"),
    (["--workers=0"], "--workers must be at least 1"),
    (["--workers=2.5"], "--workers: invalid int value: '2.5'"),
    (["--latency=-1"], "--latency must be at least 0"),
    (["--densities", "0.1", "0"], "--densities is the share of entries sent"),
    (["--measure", "--densities", "2"], "--densities is the share of entries sent"),
    (["--compute=-1"], "--compute must be at least 0"),
    (["--memory_bandwidth=0"], "--memory_bandwidth must be above 0 bytes a second"),
    (["--memory_bandwidth=-1"], "--memory_bandwidth must be above 0 bytes a second"),
    (["--memory_bandwidth=1", "--measure"], "--measure: not allowed with .*--memory_bandwidth"),
    (["--values=int3"], "--values: invalid choice: 'int3'"),
    (["--batches=0", "--compute=1"], "--batches must be at least 1"),
    (["--batches=5"], "--batches needs --compute"),
    (["--local_steps", "30"], "--local_steps is for a training: it needs --batches"),
    (["--batches=5", "--compute=1", "--local_steps", "0"], "--local_steps must be at least 1"),
    (["--indices=block"], "--indices: invalid choice: 'block'.*int32"),
  ],
)
def test_the_command_says_in_one_line_what_is_wrong(flags, message, capsys):
  with pytest.raises(SystemExit) as refused:
    plan.main(["--params=1e6", "--workers=4", "--bandwidth=1Gbit/s", *flags])
  printed, said = capsys.readouterr()
  assert (refused.value.code, printed, said.count("\n")) == (2, "", 1)
  assert re.match(f"error: .*{message}", said)


def test_the_command_runs_as_a_module():
  command = [
    sys.executable,
    "-m",
    "rtopk_jax.plan",
    "--params=1e6",
    "--workers=4",
    "--bandwidth=1MB/s",
  ]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert "Compress: " in done.stdout
  assert not done.stderr


@pytest.mark.parametrize(
  ("params", "error", "message"),
  [
    (0, ValueError, "params must be at least 1, got 0"),
    (1.5, ValueError, "params must be a whole number"),
    (math.inf, ValueError, "params must be finite"),
    (True, TypeError, "params must be a Python number, got True"),
    (1e12, ValueError, "params must be at most 2147483647, the entries that int32 can index"),
    ({}, ValueError, "params must have at least one entry"),
    ({"n": np.ones(3, np.int32)}, TypeError, r"params\['n'\] is of int32"),
  ],
)
def test_what_cannot_be_measured_is_refused(params, error, message):
  with pytest.raises(error, match=message):
    rtopk_jax.measure_local(params)


@pytest.mark.slow
def test_a_number_of_parameters_may_be_written_as_a_float():
  assert rtopk_jax.measure_local(1e3, density=0.1, repeats=1).compress >= 0


# That it runs is an example of its docstring.
@pytest.mark.slow
def test_the_speed_of_this_device_is_measured():
  params = {
    "w": jax.ShapeDtypeStruct((300, 100), jnp.float32),
    "b": jax.ShapeDtypeStruct((7,), jnp.float32),
  }
  found = rtopk_jax.measure_local(params, density=0.01, repeats=1)
  # Of so few entries the overhead may be all there is.
  assert found.overhead + found.compress > 0
  assert found.dense > 0
  assert found.place >= 0
  assert found.own >= 0
  assert found.sort > 0


@pytest.mark.parametrize(
  ("seconds", "expected"),
  [
    ((3.0, 12.0), (2.0, 0.1)),
    ((0.5, 20.0), (0.0, 0.2)),
    ((6.0, 5.0), (5.0, 0.0)),
    ((0.0, 0.0), (0.0, 0.0)),
  ],
)
def test_a_line_through_two_sizes(seconds, expected):
  """It begins at the overhead, never below 0, and always goes through the larger size's time."""
  found = _speed._line((10, 100), seconds)
  assert found == pytest.approx(expected)
  assert found[0] + 100 * found[1] == pytest.approx(seconds[1])
