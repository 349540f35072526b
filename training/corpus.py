"""Plain text files as training data: lines, sequences of equal length, the part held out, the unigram baseline.

What pretrain.py and pretrain_t5.py share. Nothing here knows about a model or a vocabulary.
"""

import math
import os

import numpy as np

from formats import progress
from formats.errors import BadInput, MissingInput, is_first_process


def read_lines(paths, verbose=True):
    """Yield the lines of plain text files that are not blank, without the blanks around them.

    Args:
        paths: UTF-8 files, with or without a byte-order mark; any line ends.
        verbose: show a progress bar over the bytes.
    Raises:
        MissingInput, BadInput: no such file; or a line is not UTF-8 or holds a NUL byte.
    """
    require_files(paths)
    total = sum(map(os.path.getsize, paths))
    with progress.bar(total=total, unit="B", desc="read", show=verbose and is_first_process()) as bar:
        for path in paths:
            with open(path, "rb") as f:
                for number, raw in enumerate(f, 1):
                    bar.update(len(raw))
                    try:
                        line = raw.decode("utf-8").removeprefix("\ufeff").strip()
                    except UnicodeDecodeError as error:
                        raise BadInput(f"{path}: line {number} is not UTF-8 at byte {error.start}; expected a plain "
                                       "text file in UTF-8: convert it, for example with iconv") from None
                    if "\0" in line:
                        raise BadInput(f"{path}: line {number} holds a NUL byte; expected a plain text file in UTF-8")
                    if line:
                        yield line


def require_files(paths):
    """Raise MissingInput unless all paths are files."""
    for path in paths:
        if not os.path.isfile(path):
            raise MissingInput(f"{path}: not found; --text wants plain text files in UTF-8")


def cut_sequences(ids, length):
    """Return int32 [n, length], the sequences that lie one after another in a long list of ids; the rest is dropped."""
    n = len(ids) // length
    return np.asarray(ids[:n * length], dtype=np.int32).reshape(n, length)


def hold_out(sequences, share):
    """Split sequences [n, length] into those to train on and the last ones, a share of them and at least one.

    Raises:
        BadInput: there are not two sequences.
    """
    n, length = sequences.shape
    if n < 2:
        raise BadInput(f"--text gives {n} sequences of {length} tokens, two at least are needed, to hold out one; "
                       "give more text, or lower --n_ctx")
    n_held = min(max(1, round(n * share)), n - 1)
    return sequences[:-n_held], sequences[-n_held:]


def unigram_perplexity(train, targets, n_vocab):
    """Return the perplexity of `targets` when each token is predicted by its frequency in `train` plus one.

    Args:
        train, targets: int arrays of ids. n_vocab: how many there are.
    """
    counts = np.bincount(np.ravel(train), minlength=n_vocab) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[targets].mean()))


def perplexity_of(cost):
    """Return exp(cost) of a cost in nats per token; infinity where that overflows."""
    return math.exp(cost) if cost < 700 else math.inf
