"""How examples that are too long are cut, as lengths: which part of a sequence gives way (the papers do not say).

Every rule takes int [n, p] lengths of the parts and returns int [n, p], what is kept of them. The parts of a multiple
choice are its context, of one or two texts, and its choices; each choice makes a sequence with the whole context, so
that the context is cut alike for all of them.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tasks.examples import Examples
from tasks.layout import SPECIAL

__all__ = ["CUTS", "fit", "needed"]


def cut_longest(lengths: np.ndarray, room: int, n_context: int | None) -> np.ndarray:
    """The longest part gives way first, token by token, the later one of equals, until all fit.

    Args:
        room: tokens that fit besides the special ones.
        n_context: texts in the context of a multiple choice; None: all the parts are in one sequence.
    """
    kept = lengths.copy()
    longest = slice(None) if n_context is None else slice(n_context, None)
    for row in np.flatnonzero(_total(lengths, n_context) > room):
        parts = kept[row]
        if n_context is None:
            parts[:] = _shorten(parts, room)
        else:
            *context, choice = _shorten(np.append(parts[:n_context], parts[longest].max()), room)
            parts[:n_context] = context
            parts[longest] = np.minimum(parts[longest], choice)
    return kept


def _shorten(parts, room):
    """Return the lengths of some parts after the longest gave way until they add up to `room`."""
    low, high = 0, int(parts.max())  # find the largest common limit at which all fit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(parts, middle).sum() <= room else (low, middle - 1)
    kept = np.minimum(parts, low)
    left = room - kept.sum()  # the first of those that were cut keep one token more
    for i in np.flatnonzero(parts > low)[:left]:
        kept[i] += 1
    return kept


def cut_article(lengths: np.ndarray, room: int, n_context: int) -> np.ndarray:
    """The first part alone is cut, RACE's article; where the others are too long by themselves, they as cut_longest."""
    kept = lengths.copy()
    rest = _total(lengths[:, 1:], n_context - 1)
    kept[:, 0] = np.minimum(kept[:, 0], np.maximum(room - rest, 0))
    if (rest > room).any():
        kept[:, 1:] = cut_longest(kept[:, 1:], room, n_context - 1)
    return kept


def _total(lengths, n_context):
    """int [n], tokens of each example's longest sequence, without the special ones."""
    if n_context is None:
        return lengths.sum(1)
    return lengths[:, :n_context].sum(1) + lengths[:, n_context:].max(1)


def cut_released(lengths: np.ndarray, room: int, n_context: int, max_len: int) -> np.ndarray:
    """Story Cloze's rule in the released code, each part to max_len; then as layout.fit."""
    n_ctx = room + len(SPECIAL)
    kept = np.minimum(lengths, max_len)
    for row in np.flatnonzero(_total(kept, n_context) > room):
        kept[row, 1:] = np.minimum(lengths[row, 1:], n_ctx // 2 - 2)
        kept[row, 0] = min(lengths[row, 0], room - kept[row, 1:].max())
        kept[row] = np.minimum(kept[row], max_len)
    return kept


CUTS: dict[str, Callable] = {"longest": cut_longest, "article": cut_article, "released": cut_released}


def _n_special(examples):
    return 2 if examples.transformation == "classification" else len(SPECIAL)


def needed(examples: Examples, n_ctx: int, cut: str = "longest") -> int:
    """Return how many positions the longest sequence needs, once it is cut to n_ctx; see fit."""
    kept = fit(examples, n_ctx, cut)[0].kept
    return int(_total(kept, _context(examples)).max(initial=0)) + _n_special(examples)


def _context(examples):
    return examples.n_context if examples.transformation == "multiple_choice" else None


def fit(examples: Examples, n_ctx: int, cut: str = "longest", asked: int | None = None) -> tuple[Examples, int]:
    """Cut the examples that are too long.

    Args:
        n_ctx: positions of a sequence.
        cut: name of the rule, in CUTS.
        asked: positions that were asked for, where the parameters have another number of them; the released rule cuts a
            part to half of these.
    Returns:
        the examples with what is kept of their parts, and how many of them were cut.
    """
    lengths = examples.texts.lengths[examples.parts]
    room = n_ctx - _n_special(examples)
    more = {"max_len": (asked or n_ctx) // 2 - 2} if cut == "released" else {}
    kept = CUTS[cut](lengths, room, _context(examples), **more).astype(np.int32)
    return replace(examples, kept=kept), int((kept < lengths).any(1).sum())
