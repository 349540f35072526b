"""Texts to token ids, on all cores where there are many; splits to Examples."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from formats import progress
from formats.errors import is_first_process
from tasks.examples import Examples, Texts
from tasks.glue_files import Split
from tasks.gpt_tasks import Task
from tasks.processes import encode_chunks, n_cores

__all__ = ["encode_split", "encode_texts", "first_examples"]

PARALLEL_FROM = 3_000_000  # characters; below it one process takes a few seconds
CHUNK = 200_000            # characters that a process encodes at a time


def encode_texts(texts: list[str], encoder: Any, n_processes: int | None = None, start_method: str | None = None,
                 verbose: bool = True) -> Texts:
    """Encode texts.

    Args:
        encoder: has .encode(list of strings, verbose) -> lists of ids, and .decoder with all its ids; it is sent to the
            other processes, if there are any.
        n_processes: how many encode; None: one for each core, where there are more than PARALLEL_FROM characters.
        start_method: see multiprocessing.get_context; None: 'fork' on Linux, else 'spawn'. Where processes cannot be
            started, a line says so and this one does all the work.
        verbose: show progress and an estimate of the time left.
    """
    if n_processes is None:
        n_processes = n_cores() if sum(map(len, texts)) > PARALLEL_FROM else 1
    dtype = np.uint16 if len(encoder.decoder) <= 1 << 16 else np.int32
    ids, lengths = [], []
    with progress.bar(total=len(texts), unit="text", desc="encode", show=verbose and is_first_process()) as bar:
        for flat, chunk_lengths in encode_chunks(_chunks(texts), encoder, n_processes, dtype, start_method):
            ids.append(flat)
            lengths.append(chunk_lengths)
            bar.update(len(chunk_lengths))
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int64)]), out=offsets[1:])
    return Texts(np.concatenate([*ids, np.zeros(0, dtype)]), offsets)


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of about CHUNK characters."""
    begin, size = 0, 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= CHUNK:
            yield texts[begin:i + 1]
            begin, size = i + 1, 0
    if begin < len(texts):
        yield texts[begin:]


def encode_split(task: Task, split: Split, encoder: Any, verbose: bool = True, **options) -> Examples:
    """Encode the examples of a split; equal texts are encoded and kept once.

    Args:
        task: whose examples they are. encoder, options: see encode_texts.
    """
    numbers = {}
    parts = np.empty((len(split), len(task.texts)), dtype=np.int32)
    for k, name in enumerate(task.texts):
        parts[:, k] = np.fromiter((numbers.setdefault(text, len(numbers)) for text in split.texts[name]), np.int32,
                                  len(split))
    texts = encode_texts(list(numbers), encoder, verbose=verbose, **options)
    labels = split.labels
    if labels is not None and task.score_range is not None:
        labels = np.array([float(label) for label in labels])
    elif labels is not None:
        number = {name: i for i, name in enumerate(task.classes)}
        labels = np.fromiter((number[label] for label in labels), np.int64, len(labels))
    kept = texts.lengths[parts].astype(np.int32)
    return Examples(task.transformation, texts, parts, kept, labels, task.score_range, split.index,
                    len(encoder.decoder), task.n_context, split.groups)


def first_examples(split: Split, n: int) -> Split:
    """Return the first n examples of a split."""
    return Split(split.path, {name: texts[:n] for name, texts in split.texts.items()},
                 None if split.labels is None else split.labels[:n], split.index[:n],
                 None if split.groups is None else split.groups[:n])
