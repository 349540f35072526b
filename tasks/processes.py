"""Lists of texts to token ids by several processes, in their order."""

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

from formats import locks
from formats.errors import warn_once

__all__ = ["encode_chunks", "n_cores"]

_encoder = None  # of a worker process


def n_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_chunks(chunks: Iterable[list[str]], encoder: Any, n_processes: int, dtype: Any,
                  start_method: str | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids [tokens], lengths [n]) of one list of texts after the other, by several processes; the order stays.

    Args:
        chunks: lists of texts; a few more are asked for than were yielded.
        encoder, n_processes, start_method: see encoding.encode_texts. dtype: of the ids.
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
