"""What all pictures share: the empty figure, colours and markers, texts that stand as they are, labels at line ends.

The colours are Okabe and Ito's, which people of every colour vision tell apart; markers and strokes differ too, for
print in grey.
"""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scipy.optimize import isotonic_regression

from formats.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["COLORS", "GREY", "MARKERS", "STROKES", "label_ends", "new_figure", "save", "set_text", "spread", "style_of"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
STROKES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"
GREY = "0.45"  # of what was not measured: chance, published numbers
SIZE = 9       # of texts, in points


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty matplotlib Figure, in inches. It is not pyplot's: it needs no screen and no global state."""
    # A notebook's terminal names a backend in MPLBACKEND that need not be installed here. matplotlib reads the variable
    # when it is imported, and cannot be imported where it does not know the name.
    backend = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
    import matplotlib
    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A Figure that a notebook shows without any setting."""

        def _repr_png_(self):
            data = io.BytesIO()
            self.savefig(data, format="png", dpi=100)
            return data.getvalue()

    return Picture(figsize=(width, height), layout="constrained")


def save(figure: "Figure", out: str | None) -> "Figure":
    """Write a figure where a path is given, in the format of its ending (else PNG); return it."""
    if out is not None:
        with write_atomically(out) as temporary:
            figure.savefig(temporary, format=os.path.splitext(out)[1].lstrip(".") or "png", dpi=120)
    return figure


def style_of(number: int) -> dict:
    """Return colour, stroke and marker of the line with a number, as matplotlib's plot takes them.

    Twenty-eight lines differ in colour or stroke.
    """
    turn = number % len(COLORS) + number // len(COLORS)
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)],
            "linestyle": STROKES[turn % len(STROKES)], "markersize": 4.5, "linewidth": 1.5}


def set_text(text: "Text", words: str) -> None:
    """Set a text as it stands: matplotlib would take $x$ for mathematics, and a file's name may be any bytes."""
    text.set_parse_math(False)
    text.set_text(words.encode(errors="backslashreplace").decode())


def tidy(axes: "Axes", title: str | None = None, pad: float = 6) -> None:
    """Take away the frame's upper and right side, draw faint lines across, and set a title, pad points above them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SIZE)
    if title is not None:
        set_text(axes.set_title("", fontsize=SIZE + 1, loc="left", pad=pad), title)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights as little as possible (by squares) until any two are a gap apart, and all within 0 to 1.

    Their order stays. Where they do not fit, they go below 0 and above 1 alike.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    steps = [gap * k for k in range(len(order))]
    found = isotonic_regression([heights[i] - step for i, step in zip(order, steps, strict=True)]).x if order else []
    highest = 1 - steps[-1] if order else 0
    middle = highest / 2
    kept = [min(max(value, min(0, middle)), max(highest, middle)) for value in found]
    moved = [0.0] * len(order)
    for i, value, step in zip(order, kept, steps, strict=True):
        moved[i] = float(value) + step
    return moved


def label_ends(ends: dict["Axes", list[tuple[str, float, float, str]]]) -> None:
    """Write names at the right of axes, each at the height where its line ends or next to it; none covers another.

    Call it last: the heights are those of the finished picture.

    Args:
        ends: {axes: [(name, x, y, colour)]}, x and y where the line ends, in the units of the axes.
    """
    if not ends:
        return
    figure = next(iter(ends)).figure
    figure.draw_without_rendering()  # which lays out
    for axes, labels in ends.items():
        points = [axes.transAxes.inverted().transform(axes.transData.transform((x, y))) for _, x, y, _ in labels]
        line = 1.35 * SIZE / 72 * figure.dpi / axes.get_window_extent().height  # height of a line of text
        heights = spread([y for _, y in points], line)
        for (name, _, _, color), point, height in zip(labels, points, heights, strict=True):
            text = axes.annotate("", point, (1.03, height), xycoords="axes fraction", textcoords="axes fraction",
                                 color=color, fontsize=SIZE, va="center", annotation_clip=False,
                                 arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6,
                                             "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)})
            set_text(text, name)
