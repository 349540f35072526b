"""A row for each variant of an experiment: a dot for every seed, the range, the median in numbers."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pictures.figure import COLORS, GREY, SIZE, label_ends, new_figure, save, set_text, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DotPanel", "Row", "draw_dots", "draw_seeds"]


class Row(NamedTuple):
    """A variant: its name, a value for each seed, and the published value where there is one for the same task."""

    label: str
    values: Sequence[float]
    published: float | None = None


class DotPanel(NamedTuple):
    """One pair of axes: its rows from top to bottom, what is measured, the task, and the value of guessing."""

    rows: Sequence[Row]
    xlabel: str
    title: str | None = None
    chance: float | None = None


def median_and_range(values: Sequence[float]) -> str:
    """Return '75.3', or '75.3 (70.1 to 78.0)' of several values."""
    middle = f"{statistics.median(values):.1f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.1f} to {max(values):.1f})"


def draw_dots(panels: Sequence[DotPanel], out: str | None = None, columns: int = 2) -> "Figure":
    """Draw panels of rows: a dot for every seed on a bar from the lowest to the highest, a stroke at the median.

    A hollow diamond is the published value.

    Args:
        panels: at least one. out: path to write to. columns: panels side by side at most.
    Returns:
        the Figure.
    """
    columns = min(columns, len(panels))
    n_rows = -(-len(panels) // columns)
    most = max(len(panel.rows) for panel in panels)
    figure = new_figure(5.6 * columns, (1.0 + 0.36 * most) * n_rows)
    grid = figure.subplots(n_rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels):]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel)
    return save(figure, out)


def _draw_panel(axes, panel):
    tidy(axes, panel.title, pad=6 if panel.chance is None else 16)
    axes.grid(visible=False)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set(xlabel=panel.xlabel, ylim=(len(panel.rows) - 0.5, -0.5))
    axes.xaxis.label.set_fontsize(SIZE)
    axes.set_yticks(range(len(panel.rows)), [row.label for row in panel.rows], parse_math=False)
    for y, row in enumerate(panel.rows):
        color = COLORS[y % len(COLORS)]
        if len(row.values):
            axes.plot([min(row.values), max(row.values)], [y, y], color=color, linewidth=6, alpha=0.25,
                      solid_capstyle="round")
            axes.plot(row.values, [y] * len(row.values), "o", color=color, markersize=4.5, label=row.label)
            axes.plot([statistics.median(row.values)] * 2, [y - 0.28, y + 0.28], color=color, linewidth=2)
        if row.published is not None:
            axes.plot([row.published], [y], "D", markerfacecolor="white", markeredgecolor="black", markersize=5.5)
        words = [median_and_range(row.values)] if len(row.values) else ["not run"]
        words += [] if row.published is None else [f"paper {row.published:.1f}"]
        text = axes.text(1.02, y, "", transform=axes.get_yaxis_transform(), va="center", fontsize=SIZE, color="black")
        set_text(text, "; ".join(words))
    if panel.chance is not None:
        axes.axvline(panel.chance, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
        axes.text(panel.chance, 1.0, "chance", transform=axes.get_xaxis_transform(), va="bottom", ha="center",
                  fontsize=SIZE - 1, color=GREY)
    axes.margins(x=0.08)


def draw_seeds(accuracies: dict[int, float], out: str | None = None, published: dict[str, float] | None = None,
               title: str | None = None, what: str = "test accuracy (%)") -> "Figure":
    """Draw the value of every seed as a dot, their median as a line, and published numbers as thin lines.

    Args:
        accuracies: {seed: percent}. published: {label: percent}. what: is drawn, the axis' name.
    Returns:
        the Figure.
    """
    figure = new_figure(7, 3.6)
    axes = figure.subplots()
    tidy(axes, title)
    seeds, median = sorted(accuracies), statistics.median(accuracies.values())
    axes.set(xlim=(-0.5, len(seeds) - 0.5))
    axes.set_xlabel("seed", fontsize=SIZE)
    axes.set_ylabel(what, fontsize=SIZE)
    axes.plot(range(len(seeds)), [accuracies[seed] for seed in seeds], "o", color=COLORS[0], label="one seed")
    lines = [(f"median: {median:.2f}", median, "-", COLORS[0]),
             *((label, value, "--", GREY) for label, value in (published or {}).items())]
    for label, value, stroke, color in lines:
        axes.axhline(value, linestyle=stroke, color=color, linewidth=1, label=label, zorder=0)
    axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axes.margins(y=0.1)
    label_ends({axes: [(label, len(seeds) - 0.5, value, color) for label, value, _, color in lines]})
    return save(figure, out)
