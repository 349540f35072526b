"""What a model's files have to be: checks by hash where one is known, else by form, that trust no file."""

import hashlib
import json
import os
import zipfile
import zlib
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from formats import progress
from formats.files import is_lfs_pointer

CHUNK = 1 << 18  # bytes


class Wanted(NamedTuple):
    """What a file has to be.

    check is the name of a check and `expected` what it has to give: "git" a git blob id, "sha256" a sha256,
    "safetensors" at least so many stored values, "json" a key the object has (None: any), "torch" and "any" nothing.
    A file of fewer than `least_size` bytes is called truncated. `base` is the address it is fetched from; the Hub's
    files have none, because the Hub says for each transfer where a file lies.
    """

    base: str
    check: str
    expected: object = None
    least_size: int = 1


def by_form(name):
    """Return the Wanted of a file of which nothing is known but its name."""
    extension = os.path.splitext(name)[1]
    return Wanted("", {".safetensors": "safetensors", ".bin": "torch", ".json": "json"}.get(extension, "any"))


def file_hash(path, algorithm, prefix=b""):
    """Return the hexadecimal hash of `prefix` and a file's bytes, read a piece at a time."""
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    with open(path, "rb") as f, progress.bar(total=os.path.getsize(path), unit="B",
                                             desc=f"check {os.path.basename(path)}") as bar:
        while chunk := f.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def git_blob_id(path):
    """Return the name git gives to a file's contents: the sha1 of "blob <size>\\0" and its bytes."""
    return file_hash(path, "sha1", b"blob %d\0" % os.path.getsize(path))


def problem_of(path, wanted):
    """Return None where the file at `path` is what is wanted, else what is wrong with it, in words."""
    if not os.path.isfile(path):
        return "missing" + (" (a part of it is there)" if os.path.isfile(path + ".part") else "")
    try:
        size = os.path.getsize(path)
        if is_lfs_pointer(path):
            return f"a Git LFS pointer of {size} bytes, expected the file it points to"
        if size < wanted.least_size:
            return f"truncated: found {size:,} bytes, expected at least {wanted.least_size:,}"
        if wanted.check == "json":
            return _problem_of_json(path, wanted.expected)
        if wanted.check == "safetensors":
            return _problem_of_safetensors(path, size, wanted.expected or 0)
        if wanted.check == "torch":
            return _problem_of_torch(path)
        if wanted.check == "any":
            return None
        found = git_blob_id(path) if wanted.check == "git" else file_hash(path, wanted.check)
    except OSError as error:
        return f"cannot be read ({error.strerror}); check its permissions"
    if found != wanted.expected:
        return f"altered: found the {wanted.check} hash {found}, expected {wanted.expected}"
    return None


def _problem_of_json(path, key):
    try:
        with open(path, encoding="utf-8") as f:
            found = json.load(f)
    except (ValueError, RecursionError):
        return "altered: it is not JSON"
    if isinstance(found, dict) and (key is None or key in found):
        return None
    return f"altered: it has no {key}, expected a model's config" if key else "altered: expected a JSON object"


def _problem_of_torch(path):
    """The newer form is a zip file with checksums; of the older one, a pickle, only the beginning is known."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as f:
                damaged = f.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            return f"truncated or altered ({error})"
        return f"altered: its record {damaged} does not fit its checksum" if damaged else None
    return None if is_old_torch(path) else "truncated or altered: not a file of torch.save"


def is_old_torch(path):
    """Whether a file begins as torch.save wrote before its zip form; nothing shows whether the end of one is there."""
    with open(path, "rb") as f:
        return f.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04")


def _problem_of_safetensors(path, size, n_values):
    """The library checks that the header is whole and that its tensors fill the file exactly."""
    found = 0
    try:
        with safe_open(path, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                values = 1
                for length in tensors.get_slice(name).get_shape():
                    values *= length
                found += values
    except (SafetensorError, OSError) as error:
        return f"truncated or altered: its {size:,} bytes are not a safetensors file ({str(error)[:150]})"
    if found < n_values:
        return f"another model: found {found:,} values, expected at least {n_values:,}"
    return None


def verify(folder, files):
    """Return one line for every file of {name: Wanted} that is missing, truncated, altered or a pointer."""
    paths = {os.path.join(folder, name): wanted for name, wanted in files.items()}
    return [f"{path}: {problem}" for path, wanted in paths.items() if (problem := problem_of(path, wanted))]
