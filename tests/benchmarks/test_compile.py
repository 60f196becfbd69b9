"""The parts of ``benchmarks.compile`` that are not measurements."""

import jax
import pytest

from benchmarks import compile as benchmark


@pytest.mark.parametrize("layers", [1, 10])
def test_the_model_has_six_leaves_a_layer_and_two_more(layers):
  assert len(jax.tree.leaves(benchmark.parameters(layers, 8))) == 6 * layers + 2


def test_a_table_has_ratios_of_medians():
  run = lambda total: {"trace": 1.0, "lower": 0.5, "compile": 2.0, "total": total, "cpu": 2 * total}
  found = {
    "jax.lax.pmean": [run(4.0), run(5.0), run(9.0)],
    "sparse_exchange": [run(10.0), run(10.0), run(1.0)],
  }
  rows = benchmark.table(found).splitlines()
  assert rows[2] == "| jax.lax.pmean | 1.00 | 0.50 | 2.00 | 5.00 | 1.00 | 1.00 |"
  assert rows[3] == "| sparse_exchange | 1.00 | 0.50 | 2.00 | 10.00 | 2.00 | 2.00 |"


@pytest.mark.slow
@pytest.mark.usefixtures("usual_promotion")
@pytest.mark.parametrize("exchange", benchmark.EXCHANGES)
def test_a_first_step_is_taken_apart(exchange):
  spent = benchmark.first_step(exchange, layers=1, width=8)
  parts = sum(spent[name] for name in ("trace", "lower", "compile", "run"))
  assert spent["total"] == pytest.approx(parts)
  assert spent["lines"] > 100
