"""What explore reads in the models, drawn: attention weights, surprisal of tokens, cosines of vectors."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from formats.errors import BadInput
from pictures.figure import new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_attention", "draw_similarities", "draw_surprisal"]


def draw_attention(weights: np.ndarray, columns: list[str], rows: list[str] | None = None,
                   out: str | None = None) -> "Figure":
    """Draw the attention weights of each layer (down) and head (across); the darker, the more.

    Args:
        weights: [l, h, t, j] of one text, as explore.attention gives them for a batch: its [:, 0].
        columns: the tokens that are attended to; longer weights, which are padding there, are cut to them.
        rows: the tokens that attend; None: the same.
    Returns:
        the Figure.
    Raises:
        BadInput: another number of axes, or more tokens than weights.
    """
    rows = columns if rows is None else rows
    weights = np.asarray(weights)
    if weights.ndim != 4 or weights.shape[2] < len(rows) or weights.shape[3] < len(columns):
        raise BadInput(f"weights are {list(weights.shape)}, expected [layers, heads, {len(rows)} or more, "
                       f"{len(columns)} or more] for these tokens: of one text of the batch, such as weights[:, 0]")
    n_layer, n_head = weights.shape[:2]
    size = max(1.2, 0.16 * max(len(rows), len(columns)))
    figure = new_figure(size * n_head + 1, size * n_layer + 1)
    grid = figure.subplots(n_layer, n_head, squeeze=False, sharex=True, sharey=True)
    for layer, of_layer in enumerate(grid):
        for head, axes in enumerate(of_layer):
            axes.imshow(weights[layer, head, :len(rows), :len(columns)], cmap="Greys", vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
            axes.set_yticks(range(len(rows)), rows, fontsize=6)
            if layer == 0:
                axes.set_title(f"head {head}", fontsize=8)
        of_layer[0].set_ylabel(f"layer {layer}", fontsize=8)
    return save(figure, out)


def draw_surprisal(table: pd.DataFrame, out: str | None = None) -> "Figure":
    """Draw the surprisal of each token as a bar over it, a row for each text.

    Args:
        table: what explore.surprisal returns.
    Returns:
        the Figure.
    """
    texts = [rows for _, rows in table.groupby("text")]
    longest = max(map(len, texts), default=1)
    highest = 1.05 * table["surprisal"].max() if table["surprisal"].notna().any() else 1  # one scale for all texts
    figure = new_figure(max(4, 0.45 * longest), 1.9 * max(len(texts), 1))
    for axes, rows in zip(figure.subplots(max(len(texts), 1), 1, squeeze=False)[:, 0], texts, strict=False):
        values = rows["surprisal"].to_numpy(dtype=float)
        axes.bar(range(len(rows)), np.nan_to_num(values), color="0.4")
        axes.set_xticks(range(len(rows)), rows["token"], rotation=60, ha="right", fontsize=8)
        axes.set(ylabel="surprisal (nats)", xlim=(-0.6, longest - 0.4), ylim=(0, highest))
        axes.spines[["top", "right"]].set_visible(False)
    return save(figure, out)


def draw_similarities(cosines: np.ndarray, labels: list[str], out: str | None = None) -> "Figure":
    """Draw a table of cosines, with its numbers.

    Args:
        cosines: [n, n], see explore.similarities. labels: n names.
    Returns:
        the Figure.
    """
    cosines = np.asarray(cosines)
    size = 1.5 + 0.6 * len(labels)
    figure = new_figure(size + 1, size)
    axes = figure.subplots()
    axes.imshow(cosines, cmap="Greys", vmin=-1, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for i, row in enumerate(cosines):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if value > 0.4 else "black")
    return save(figure, out)
