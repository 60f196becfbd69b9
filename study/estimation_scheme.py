"""The figures of Sections II-D and IV: the scheme of Theorem 1, its risk, its bounds, its competitors."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rtopk_jax.estimation import _bounds, _statistics
from rtopk_jax.estimation._encode import BernoulliCode, max_ones
from rtopk_jax.estimation._gaussian import gaussian_squared_errors
from rtopk_jax.estimation._models import GaussianLocation, SparseBernoulli, uniform_perturbation
from rtopk_jax.estimation._schemes import (
  Centralized,
  OneBit,
  RandomCoordinates,
  RandomOnes,
  Scheme,
  TopOnes,
)
from rtopk_jax.estimation._simulate import simulate, squared_errors

KEY = jax.random.key(0)
_BAR = {"fmt": "o", "markersize": 4, "capsize": 3}
_LEGEND = {"fontsize": 8}


def axes_grid(figure: Any, columns: int, rows: int = 1) -> list[Any]:
  """Panels with a light grid, in reading order."""
  figure.set_size_inches(4.4 * columns + 0.8, 3.8 * rows)
  panels = list(figure.subplots(rows, columns, squeeze=False).flat)
  for panel in panels:
    panel.grid(alpha=0.3)
  return panels


def _logarithmic(panel: Any, x: str, y: str) -> None:
  panel.set(xscale="log", yscale="log", xlabel=x, ylabel=y)


def _simulated(
  panel: Any,
  x: Sequence[float],
  errors: list[np.ndarray],
  label: str = "simulated, 99.8 % interval",
  **style: Any,
) -> None:
  """Mean errors with their confidence intervals."""
  intervals = [_statistics.mean_interval(error) for error in errors]
  mean = np.array([interval.value for interval in intervals])
  low = np.array([interval.low for interval in intervals])
  high = np.array([interval.high for interval in intervals])
  panel.errorbar(x, mean, [mean - low, high - mean], label=label, **(_BAR | style))


def _slope(x: Sequence[float], errors: list[np.ndarray]) -> str:
  value, low, high = _statistics.slope_interval(np.array(x), np.stack(errors))
  return f"{value:.3f} ({low:.3f} to {high:.3f})"


def unbiased(figure: Any) -> str:
  """The mean of many messages against θ, and one statistic a model for all coordinates."""
  left, right = axes_grid(figure, 2)
  names = {
    "plain": SparseBernoulli(24, 6),
    "signed": SparseBernoulli(24, 6, signed=True),
    "scaled": SparseBernoulli(24, 6, scale=5.0),
    "perturbed": SparseBernoulli(24, 6, True, 0.5, uniform_perturbation),
  }
  count, results = 20_000, {}
  for i, (name, model) in enumerate(names.items()):
    keys = jax.random.split(jax.random.fold_in(KEY, i), count)
    theta = model.power_law(KEY, exponent=0.5)
    for scheme in (RandomOnes(3), TopOnes(3)):
      node = lambda key, m=model, c=scheme, t=theta: simulate(m, c, t, key, 1)
      messages = np.asarray(jax.vmap(node)(keys))
      result = _statistics.mean_chi_square(messages, model.scale * np.asarray(theta, np.float64))
      results[name, type(scheme)] = result
      if name == "plain":
        label = {RandomOnes: "Theorem 1, k′ = 3", TopOnes: "top-k′"}[type(scheme)]
        left.plot(theta, messages.mean(0), "o", markersize=4, label=label)
  code, rng = BernoulliCode(24, bits=16), np.random.default_rng(0)
  theta = names["plain"].power_law(KEY, exponent=0.5)
  keys = jax.random.split(jax.random.fold_in(KEY, len(names)), 5000)
  seen = np.asarray(jax.vmap(names["plain"].sample, (0, None))(keys, theta))
  decoded = np.array([code.estimate([code.encode(x, rng)]) for x in seen])
  results["bit strings", RandomOnes] = _statistics.mean_chi_square(decoded, np.asarray(theta))
  left.axline((0.2, 0.2), slope=1, color="black", linewidth=0.8, label="θ")
  left.set(
    xlabel="θ of a coordinate", ylabel="mean of 20,000 messages", title="Plain model, d = 24"
  )
  left.legend(**_LEGEND)
  for kind, marker in ((RandomOnes, "o"), (TopOnes, "s")):
    mine = {name: result for (name, which), result in results.items() if which is kind}
    right.plot(list(mine), [x.statistic for x in mine.values()], marker, label=kind.__name__)
  right.axhspan(7.8, 51.2, color="C2", alpha=0.2, label="χ² with 24 degrees, 99.8 % range")
  right.set(yscale="log", ylabel="χ² statistic of all coordinates", title="Every model")
  right.tick_params(axis="x", rotation=20)
  right.legend(**_LEGEND)
  least = min(x.p_value for (_, kind), x in results.items() if kind is RandomOnes)
  return f"the smallest of {len(names) + 1} p-values of Theorem 1's scheme is {least:.3f}"


def risk_n(figure: Any) -> str:
  """The risk in n, between the theorems."""
  (panel,) = axes_grid(figure, 1)
  d, s, bits = 1000, 20, 100
  model, scheme = SparseBernoulli(d, s), RandomOnes(max_ones(d, bits))
  theta = model.uniform(KEY)
  n = [64, 128, 256, 512, 1024]
  keys = jax.random.split(KEY, len(n))
  errors = [
    squared_errors(model, scheme, theta, key, i, 200, chunk=64)
    for key, i in zip(keys, n, strict=True)
  ]
  _simulated(panel, n, errors, color="C0")
  panel.plot(n, [scheme.risk(theta, i) for i in n], "C0", label="exact risk")
  bound = [_bounds.inequality_4(theta, scheme.max_ones, i) for i in n]
  panel.plot(n, bound, "C1--", label="inequality (4)")
  panel.plot(n, [_bounds.upper_bound(d, s, i, bits) for i in n], "C3", label="Theorem 1, C = 5.5")
  panel.plot(n, [_bounds.lower_bound(d, s, i, bits) for i in n], "C2", label="Theorem 2, without c")
  _logarithmic(panel, "nodes n", "risk E‖θ̂ − θ‖²")
  panel.set_title(f"Uniform θ, d = {d}, s = {s}, k = {bits} bits (k′ = {scheme.max_ones})")
  panel.legend(**_LEGEND)
  return f"slope in n {_slope(n, errors)}"


def risk_k(figure: Any) -> str:
  """The risk in k′ and in k."""
  left, right = axes_grid(figure, 2)
  d, s, n = 4000, 100, 20
  model = SparseBernoulli(d, s)
  theta = model.uniform(KEY)
  centralized = Centralized().risk(theta, n)
  ones = [2, 4, 8, 14, 20, 40, 80, 120]
  errors = [squared_errors(model, RandomOnes(i), theta, KEY, n, 100) for i in ones]
  every = np.unique(np.geomspace(1, 200, 60).astype(int))
  _simulated(left, ones, errors, color="C0")
  left.plot(every, [RandomOnes(int(i)).risk(theta, n) for i in every], "C0", label="exact risk")
  left.plot(every, (s**2 + s) / every / n, "C1--", label="s(s + 1)/(k′n), slope −1")
  left.axvline(s / 5, color="gray", linestyle=":", label="k′ = s/5")
  left.set_ylim(bottom=centralized / 2)
  bits = [30, 60, 120, 220, 450, 900, 1300]
  by_bits = [RandomOnes(max_ones(d, k)) for k in bits]
  in_bits = [squared_errors(model, scheme, theta, KEY, n, 100) for scheme in by_bits]
  _simulated(right, bits, in_bits, color="C0")
  fine = np.unique(np.geomspace(24, 1800, 80).astype(int))
  exact = [RandomOnes(max_ones(d, int(k))).risk(theta, n) for k in fine]
  right.plot(fine, exact, "C0", label="exact risk at k′(k)")
  right.axvline(s * math.log2(d), color="C3", linestyle=":", label="k = s log₂ d")
  for panel, x in ((left, "ones sent k′"), (right, "bits sent k")):
    panel.axhline(centralized, color="C2", label="Σθ(1 − θ)/n, centralized")
    _logarithmic(panel, x, "risk")
    panel.set_title(f"Uniform θ, d = {d}, s = {s}, n = {n}")
    panel.legend(**_LEGEND)
  computed = np.polyfit(np.log(bits[:4]), np.log([x.risk(theta, n) for x in by_bits[:4]]), 1)[0]
  return (
    f"slope in k′ up to s/5 {_slope(ones[:5], errors[:5])}; in k up to 220 bits "
    f"{_slope(bits[:4], in_bits[:4])}, computed {computed:.3f}"
  )


def risk_s(figure: Any) -> str:
  """The risk in s."""
  (panel,) = axes_grid(figure, 1)
  d, ones, n = 20_000, 2, 5
  sparsities, errors, exact, key = [40, 80, 160, 320], [], [], KEY
  for s in sparsities:
    model = SparseBernoulli(d, s)
    theta = model.uniform(KEY)
    errors.append(
      squared_errors(model, RandomOnes(ones), theta, jax.random.fold_in(key, s), n, 100)
    )
    exact.append(RandomOnes(ones).risk(theta, n))
  _simulated(panel, sparsities, errors)
  panel.plot(sparsities, exact, "C0", label="exact risk")
  panel.plot(sparsities, np.square(sparsities) / ones / n, "C1--", label="s²/(k′n), slope 2")
  _logarithmic(panel, "sparsity s", "risk")
  panel.set_title(f"Uniform θ, d = {d:,}, k′ = {ones}, n = {n}")
  panel.legend(**_LEGEND)
  return f"slope in s {_slope(sparsities, errors)}"


def knee(figure: Any) -> str:
  """The risk over the centralized one, in multiples of s log d bits."""
  (panel,) = axes_grid(figure, 1)
  d, n, found = 2000, 10, []
  for i, s in enumerate((10, 40, 160)):
    model, color = SparseBernoulli(d, s), f"C{i}"
    theta = model.uniform(KEY)
    unit, centralized = s * math.log2(d), Centralized().risk(theta, n)
    scheme = lambda x, unit=unit: RandomOnes(max_ones(d, round(x * unit)))
    x = np.linspace(max(0.08, 22 / unit), 2, 150)
    ratio = np.array([scheme(i).risk(theta, n) for i in x]) / centralized
    panel.plot(x, ratio, color, label=f"s = {s}, exact")
    points = [0.25, 0.5, 1.0, 1.5]
    errors = [squared_errors(model, scheme(i), theta, KEY, n, 100) / centralized for i in points]
    _simulated(panel, points, errors, label=f"s = {s}, simulated", color=color)
    found.append(f"s = {s}: {x[np.argmax(ratio < 1.05)]:.2f}")
  panel.axvline(1, color="gray", linestyle=":", label="k = s log₂ d")
  panel.axhline(1, color="black", linewidth=0.8)
  panel.set(
    yscale="log",
    xlabel="bits k in multiples of s log₂ d",
    ylabel="risk over centralized risk",
    title=f"Uniform θ, d = {d}",
  )
  panel.legend(**_LEGEND)
  return "within 5 % of the centralized risk from this multiple of s log2 d on: " + ", ".join(found)


def competitors(figure: Any) -> str:
  """Five schemes at equal k, for θ spread out and for θ in a block."""
  d, s, bits = 1000, 40, 100
  model, ones = SparseBernoulli(d, s), max_ones(d, bits)
  schemes: dict[str, Scheme] = {
    "centralized": Centralized(),
    "Theorem 1: random k′ of the ones": RandomOnes(ones),
    "top-k′: first k′ ones": TopOnes(ones),
    "one bit for k coordinates": OneBit(bits),
    "random k′ coordinates": RandomCoordinates(ones),
  }
  n = [2, 8, 32, 128, 512]
  panels = axes_grid(figure, 2)
  for panel, kind in zip(panels, ("uniform", "block"), strict=True):
    theta = getattr(model, kind)(KEY)
    for i, (name, scheme) in enumerate(schemes.items()):
      if kind == "block" and name == "centralized":
        continue  # nothing is random, the risk is 0
      errors = [squared_errors(model, scheme, theta, KEY, j, 30, chunk=2) for j in n]
      _simulated(panel, n, errors, label=name, color=f"C{i}")
      panel.plot(n, [scheme.risk(theta, j) for j in n], f"C{i}")
    _logarithmic(panel, "nodes n", "risk")
    panel.set_title(f"{kind.capitalize()} θ, d = {d}, s = {s}, k = {bits} (k′ = {ones})")
  panels[1].axvline(s / ones, color="gray", linestyle=":", label="n = s/k′")
  for panel in panels:
    panel.legend(fontsize=7)
  return f"lines are exact; on a block top-k' is overtaken at n = s/k' = {s / ones:.1f}"


def gaussian(figure: Any) -> str:
  """Bits until the centralized risk: s log d here, a multiple of d in the Gaussian model."""
  (panel,) = axes_grid(figure, 1)
  d, s, n = 256, 4, 1000
  bits = [16, 32, 64, 128, 256]
  found = []
  for i, sparsity in enumerate((None, s)):
    model = GaussianLocation(d, sparsity)
    theta = model.parameter(KEY)
    run = lambda k, m=model, t=theta: gaussian_squared_errors(m, t, KEY, n, k, 32)
    centralized = run(None).mean()
    ratios = [run(k) / centralized for k in bits]
    name = "Gaussian" if sparsity is None else f"sparse Gaussian, s = {s}"
    _simulated(panel, bits, ratios, label=f"{name}: signs of k coordinates", color=f"C{i + 1}")
    found.append(f"{name} {_slope(bits, ratios)}")
  bernoulli = SparseBernoulli(d, s)
  theta = bernoulli.uniform(KEY)
  fine = np.unique(np.geomspace(20, d, 60).astype(int))
  centralized = Centralized().risk(theta, n)
  exact = [RandomOnes(max_ones(d, int(k))).risk(theta, n) / centralized for k in fine]
  panel.plot(fine, exact, "C0", label=f"sparse Bernoulli, s = {s}: Theorem 1, exact")
  panel.axvline(s * math.log2(d), color="gray", linestyle=":", label="k = s log₂ d")
  panel.axhline(1, color="black", linewidth=0.8)
  _logarithmic(panel, "bits k", "risk over centralized risk")
  panel.set(title=f"d = {d}, n = {n}", ylim=(0.5, 200))
  panel.set_xticks(bits, labels=bits)
  panel.set_xticks([], minor=True)
  panel.legend(**_LEGEND)
  return "slope in k up to k = d: " + "; ".join(found)


def orlicz(figure: Any) -> str:
  """The score's norm over the cube of the lower bound, in units of N."""
  (panel,) = axes_grid(figure, 1)
  largest = 0.0
  for i, ratio in enumerate((2, 10, 1000, 10**6)):
    theta = np.linspace(0.5, 1, 100) / ratio
    bound = _bounds.score_norm_bound(ratio, 1)
    every, one = _bounds.score_subgaussian_norm(theta), _bounds.score_orlicz_norm(theta)
    panel.plot(theta * ratio, every / bound, f"C{i}", label=f"d/s = {ratio:,}")
    panel.plot(theta * ratio, one / bound, f"C{i}--")
    largest = max(largest, float((every / bound).max()))
  panel.axhline(1, color="black", linewidth=0.8)
  panel.set(
    xlabel="θ in units of s/d",
    ylabel="Ψ₂ norm of the score over N",
    ylim=(0, 1.1),
    title="Solid: bound for every direction.\nDashed: one coordinate, exact.",
  )
  panel.legend(**_LEGEND)
  return f"at most {largest:.3f} N anywhere on the cube"
