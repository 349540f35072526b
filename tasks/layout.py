"""How the texts of a task become one sequence for GPT, as in figure 1 of the paper; token ids in, arrays out."""

import numpy as np

from formats.errors import BadInput

__all__ = ["SPECIAL", "fit", "longest", "transform_roc", "transform_text"]

SPECIAL = ("_start_", "_delimiter_", "_classify_")


def fit(story, endings, max_len, n_ctx):
    """Cut a story and its endings to max_len tokens each; where they still do not fit into n_ctx, more.

    Only a run that goes on, or starts from another's parameters, has a given n_ctx which they may not fit. There the
    endings keep up to half of it, and the story the rest.
    """
    if len(story[:max_len]) + max(len(ending[:max_len]) for ending in endings) + 3 > n_ctx:
        endings = [ending[:n_ctx // 2 - 2] for ending in endings]
        story = story[:n_ctx - 3 - max(map(len, endings))]
    return story[:max_len], [ending[:max_len] for ending in endings]


def transform_roc(X1, X2, X3, max_len, n_ctx, n_vocab):
    """Lay out cloze examples for the model (TF function `transform_roc`).

    Each gives two sequences: _start_ story[:max_len] _delimiter_ ending[:max_len] _classify_.

    Args:
        X1, X2, X3: token ids of the stories, the first and the second endings.
        max_len: tokens of a story or an ending that are kept.
        n_ctx: length of a sequence; shorter ones are padded with token 0, longer ones cut, see fit.
        n_vocab: tokens; the three special tokens come right after, then the positions.
    Returns:
        X: int32 [n, 2, n_ctx, 2], token ids and position ids. M: float32 [n, 2, n_ctx], 1 at tokens, 0 at padding.
    """
    start, delimiter, classify = range(n_vocab, n_vocab + len(SPECIAL))
    X = np.zeros((len(X1), 2, n_ctx, 2), dtype=np.int32)
    M = np.zeros((len(X1), 2, n_ctx), dtype=np.float32)
    X[..., 1] = np.arange(n_ctx) + n_vocab + len(SPECIAL)
    for i, (story, *endings) in enumerate(zip(X1, X2, X3, strict=True)):
        story, endings = fit(story, endings, max_len, n_ctx)
        for k, ending in enumerate(endings):
            tokens = [start, *story, delimiter, *ending, classify]
            X[i, k, :len(tokens), 0] = tokens
            M[i, k, :len(tokens)] = 1
    return X, M


def longest(splits, max_len):
    """Return how many positions the longest sequence of the splits (X1, X2, X3, ...) needs, with 3 special tokens."""
    return 3 + max(len(x1[:max_len]) + max(len(x2[:max_len]), len(x3[:max_len]))
                   for X1, X2, X3, *_ in splits for x1, x2, x3 in zip(X1, X2, X3, strict=True))


def transform_text(X1, n_vocab, n_ctx=None, max_len=None):
    """Lay out single texts for a classifier: _start_ text[:max_len] _classify_ (paper section 3.3).

    Args:
        X1: token ids of the texts.
        n_vocab: tokens; the three special tokens come right after, then the positions.
        n_ctx: length of a sequence; shorter ones are padded with token 0. None: as long as the longest one.
        max_len: tokens of a text that are kept; None: all.
    Returns:
        X: int32 [n, n_ctx, 2], token ids and position ids. M: float32 [n, n_ctx], 1 at tokens, 0 at padding.
    Raises:
        BadInput: there are no texts, or one does not fit into n_ctx; its number.
    """
    if not len(X1):
        raise BadInput("X1 holds no texts; give at least one")
    start, _, classify = range(n_vocab, n_vocab + len(SPECIAL))
    rows = [[start, *text[:max_len], classify] for text in X1]
    n_ctx = max(map(len, rows)) if n_ctx is None else n_ctx
    X = np.zeros((len(rows), n_ctx, 2), dtype=np.int32)
    M = np.zeros((len(rows), n_ctx), dtype=np.float32)
    X[..., 1] = np.arange(n_ctx) + n_vocab + len(SPECIAL)
    for i, row in enumerate(rows):
        if len(row) > n_ctx:
            raise BadInput(f"X1[{i}] needs {len(row)} positions with its special tokens, but n_ctx is {n_ctx}; give "
                           f"max_len {n_ctx - 2} to cut such texts")
        X[i, :len(row), 0] = row
        M[i, :len(row)] = 1
    return X, M
