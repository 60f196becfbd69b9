"""Pictures of results."""

from collections.abc import Mapping, Sequence


def dots(path: str | None, groups: Mapping[str, Mapping[str, float]], unit: str) -> None:
  """Groups of numbers on one logarithmic axis, where a path is given.

  Args:
    path: of the PNG, or None.
    groups: a number for every name, in each group.
    unit: of the numbers.
  """
  if path is None:
    return
  from matplotlib import figure, ticker

  counts = [len(group) for group in groups.values()]
  drawing = figure.Figure(figsize=(7, 0.7 + 0.4 * len(counts) + 0.22 * sum(counts)))
  drawing.set_layout_engine("constrained")
  axes = drawing.subplots(
    len(counts), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [n + 1 for n in counts]}
  )[:, 0]
  for ax, (title, numbers) in zip(axes, groups.items(), strict=True):
    names, values = list(numbers), list(numbers.values())
    # A logarithmic axis has no zero for a bar to begin at.
    ax.plot(values, names, "o", color="tab:blue")
    for name, value in numbers.items():
      text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
      ax.annotate(text, (value, name), (6, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xscale("log")
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(alpha=0.3)
    ax.tick_params(labelsize=8)
    ax.margins(x=0.1)
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,g}"))
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
  axes[-1].set_xlabel(unit, fontsize=8)
  drawing.savefig(path, dpi=150)


def curves(
  path: str | None,
  points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  labels: tuple[str, str],
  log_y: bool = False,
) -> None:
  """Curves over a logarithmic axis, where a path is given.

  Args:
    path: of the PNG, or None.
    points: abscissae and ordinates of each curve, by its name.
    labels: of the axes.
    log_y: whether ordinates have a logarithmic axis, too.
  """
  if path is None:
    return
  from matplotlib import figure, ticker

  drawing = figure.Figure(figsize=(7, 3.6), layout="constrained")
  ax = drawing.subplots()
  ax.set_prop_cycle(color=("0.35", "#d1495b", "#8d9f3a", "#2e6f95"))
  for name, (x, y) in points.items():
    ax.plot(x, y, marker="o", markersize=3, label=name)
  ax.set_xscale("log")
  ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  ax.xaxis.set_major_formatter("{x:g}")
  ax.xaxis.set_minor_formatter(ticker.NullFormatter())
  if log_y:
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:,.0f}")
  ax.set_xlabel(labels[0])
  ax.set_ylabel(labels[1])
  ax.grid(alpha=0.3)
  ax.legend(frameon=False)
  ax.spines[["top", "right"]].set_visible(False)
  drawing.savefig(path, dpi=150)
