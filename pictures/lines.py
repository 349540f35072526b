"""Lines over updates, layers or anything: the median of several seeds, their range as a band, names at the ends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pictures.figure import GREY, SIZE, label_ends, new_figure, save, style_of, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Line", "Panel", "draw_lines"]

MOST_MARKERS = 12  # on one line


class Line(NamedTuple):
    """A line: its name, and for each x the values of all seeds; an empty list or NaN leaves a gap."""

    label: str
    x: Sequence[float]
    values: Sequence[Sequence[float]]


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        lines: list of Line. Lines of one name look alike in all panels of a picture.
        xlabel, ylabel: with units. title: such as the task.
        chance: value of guessing, drawn as a thin line.
        log_x: x from 1 on, in powers of ten.
        ticks: {x: name} where x are no numbers to read. ylim: (lowest, highest), either None.
    """

    lines: Sequence[Line]
    xlabel: str
    ylabel: str
    title: str | None = None
    chance: float | None = None
    log_x: bool = False
    ticks: dict | None = None
    ylim: tuple = (None, None)


def draw_lines(panels: Sequence[Panel], out: str | None = None, columns: int = 2) -> "Figure":
    """Draw panels of lines: medians with their markers, bands from the lowest to the highest seed.

    Args:
        panels: at least one. out: path to write to (.png, .svg, .pdf). columns: panels side by side at most.
    Returns:
        the Figure.
    """
    columns = min(columns, len(panels))
    n_rows = -(-len(panels) // columns)
    numbers = {}
    for panel in panels:
        for line in panel.lines:
            numbers.setdefault(line.label, len(numbers))
    height = max(3.2, 0.21 * (2 + max(len(panel.lines) for panel in panels)))
    figure = new_figure(5.4 * columns, height * n_rows)
    grid = figure.subplots(n_rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels):]:
        axes.set_axis_off()
    ends = {}
    for axes, panel in zip(grid, panels, strict=False):
        ends[axes] = _draw_panel(axes, panel, numbers)
    label_ends(ends)
    return save(figure, out)


def _draw_panel(axes, panel, numbers):
    """Draw one panel; return where its lines end, as label_ends takes it."""
    tidy(axes, panel.title)
    if panel.log_x:
        axes.set_xscale("log")
    ends = []
    for line in panel.lines:
        style, rows = style_of(numbers[line.label]), [np.asarray(row, dtype=float) for row in line.values]
        rows = [row[~np.isnan(row)] for row in rows]
        x, many = np.asarray(line.x, dtype=float), max(map(len, rows), default=0) > 1
        low, middle, high = (np.array([how(row) if len(row) else np.nan for row in rows])
                             for how in (np.min, np.median, np.max))
        axes.plot(x, middle, label=line.label, markevery=max(1, -(-len(x) // MOST_MARKERS)), **style)
        if many:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        there = np.flatnonzero(~np.isnan(middle))
        if len(there):
            ends.append((line.label, x[there[-1]], middle[there[-1]], style["color"]))
    axes.set_xlabel(panel.xlabel, fontsize=SIZE)
    axes.set_ylabel(panel.ylabel, fontsize=SIZE)
    if panel.ticks is not None:
        axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))
    if panel.chance is not None:
        axes.axhline(panel.chance, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    axes.set_ylim(*panel.ylim)
    if panel.chance is not None:
        ends.append(("chance", axes.get_xlim()[1], panel.chance, GREY))
    return ends
