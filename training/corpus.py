"""Plain text files as training data: lines, words, sequences of equal length, the part held out, the unigram baseline.

What pretrain.py, pretrain_t5.py and generate.py share. Nothing here knows about a model or a vocabulary.
"""

import math
import os
import re

import numpy as np

from formats import progress
from formats.errors import BadInput, MissingInput, is_first_process
from text_utils import NEWLINE, split_words

PART = 1 << 16  # characters; longer lines are cut


def read_parts(paths, verbose=True):
    """Yield the lines of plain text files that are not blank, long ones in parts that are cut at a blank.

    So a text of one line takes no more memory than one of many lines.

    Args:
        paths: UTF-8 files, with or without a byte-order mark; any line ends.
        verbose: show a progress bar over the bytes.
    Yields:
        (part, ends_line): the text without blanks at its ends; whether the line ends with it.
    Raises:
        MissingInput, BadInput: no such file; or a line is not UTF-8 or holds a NUL byte.
    """
    require_files(paths)
    total = sum(map(os.path.getsize, paths))
    with progress.bar(total=total, unit="B", desc="read", show=verbose and is_first_process()) as bar:
        for path in paths:
            # bytes that are no UTF-8 become lone surrogates, so that their line is known: decoding runs ahead
            with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as f:
                yield from _parts(path, f, bar)


def _parts(path, f, bar):
    """Yield what read_parts yields of one file."""
    text, number, position = "", 1, 0  # of the line: what is not yielded yet, its number, bytes that were read
    while True:
        read = f.readline(PART)
        _check(path, number, position, read)
        n_bytes = len(read) if read.isascii() else len(read.encode())
        bar.update(n_bytes)
        text += read if position else read.removeprefix("\ufeff")
        position += n_bytes
        if len(read) == PART and not read.endswith("\n"):  # the line may go on
            cut = _last_blank(text, len(text) - len(read))
            if cut:
                yield text[:cut].lstrip(), False
                text = text[cut + 1:]
            continue
        text = text.strip()
        if text:
            yield text, True
        if not read:
            return
        text, number, position = "", number + 1, 0


def _last_blank(text, start):
    """Return the place of the last space between two visible characters, after `start`; 0 for none.

    What is invisible may become a line break or vanish when the text is repaired, and is left with its neighbours.
    """
    def is_visible(c):
        return c.isprintable() and not c.isspace()

    end = len(text) - 1
    while (end := text.rfind(" ", max(start - 1, 1), end)) > 0:
        if is_visible(text[end - 1]) and is_visible(text[end + 1]):
            return end
    return 0


def _check(path, number, position, text):
    """Raise BadInput if a part of a line was no UTF-8, or holds a NUL."""
    wrong = None if text.isascii() else re.search("[\udc80-\udcff]", text)
    if wrong:
        position += len(text[:wrong.start()].encode())
        raise BadInput(f"{path}: line {number} is not UTF-8 at byte {position}; expected a plain text file in UTF-8: "
                       "convert it, for example with iconv")
    if "\0" in text:
        raise BadInput(f"{path}: line {number} holds a NUL byte; expected a plain text file in UTF-8")


def read_words(tokenizer, paths, verbose=True):
    """Yield the words of text files as TextEncoder has them, a list for each part of read_parts.

    A line break that is not in a blank line is a word as well. All that pre-trains a GPT or measures its perplexity
    reads text in this way.

    Args:
        tokenizer: see formats.words.english_tokenizer. paths, verbose: see read_parts.
    """
    for part, ends_line in read_parts(paths, verbose):
        yield split_words(tokenizer, part) + [NEWLINE] * ends_line


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
