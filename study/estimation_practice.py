"""The figures of what comes after the model: contraction, memory SGD, real gradients."""

import functools
from typing import Any

import jax
import numpy as np

import rtopk_jax
from rtopk_jax.estimation import _convergence, _gradients, _networks, _statistics, _subsample
from rtopk_jax.estimation._convex import LogisticRegression
from study.estimation_scheme import _LEGEND, KEY, axes_grid

NUM_WORKERS = (5, 20)
DENSITY = 0.01
GRID = (1, 2, 5, 10, 20, 50, 100)  # r/k; the last is r = d


def contraction(figure: Any) -> str:
  """The measured contraction against its closed form and 1 − k/d."""
  (panel,) = axes_grid(figure, 1)
  d, density, worst = 1000, 0.02, 0.0
  normal = jax.random.normal(KEY, (d,))
  vectors = {"equal magnitudes": normal / abs(normal), "normal": normal, "cubed normal": normal**3}
  ratios = np.array([1, 2, 5, 10, 20, 50])
  for i, (name, vector) in enumerate(vectors.items()):
    intervals = []
    for ratio in ratios:
      selector = rtopk_jax.rtop_k(density, float(ratio))
      measured = _convergence.measured_contractions(selector, vector, KEY, 500)
      intervals.append(_statistics.mean_interval(measured))
    mean, low, high = np.array(intervals).T
    panel.errorbar(
      ratios, mean, [mean - low, high - mean], fmt="o", capsize=3, color=f"C{i}", label=name
    )
    exact = [_convergence.contraction(vector, 20, int(20 * ratio)) for ratio in ratios]
    panel.plot(ratios, exact, f"C{i}", linewidth=1)
    worst = max(worst, low.max())
  panel.axhline(1 - density, color="black", linestyle="--", label="1 − k/d (Stich et al.)")
  panel.set(
    xscale="log",
    xlabel="r/k",
    ylabel="E‖x − C(x)‖² / ‖x‖²",
    title=f"d = {d}, k = 20; lines: closed form",
  )
  panel.legend(**_LEGEND)
  return f"largest lower confidence limit {worst:.4f}, bound {1 - density}"


def memory_sgd(figure: Any) -> str:
  """Memory SGD on logistic regression against Theorem 2.4 of Stich et al."""
  (panel,) = axes_grid(figure, 1)
  problem = LogisticRegression.random(seed=0, examples=500, dimension=100)
  steps, density, n, found = 4000, 0.05, 5, []
  selectors = {
    "dense": (rtopk_jax.top_k(1.0), 1.0),
    "top-k": (rtopk_jax.top_k(density), density),
    "rTop-k, r/k = n": (rtopk_jax.rtop_k(density), density),
    "random-k": (rtopk_jax.random_k(density), density),
  }
  t = np.unique(np.geomspace(1, steps, 80).astype(int))
  bounds = {}
  for i, (name, (selector, share)) in enumerate(selectors.items()):
    shift = 7 / density  # the same steps for all
    run = _convergence.memory_sgd(problem, selector, KEY, num_workers=n, steps=steps, shift=shift)
    panel.plot(t, run.suboptimality[t - 1], f"C{i}", label=name)
    bounds[share] = _convergence.memory_sgd_bound(
      problem, t, density=share, shift=shift, second_moment=run.second_moment
    )
    found.append(f"{name} {run.suboptimality[-1]:.1e} (bound {bounds[share][-1]:.1e})")
  panel.plot(t, bounds[1.0], "C0--", label="bound, k = d")
  panel.plot(t, bounds[density], "C3--", label="bound, k/d = 5 %")
  panel.set(
    xscale="log",
    yscale="log",
    xlabel="steps T",
    ylabel="f(x̄) − f*",
    title=f"Logistic regression, d = 100, n = {n}",
  )
  panel.legend(**_LEGEND)
  return f"after {steps} steps: " + ", ".join(found)


@functools.cache
def _samples() -> dict[str, list[_gradients.GradientSample]]:
  """Gradients of both networks, early and late in a short training."""
  result = {}
  for make, steps in ((_networks.digits_resnet, (50, 300)), (_networks.text_lstm, (50, 300))):
    task = make(KEY)
    result[task.name] = _gradients.gradient_samples(
      task, steps, num_workers=max(NUM_WORKERS), batch=32, draws=4
    )
  return result


def gradient_fit(figure: Any) -> str:
  """How well the sparse model fits: energy in the largest entries, agreement on which these are."""
  left, right = axes_grid(figure, 2)
  found = []
  for i, (name, samples) in enumerate(_samples().items()):
    for sample, style in zip(samples, ("--", "-"), strict=True):
      d, label = sample.held_out.size, f"{name} (d = {sample.held_out.size:,}), step {sample.step}"
      counts = np.unique(np.geomspace(10, d, 40).astype(int))
      workers = sample.workers[0, : NUM_WORKERS[0]]
      share = _gradients.energy_share(workers, counts).mean(0)
      agree = _gradients.top_agreement(workers, counts)
      left.plot(counts / d, share, f"C{i}{style}", label=label)
      right.plot(counts / d, agree, f"C{i}{style}", label=label)
      at = np.searchsorted(counts, DENSITY * d)
      found.append(f"{name} step {sample.step}: {share[at]:.0%} and {agree[at]:.0%}")
  chance = np.geomspace(1e-4, 1, 50)
  left.plot(chance, chance, "k:", linewidth=1, label="equal magnitudes")
  right.plot(chance, chance, "k:", linewidth=1, label="independent workers")
  left.set(ylabel="‖top_r(g)‖² / ‖g‖²", title="Energy in the r largest entries of a worker")
  right.set(ylabel="mean |Tᵢ ∩ Tⱼ| / r", title="Agreement of 5 workers' top-r sets")
  for panel in (left, right):
    panel.set(xscale="log", xlabel="r/d")
    panel.legend(fontsize=7)
  return "energy in the top 1 % and agreement on it: " + "; ".join(found)


def subsample(figure: Any) -> str:
  """The error of Algorithm 1's estimate of a held-out gradient over r/k."""
  panels = axes_grid(figure, 2, rows=2)
  cells = [(name, n) for name in _samples() for n in NUM_WORKERS]
  found = []
  for panel, (name, n) in zip(panels, cells, strict=True):
    sample = _samples()[name][-1]
    target, draws = sample.held_out.astype(np.float64), sample.workers[:, :n].astype(np.float64)
    d, scale = target.size, float(target @ target)
    k = round(DENSITY * d)
    at = lambda ratio, d=d, k=k: np.minimum(d, np.round(np.asarray(ratio) * k).astype(int)) - k
    ratios = np.geomspace(1, d / k, 200)
    for rescale, color, words in ((False, "C0", "without"), (True, "C1", "with")):
      errors = [_subsample.subsample_errors(g, k, rescale=rescale, target=target) for g in draws]
      mean = np.mean(errors, axis=0) / scale
      least = int(np.argmin(mean))
      panel.plot(ratios, mean[at(ratios)], color, label=f"rTop-k {words} the factor r/k")
      panel.plot((k + least) / k, mean[least], "*", color=color, markersize=11)
      if not rescale:
        panel.axhline(mean[0], color="C2", linestyle="--", label="top-k")
        panel.axhline(mean[-1], color="C3", linestyle="--", label="random-k without the factor")
      table = " ".join(f"{x:.2f}" for x in mean[at(GRID)])
      found.append(
        f"\n  {name}, n = {n}, {words} the factor: {table}; least {mean[least]:.2f} at "
        f"{(k + least) / k:.2f}"
      )
    dense = np.mean([np.sum((g.mean(0) - target) ** 2) for g in draws]) / scale
    found[-1] += f"; all entries {dense:.2f}"
    panel.axhline(dense, color="black", linewidth=0.8, label="all entries of all workers")
    panel.axvline(n, color="gray", linestyle=":", label="r/k = n")
    panel.set(xscale="log", yscale="log", ylim=(0.02, 20), xlabel="r/k")
    panel.set_ylabel("E‖ĝ − ḡ‖² / ‖ḡ‖²")
    panel.set_title(f"{name}, n = {n}, k/d = {DENSITY:.0%}")
  panels[0].legend(fontsize=7, loc="upper left")
  return f"error at r/k = {', '.join(map(str, GRID))}:" + "".join(found)
