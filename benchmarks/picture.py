"""Pictures of results."""

from collections.abc import Mapping, Sequence


def bars(path: str | None, groups: Mapping[str, Mapping[str, float]], unit: str) -> None:
  """Groups of bars on a logarithmic axis, where a path is given.

  Args:
    path: of the PNG, or None.
    groups: a number for every name, in each group.
    unit: of the numbers.
  """
  if path is None:
    return
  from matplotlib import figure

  drawing = figure.Figure(
    figsize=(8, 0.6 + 0.22 * sum(map(len, groups.values()))), layout="constrained"
  )
  axes = drawing.subplots(len(groups), sharex=True, squeeze=False)[:, 0]
  for ax, (title, numbers) in zip(axes, groups.items(), strict=True):
    drawn = ax.barh(list(numbers), list(numbers.values()), color="tab:blue")
    ax.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
    ax.set_title(title, fontsize=9, loc="left")
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.margins(x=0.15)
    ax.tick_params(labelsize=8)
  axes[-1].set_xlabel(unit)
  drawing.savefig(path, dpi=150)


def lines(
  path: str | None,
  x: Sequence[float],
  curves: Mapping[str, Sequence[float]],
  labels: tuple[str, str],
) -> None:
  """Curves on logarithmic axes, where a path is given.

  Args:
    path: of the PNG, or None.
    x: the abscissae of all.
    curves: the ordinates of each, by name.
    labels: of the axes.
  """
  if path is None:
    return
  from matplotlib import figure

  drawing = figure.Figure(figsize=(6, 4), layout="constrained")
  ax = drawing.subplots()
  for name, y in curves.items():
    ax.plot(x, y, marker="o", label=name)
  ax.set_xscale("log", base=2)
  ax.set_yscale("log")
  ax.set_xlabel(labels[0])
  ax.set_ylabel(labels[1])
  ax.grid(alpha=0.3)
  ax.legend(fontsize=8)
  drawing.savefig(path, dpi=150)
