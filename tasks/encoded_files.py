"""Encoded examples kept on disk, so that a large data set is read and encoded once.

A cache is some .npy files, one for each array of each split, and a .json file that is written last, names them and
holds their checksums. Its name is the fingerprint of all that the ids follow from. Several runs may write the same
cache at a time: each file is put in place whole, and all write the same.
"""

import hashlib
import json
import os
import zlib
from typing import Any

import ftfy
import numpy as np
import spacy

from formats.errors import warn
from formats.files import write_atomically
from tasks.examples import Examples, Texts

__all__ = ["fingerprint_of", "load", "save"]

VERSION = 2  # of the files' form, and of what a text becomes
ARRAYS = ("ids", "offsets", "parts", "labels", "index", "groups")


def fingerprint_of(paths: dict[str, list[str]], encoder: Any, *options: object) -> str:
    """Return 32 hexadecimal digits that tell data, vocabulary and options from others.

    Args:
        paths: {split: its files}; what they hold counts, and their names without their folders.
        encoder: a TextEncoder. options: strings, numbers, lists or dicts of them.
    """
    digest = hashlib.sha256(json.dumps([VERSION, ftfy.__version__, spacy.__version__, options]).encode())
    digest.update(repr([sorted(encoder.decoder.items()), sorted(encoder.bpe_ranks.items())]).encode())
    for split, files in paths.items():
        for path in files:
            name = os.path.join(os.path.basename(os.path.dirname(path)), os.path.basename(path))
            digest.update(repr((split, name, os.path.getsize(path))).encode())
            with open(path, "rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:32]


def _arrays(examples):
    return {"ids": examples.texts.ids, "offsets": examples.texts.offsets, "parts": examples.parts,
            "labels": examples.labels, "index": examples.index, "groups": examples.groups}


def save(folder: str, key: str, splits: dict[str, Examples], **more: object) -> None:
    """Write splits as the cache called `key`.

    Args:
        folder: of the cache's files, made if missing. more: JSON values to keep beside.
    Raises:
        BadInput: it cannot be written.
    """
    described = {}
    for split, examples in splits.items():
        checksums = {}
        for name, array in _arrays(examples).items():
            if array is not None:
                path = os.path.join(folder, f"{key}.{split}.{name}.npy")
                with write_atomically(path) as temporary:
                    with open(temporary, "wb") as f:
                        np.save(f, np.ascontiguousarray(array), allow_pickle=False)
                    checksums[name] = _checksum(temporary)
        described[split] = {"checksums": checksums, "transformation": examples.transformation,
                            "score_range": examples.score_range, "n_vocab": examples.n_vocab,
                            "n_context": examples.n_context}
    path = os.path.join(folder, f"{key}.json")
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump({"version": VERSION, "splits": described, "more": more}, f)


def _checksum(path):
    value = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def load(folder: str, key: str) -> tuple[dict[str, Examples], dict] | None:
    """Return (splits, what was kept beside) of the cache called `key`; None where there is none.

    The arrays are mapped into memory. A cache that is damaged or not whole is none, with a warning.
    """
    path = os.path.join(folder, f"{key}.json")
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as f:
            described = json.load(f)
        splits = {name: _load_split(os.path.join(folder, f"{key}.{name}"), split)
                  for name, split in described["splits"].items()}
        return splits, described["more"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        warn(f"{path}: the encoded data kept there cannot be used ({reason}); they are made again")
        return None


def _load_split(prefix, split):
    arrays = dict.fromkeys(ARRAYS)
    for name, checksum in split["checksums"].items():
        path = f"{prefix}.{name}.npy"
        if _checksum(path) != checksum:
            raise ValueError(f"{os.path.basename(path)} does not fit its checksum")
        arrays[name] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # of memmap's slices each is slow
    texts = Texts(arrays["ids"], arrays["offsets"])
    kept = texts.lengths[arrays["parts"]].astype(np.int32)
    score_range = None if split["score_range"] is None else tuple(split["score_range"])
    return Examples(split["transformation"], texts, arrays["parts"], kept, arrays["labels"], score_range,
                    arrays["index"], split["n_vocab"], split["n_context"], arrays["groups"])
