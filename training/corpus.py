"""Plain text files as training data: lines, words, sequences of equal length, the part held out, the unigram baseline.

What pretrain.py, pretrain_t5.py and generate.py share. Nothing here knows about a model or a vocabulary.
"""

import contextlib
import glob
import gzip
import itertools
import math
import os
import re
import zlib

import numpy as np

from formats import progress
from formats.errors import BadInput, MissingInput, is_first_process
from text_utils import NEWLINE, split_words

PART = 1 << 16  # characters; longer lines are cut


def read_parts(paths, verbose=True, every=1):
    """Yield the lines of plain text files that are not blank, long ones in parts that are cut at a blank.

    So a text of one line takes no more memory than one of many lines.

    Args:
        paths: UTF-8 files, with or without a byte-order mark, packed by gzip or not; any line ends. See find_files
            for what else may stand for them.
        verbose: show a progress bar over the bytes.
        every: yield the first of so many parts, and leave out the others.
    Yields:
        (part, ends_line): the text without blanks at its ends; whether the line ends with it.
    Raises:
        MissingInput, BadInput: no such file; or a line is not UTF-8 or holds a NUL byte.
    """
    paths = find_files(paths)
    total = sum(map(os.path.getsize, paths))
    with progress.bar(total=total, unit="B", desc="read", show=verbose and is_first_process()) as bar:
        parts = itertools.chain.from_iterable(parts_of_file(path, bar) for path in paths)
        yield from itertools.islice(parts, 0, None, every)


def parts_of_file(path, bar):
    """Yield what read_parts yields, of one file; bar: is told how many bytes were read."""
    with _open(path, bar) as (f, counter):
        yield from _parts(path, f, counter)


@contextlib.contextmanager
def _open(path, bar):
    """Yield a text file, packed or not, and what is told how many bytes were read: the bar, if it is not packed."""
    # bytes that are no UTF-8 become lone surrogates, so that their line is known: decoding runs ahead
    as_text = dict(encoding="utf-8", errors="surrogateescape", newline="\n")
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    if not packed:
        with open(path, **as_text) as f:
            yield f, bar
        return
    with open(path, "rb") as raw, gzip.open(raw, "rt", **as_text) as f:
        try:
            yield f, _Packed(bar, raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise BadInput(f"{path}: is a damaged gzip file ({error}); get it once more, or unpack it and give that") \
                from None


class _Packed:
    """Moves a bar by what was read of a packed file, as nobody knows how long it is unpacked."""

    def __init__(self, bar, raw):
        self.bar, self.raw, self.done = bar, raw, 0

    def update(self, n):
        position = self.raw.tell()
        self.bar.update(position - self.done)
        self.done = position


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


def read_words(tokenizer, paths, verbose=True, every=1):
    """Yield the words of text files as TextEncoder has them, a list for each part of read_parts.

    A line break that is not in a blank line is a word as well. All that pre-trains a GPT or measures its perplexity
    reads text in this way.

    Args:
        tokenizer: see formats.words.english_tokenizer. paths, verbose, every: see read_parts.
    """
    for part, ends_line in read_parts(paths, verbose, every):
        yield split_words(tokenizer, part) + [NEWLINE] * ends_line


def find_files(paths):
    """Return the files that paths stand for, in their order: files, folders, and patterns such as 'books/*.txt'.

    A folder stands for the .txt and .txt.gz files in it and in its folders, a pattern (with ** for any folders) for
    the files that fit it, both sorted by name.

    Raises:
        MissingInput, BadInput: a path stands for no file.
    """
    files = []
    for path in paths:
        if os.path.isdir(path):
            found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names
                     if name.endswith((".txt", ".txt.gz")) and not name.startswith(".")]
            if not found:
                raise BadInput(f"{path}: this folder holds no .txt or .txt.gz files; --text wants plain text in UTF-8")
        elif os.path.exists(path):
            found = [path]
        else:
            found = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
            if not found:
                raise MissingInput(f"{path}: not found; --text wants plain text files in UTF-8, a folder of them or a "
                                   "pattern in quotes")
        files += sorted(found)
    return files


def cut_sequences(ids, length):
    """Return int32 [n, length], the sequences that lie one after another in a long list of ids; the rest is dropped."""
    n = len(ids) // length
    return np.asarray(ids[:n * length], dtype=np.int32).reshape(n, length)


def hold_out(sequences, share, others=None):
    """Split sequences [n, length] into those to train on and the last ones, a share of them and at least one.

    Args:
        others: sequences [m, length] of --valid_text, which are held out in their place.
    Raises:
        BadInput: there are not two sequences, or none to train on, or none in --valid_text.
    """
    if others is not None:
        for name, found in (("--text", sequences), ("--valid_text", others)):
            if len(found) < 1:
                raise BadInput(f"{name} gives no sequence of {sequences.shape[1]} tokens; give more text, or lower "
                               "--n_ctx")
        return sequences, others
    n, length = sequences.shape
    if n < 2:
        raise BadInput(f"--text gives {n} sequences of {length} tokens, two at least are needed, to hold out one; "
                       "give more text, or lower --n_ctx")
    n_held = min(max(1, round(n * share)), n - 1)
    return sequences[:-n_held], sequences[-n_held:]


def pieces_of(sequences, overlap=0, size=1 << 20, first=0, every=1):
    """Yield the ids of sequences [n, length], one after another, in arrays that begin `size` ids apart.

    Args:
        sequences: an array, or token_files.Rows.
        overlap: ids of the next piece that stand at the end of a piece too.
        first, every: yield the piece of this number, and each `every`-th after it.
    """
    ids = sequences.ravel()
    for start in range(first * size, len(ids), every * size):
        yield ids[start:start + size + overlap]


def find_repeated(train, held_out, rank=0, n_ranks=1, size=1 << 20, verbose=False):
    """Return bool [m]: which of the sequences held_out [m, length] stand in train [n, length] too, wherever they begin.

    Sequences are compared by a number of 64 bits, the sum of x[i] * r^i modulo 2^64 with a random number x[i] for each
    token. Of a window of the text it is the difference of two running sums, so that every window costs the same. Few
    windows begin with the 24 bits of a sequence that is looked for; the others need no search.

    Args:
        train, held_out: see pieces_of.
        rank, n_ranks: look through the pieces rank, rank + n_ranks, rank + 2 * n_ranks ... of train alone.
        size: ids of a piece. verbose: show a progress bar.
    """
    length = held_out.shape[1]
    rng = np.random.default_rng(0)
    n_tokens = 1 + max(int(piece.max()) for sequences in (train, held_out) for piece in pieces_of(sequences))
    x = rng.integers(1 << 64, size=n_tokens, dtype=np.uint64)
    r = int(rng.integers(1 << 62)) * 2 + 1
    inverse = pow(r, -1, 1 << 64)

    def powers(base, n):
        factors = np.full(n, base, dtype=np.uint64)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint64)

    weights = powers(r, length)
    wanted = np.concatenate([(x[held_out[i:i + 1000]] * weights).sum(1, dtype=np.uint64)
                             for i in range(0, len(held_out), 1000)])
    begins = np.zeros(1 << 24, dtype=bool)
    begins[wanted >> np.uint64(40)] = True
    found = np.zeros(len(wanted), dtype=bool)
    rising, falling = powers(r, size + length - 1), powers(inverse, size)
    with progress.bar(total=train.size, unit="token", desc="compare", show=verbose) as bar:
        for piece in pieces_of(train, length - 1, size, rank, n_ranks):
            sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(x[piece] * rising[:len(piece)], dtype=np.uint64)])
            windows = (sums[length:] - sums[:-length]) * falling[:max(len(piece) - length + 1, 0)]
            found |= np.isin(wanted, windows[begins[windows >> np.uint64(40)]])
            bar.update(min(size, len(piece)) * n_ranks)
    return found


def unigram_perplexity(train, targets, n_vocab):
    """Return the perplexity of `targets` when each token is predicted by its frequency in `train` plus one.

    Args:
        train: see pieces_of. targets: int array of ids. n_vocab: how many there are.
    """
    counts = 1.0 + sum(np.bincount(piece, minlength=n_vocab) for piece in pieces_of(train))
    return float(np.exp(-np.log(counts / counts.sum())[targets].mean()))


def perplexity_of(cost):
    """Return exp(cost) of a cost in nats per token; infinity where that overflows."""
    return math.exp(cost) if cost < 700 else math.inf
