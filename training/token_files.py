"""Text of any length as token ids in files: encoded once, by all cores, and read from there piece by piece.

Of each text there are two files: NAME.ids holds the ids one after another; NAME.json tells how far that is and has, for
each block of them, its end, its checksum, and the place in the text at which the next block begins. A block counts when
it is noted there. So a preparation that was killed, or a file that was damaged, goes on from the last block that is
whole.
"""

import hashlib
import json
import os
import time
import zlib
from collections import deque

import numpy as np

from formats import locks, progress
from formats.errors import BadInput, MissingInput, is_first_process, warn
from formats.files import make_path, remove_leftovers, write_atomically
from tasks.processes import encode_chunks, n_cores
from training import corpus

VERSION = 1         # of the files' form, and of what a text becomes
CHUNK = 200_000     # characters that a process encodes at a time
BLOCK = 80          # chunks: some ten seconds of one core
PACKED = 4          # a packed text is about so many times as long
PATIENCE = 60       # seconds that a process waits to see the first one begin
STALLED = 3600      # and to see it get on: a vocabulary of 100 MB is learned in less


class TokenFile:
    """Token ids in a file, one after another: `len()` counts them, and a slice of them is read as an int32 array.

    Args:
        path: of the ids. dtype: of them, in the file. first: the place of the first of them that counts. n: how many.
        n_zero: how many ids of the text are 0, where that was counted.
    """

    def __init__(self, path, dtype, first, n, n_zero=None):
        self.path, self.dtype, self.first, self.n, self.n_zero = path, np.dtype(dtype), first, n, n_zero

    def __len__(self):
        return self.n

    def __getitem__(self, places):
        start, stop, _ = places.indices(self.n)
        return self._mapped(start, max(stop - start, 0)).astype(np.int32)

    def _mapped(self, start, n):
        """Return n ids from place `start` on, mapped into memory; the pages are let go with the array."""
        if n == 0:
            return np.zeros(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r", (self.first + start) * self.dtype.itemsize, n)

    def cut(self, length):
        """Return the Rows of `length` ids that lie one after another; the rest is left out."""
        return Rows(TokenFile(self.path, self.dtype, self.first, len(self) // length * length), length)


class Rows:
    """Sequences [n, length] that lie one after another in a TokenFile and are read when they are asked for.

    rows[numbers], of an int array, is int32 [len(numbers), length]; rows[a:b] are Rows again; np.asarray reads all.
    """

    def __init__(self, tokens, length):
        self.tokens, self.shape, self.size = tokens, (len(tokens) // length, length), len(tokens)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        n, length = self.shape
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(n)
            ids = self.tokens
            return Rows(TokenFile(ids.path, ids.dtype, ids.first + start * length, max(stop - start, 0) * length),
                        length)
        return self.tokens._mapped(0, self.size).reshape(n, length)[rows].astype(np.int32)

    def __array__(self, dtype=None, copy=None):
        return self.tokens[:].reshape(self.shape).astype(dtype or np.int32, copy=False)

    def ravel(self):
        """Return the TokenFile of all ids."""
        return self.tokens


def n_bytes(paths):
    """Return about how many bytes of text some files hold, see corpus.find_files."""
    return sum(os.path.getsize(path) * (PACKED if path.endswith(".gz") else 1) for path in corpus.find_files(paths))


def folder_of(folder, paths, *settings):
    """Return the folder in `folder` for what a text becomes with some settings.

    Args:
        paths: see corpus.find_files; the files' names, sizes and times of writing count, not what they hold.
        settings: JSON values that the ids follow from.
    """
    files = [(os.path.basename(path), os.path.getsize(path), os.stat(path).st_mtime_ns)
             for path in corpus.find_files(paths)]
    return os.path.join(folder, hashlib.sha256(json.dumps([VERSION, files, settings]).encode()).hexdigest()[:16])


def encode(folder, name, paths, encoder, n_ids, line_end=None, n_processes=None):
    """Encode a text into a folder, or what is missing of it; see load.

    Args:
        name: of its files there. paths: see corpus.find_files.
        encoder: see tasks.encoding.encode_texts. n_ids: how many ids there are.
        line_end: the id that stands for the end of a line, if there is one.
        n_processes: how many encode; None: one for each core.
    Raises:
        BadInput, MissingInput: there is no text, the disk is full; see also corpus.read_parts.
    """
    prefix = os.path.join(folder, name)
    dtype = np.dtype(np.uint16 if n_ids <= 1 << 16 else np.int32)
    make_path(prefix)
    state = _read(prefix, dtype)
    if not state["complete"]:
        with locks.locked(folder, "wait until it ends: what it makes is used then"):
            remove_leftovers(prefix + ".json")
            state = _read(prefix, dtype)
            _go_on(prefix, state, corpus.find_files(paths), encoder, dtype, line_end, n_processes or n_cores())
    if not state["blocks"][-1]["end"]:
        raise BadInput(f"{', '.join(map(str, paths))}: nothing but blank lines; give some text")


def load(folder, name):
    """Return the TokenFile of a text that is encoded."""
    prefix = os.path.join(folder, name)
    state = _load(prefix + ".json")
    return TokenFile(prefix + ".ids", state["dtype"], 0, state["blocks"][-1]["end"], state["n_zero"])


def wait_for(folder, name):
    """Return when another process has encoded a text.

    Raises:
        BadInput: after a minute there is no folder, as it is not on a disk that all processes share; or nothing has
            come for an hour, as the other process has ended.
    """
    path, last, since = os.path.join(folder, name + ".json"), None, time.monotonic()
    while True:
        state = _load(path) if os.path.isfile(path) else None
        if state is not None and state["complete"]:
            return
        now = state and len(state["blocks"])
        if now != last:
            last, since = now, time.monotonic()
        waited = time.monotonic() - since
        if waited > PATIENCE and not os.path.isdir(folder):
            raise BadInput(f"{folder}: the first process has written nothing there; --token_dir must be a folder that "
                           "all machines share")
        if waited > STALLED:
            raise BadInput(f"{path}: the first process, which encodes the text, has written nothing for "
                           f"{waited / 60:.0f} minutes; it seems to have ended: start again, and it goes on there")
        time.sleep(0.5)


def _load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def _save(prefix, state):
    with write_atomically(prefix + ".json") as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump(state, f)


def _read(prefix, dtype):
    """Return the state of a text's files, without blocks that do not fit their checksums and those after them."""
    state = {"version": VERSION, "dtype": dtype.name, "complete": False, "n_zero": 0, "blocks": []}
    if not os.path.isfile(prefix + ".json"):
        return state
    try:
        noted = _load(prefix + ".json")
        blocks = noted["blocks"]
        good = 0
        if blocks:
            with open(prefix + ".ids", "rb") as f, progress.bar(blocks, desc="verify", unit="block") as bar:
                for block in bar:
                    n = (block["end"] - (blocks[good - 1]["end"] if good else 0)) * dtype.itemsize
                    if zlib.crc32(f.read(n)) != block["checksum"]:
                        break
                    good += 1
        if good < len(blocks):
            warn(f"{prefix}.ids: block {good + 1} of {len(blocks)} does not fit its checksum; it and what follows are "
                 "made again")
        state["blocks"] = blocks[:good]
        state["complete"] = noted["complete"] and good == len(blocks)
        state["n_zero"] = blocks[good - 1]["n_zero"] if good else 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        warn(f"{prefix}.json: cannot be used ({reason}); the text is encoded again")
        state["blocks"] = []
    return state


def _go_on(prefix, state, files, encoder, dtype, line_end, n_processes):
    """Encode what is missing, and note it in `state` and on the disk block by block."""
    last = state["blocks"][-1] if state["blocks"] else {"end": 0, "file": 0, "part": 0}
    if state["blocks"]:
        print(f"{prefix}.ids: {last['end']:,} tokens are there; going on from file {last['file'] + 1} of {len(files)}")
    places = deque()  # of each chunk that is being encoded: whether its parts end lines, and where it ends
    total = sum(map(os.path.getsize, files))
    try:
        with open(prefix + ".ids", "ab") as f, \
                progress.bar(total=total, unit="B", desc="encode", show=is_first_process()) as bar:
            f.truncate(last["end"] * dtype.itemsize)
            end, checksum, n_chunks = last["end"], 0, 0

            def note(file, part):
                f.flush()
                os.fsync(f.fileno())
                state["blocks"].append({"end": end, "checksum": checksum, "file": file, "part": part,
                                        "n_zero": state["n_zero"]})
                _save(prefix, state)

            chunks = _chunks(files, last["file"], last["part"], bar, places)
            for ids, lengths in encode_chunks(chunks, encoder, n_processes, dtype):
                ends_line, file, part = places.popleft()
                if line_end is not None:
                    ids = np.insert(ids, np.cumsum(lengths)[ends_line], line_end)
                f.write(ids.tobytes())
                end, checksum, n_chunks = end + len(ids), zlib.crc32(ids.tobytes(), checksum), n_chunks + 1
                state["n_zero"] += int(np.count_nonzero(ids == 0))
                if n_chunks % BLOCK == 0:
                    note(file, part)
                    checksum = 0
            state["complete"] = True
            note(len(files), 0)
    except MissingInput:
        raise
    except OSError as error:
        raise BadInput(f"{prefix}.ids: could not be written ({error.strerror or error}); free some space or choose "
                       "another folder, and start again: what is encoded is kept") from None


def _chunks(files, first, skipped, bar, places):
    """Yield lists of parts of CHUNK characters; append to `places` (ends_line, number of the file, parts of it).

    Args:
        first, skipped: the file to begin with, and how many of its parts are encoded already.
    """
    bar.update(sum(map(os.path.getsize, files[:first])))
    for number in range(first, len(files)):
        texts, ends_line, size = [], [], 0
        part = 0
        for text, ends in corpus.parts_of_file(files[number], bar):
            part += 1
            if number == first and part <= skipped:
                continue
            texts.append(text)
            ends_line.append(ends)
            size += len(text)
            if size >= CHUNK:
                places.append((np.array(ends_line), number, part))
                yield texts
                texts, ends_line, size = [], [], 0
        if texts:
            places.append((np.array(ends_line), number, part))
            yield texts
