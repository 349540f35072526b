"""Texts to token ids, on all cores where there are many; splits to Examples."""

import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from formats import locks, progress
from formats.errors import is_first_process, warn_once
from tasks.examples import Examples, Texts
from tasks.glue_files import Split
from tasks.gpt_tasks import Task

__all__ = ["encode_chunks", "encode_split", "encode_texts", "first_examples"]

PARALLEL_FROM = 3_000_000  # characters; below it one process takes a few seconds
CHUNK = 200_000            # characters that a process encodes at a time

_encoder = None  # of a worker process


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


def n_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def encode_chunks(chunks: Iterable[list[str]], encoder: Any, n_processes: int, dtype: Any,
                  start_method: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids [tokens], lengths [n]) of one list of texts after the other, by several processes; the order stays.

    Args:
        chunks: lists of texts; a few more are asked for than were yielded.
        encoder, n_processes, start_method: see encode_texts. dtype: of the ids.
    """
    chunks, waiting = iter(chunks), deque()
    if n_processes > 1:
        try:
            yield from _in_processes(chunks, waiting, encoder, n_processes, start_method, dtype)
        except _PoolLost as lost:
            warn_once(f"encoding goes on in one process, as others could not be started or kept ({lost})")
    for chunk in itertools.chain(waiting, chunks):
        yield _flat(encoder, chunk, dtype)


class _PoolLost(Exception):
    """The processes cannot be started or kept."""


@contextlib.contextmanager
def _calls_of_the_pool():
    try:
        yield
    except (BrokenProcessPool, OSError, RuntimeError, pickle.PicklingError, AttributeError, TypeError) as error:
        raise _PoolLost((str(error) or type(error).__name__).splitlines()[0][:100]) from None


def _flat(encoder, texts, dtype):
    rows = encoder.encode(texts, verbose=False)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return np.fromiter((i for row in rows for i in row), dtype=dtype, count=int(lengths.sum())), lengths


def _in_processes(chunks, waiting, encoder, n_processes, start_method, dtype):
    """As encode_chunks, by a pool of processes; waiting: a deque, holds the chunks that were taken and not yielded."""
    context = multiprocessing.get_context(start_method or ("fork" if sys.platform.startswith("linux") else "spawn"))
    with _calls_of_the_pool():
        pool = concurrent.futures.ProcessPoolExecutor(n_processes, context, _start_worker, (encoder, os.getpid()))
    futures = deque()
    try:
        with warnings.catch_warnings():  # a fork beside other threads: the workers run Python alone
            warnings.simplefilter("ignore", DeprecationWarning)
            for chunk in itertools.chain(chunks, itertools.repeat(None)):
                if chunk is not None:
                    waiting.append(chunk)
                    with _calls_of_the_pool():
                        futures.append(pool.submit(_work, chunk, dtype))
                if not futures:
                    return
                if chunk is None or len(futures) > 2 * n_processes:
                    with _calls_of_the_pool():
                        encoded = futures[0].result()
                    futures.popleft()
                    waiting.popleft()
                    yield encoded
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(encoder, parent):
    """Begin a worker process: Ctrl-C is the parent's to answer, and nobody works on when the parent is gone."""
    global _encoder
    _encoder = encoder
    locks.close_inherited()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(texts, dtype):
    return _flat(_encoder, texts, dtype)


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
