"""Files that are never half written, and files that nobody has to trust: text, tensors, Git LFS pointers."""

import contextlib
import os
import re
import tempfile
import zipfile

import torch

from formats.errors import BadInput, MissingInput

LFS_POINTER = b"version https://git-lfs"


def make_path(f: str) -> str:
    """Create the folder of the file path `f` if it is missing, and return `f`.

    Raises:
        BadInput: the folder cannot be made.
    """
    folder = os.path.dirname(f)
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made ({error.strerror}); choose another folder") from None
    return f


@contextlib.contextmanager
def write_atomically(path):
    """Yield a temporary path beside `path`; when the body ends well, sync it and rename it to `path`.

    A reader therefore sees the old file or the whole new one, whenever the process dies.

    Raises:
        BadInput: the disk is full or the folder not writable; what was at `path` is untouched.
    """
    make_path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            dir=os.path.dirname(path) or ".", prefix=os.path.basename(path) + ".", suffix=".tmp")
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp made it private; give it an ordinary file's mode
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        if isinstance(error, MissingInput):
            raise
        raise BadInput(f"{path}: could not be written ({error.strerror or error}); what was there before "
                       "is unchanged; free some space or choose another folder") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def remove_leftovers(path):
    """Remove what write_atomically left beside `path` when its process was killed.

    Only for a file that no other process is writing now, see locks.locked.
    """
    folder, name = os.path.dirname(path) or ".", re.escape(os.path.basename(path))
    for other in os.listdir(folder):
        if re.fullmatch(name + r"\.[a-z0-9_]{8}\.tmp", other):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, other))


def write_bytes(path, data):
    """Write bytes to a file, atomically."""
    with write_atomically(path) as temporary, open(temporary, "wb") as f:
        f.write(data)


def save_tensors(path, value):
    """Write `value` (tensors, numbers, strings, lists, dicts) to `path` with torch.save, atomically."""
    with write_atomically(path) as temporary:
        try:
            torch.save(value, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk this way
            raise OSError(None, str(error).splitlines()[0]) from None


def load_tensors(path, map_location="cpu", mapped=False):
    """Read what save_tensors wrote. Never unpickles code (weights_only=True).

    Args:
        mapped: leave the tensors in the file until they are looked at; see mapped.load_state_dict.
    Raises:
        MissingInput: no such file.
        BadInput: truncated, damaged, or not a file of tensors.
    """
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; expected a file written by an earlier run")
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_zip(path)
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped and is_zip)
    except Exception as error:  # torch raises many types here; each means the file is unusable
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
        raise BadInput(f"{path}: cannot be read as a file of tensors ({reason}); "
                       "delete it or give another") from None


def _check_zip(path):
    """Compare a zip file with its checksums, which torch.save writes but torch.load does not look at.

    Of a record marked as a folder torch.load reads nothing, and takes whatever is in memory for the tensor.

    Raises:
        ValueError, or what zipfile raises: something is damaged.
    """
    with zipfile.ZipFile(path) as f:
        folder = 0x10  # MS-DOS attribute
        damaged = f.testzip() or next((r.filename for r in f.infolist() if r.external_attr & folder), None)
    if damaged is not None:
        raise ValueError(f"the record {damaged!r} does not fit its checksum")


def read_text(path, remedy):
    """Return what a text file in UTF-8 holds; a binary file is refused before it takes more memory than its size.

    Args:
        remedy: what to do about a file that is no text, the end of the message.
    Raises:
        BadInput: a NUL, or not UTF-8.
    """
    with open(path, "rb") as f:
        data = f.read()
    if b"\0" in data:
        raise BadInput(f"{path}: holds a NUL at byte {data.index(0)}, so it is no text; {remedy}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 at byte {error.start}; {remedy}") from None


def is_lfs_pointer(path):
    """Whether a file holds no data but Git LFS's note on where the data is."""
    with open(path, "rb") as f:
        return f.read(len(LFS_POINTER)) == LFS_POINTER
