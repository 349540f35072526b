"""Files brought over HTTP or from a folder: what came of a broken transfer is kept, and what is wrong never taken.

Files are fetched one by one with HTTP ranges. A file in transfer is called NAME.part; it takes its own name only when
it has passed its check.
"""

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request

from formats import progress
from formats.checks import CHUNK, problem_of
from formats.errors import BadInput, MissingInput
from formats.files import make_path

TIMEOUT = 60  # seconds without a byte


def is_url(address):
    """Whether an address is one of HTTP, not of a file."""
    return re.match("https?://", address) is not None


class Broken(Exception):
    """A transfer stopped before the end; what came is kept and it may be tried again."""


def _open_source(address, start, headers):
    """Open a file, or a URL with request headers, at byte `start`.

    Returns:
        (readable, the byte it really starts at, whole size or None); the readable is None where there is nothing
        after `start`.
    Raises:
        Broken: worth another try.
        MissingInput, BadInput: not worth it.
    """
    if not is_url(address):
        if not os.path.isfile(address):
            raise MissingInput(f"{address}: not found; expected all files of the model in the folder --source")
        try:
            size, source = os.path.getsize(address), open(address, "rb")
        except OSError as error:
            raise BadInput(f"{address}: cannot be read ({error.strerror}); check its permissions") from None
        return source, source.seek(start if start <= size else 0), size
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "download_model.py"})
        for name, value in headers.items():
            request.add_unredirected_header(name, value)  # a token is for the host it was meant for alone
        if start:
            request.add_header("Range", f"bytes={start}-")
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing after `start`: all is here, or what is here is something else
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return None, start, start
            return _open_source(address, 0, headers)
        if error.code in (408, 429) or error.code >= 500:
            raise Broken(f"the server answers {error.code} {error.reason}") from None
        if error.code == 404:
            raise MissingInput(f"{address}: the server has no such file (404); check --model and --source") from None
        raise BadInput(f"{address}: the server refuses ({error.code} {error.reason}); open the address in a "
                             "browser, or copy the files from elsewhere and use --verify") from None
    except (OSError, http.client.HTTPException) as error:
        raise Broken(str(getattr(error, "reason", error)) or type(error).__name__) from None
    except ValueError as error:
        raise BadInput(f"{address}: not an address ({error}); check --source") from None
    length = response.headers.get("Content-Length", "")
    total, at = int(length) if length.isdecimal() else None, 0
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != start:
            response.close()
            if start:
                return _open_source(address, 0, headers)
            raise Broken("the server sends another range than was asked for")
        at, total = start, int(span[2]) + 1 if span[3] == "*" else int(span[3])
    return response, at, total


def _transfer(address, part, least_size, headers):
    """Bring a file or URL to `part`, going on where that ends.

    Raises as _open_source does, and BadInput where `part` cannot be written.
    """
    have = os.path.getsize(part) if os.path.isfile(part) else 0
    source, at, total = _open_source(address, have, headers)
    if source is None:
        return
    name = os.path.basename(part).removesuffix(".part")
    try:
        with source, open(part, "ab") as f, progress.bar(total=total, initial=at, unit="B", desc=name,
                                                         leave=True) as bar:
            f.truncate(at)
            while chunk := _read(source):
                f.write(chunk)
                at += len(chunk)
                bar.update(len(chunk))
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        raise BadInput(f"{part}: could not be written ({error.strerror or error}); free some space or choose "
                             "another --model_dir, then run the same command again") from None
    if at < (least_size if total is None else total):
        raise Broken(f"the connection ended after {at:,} of {least_size if total is None else total:,} bytes")


def _read(source):
    """Return the next bytes of a source as soon as there are any, b"" at its end; raise Broken where reading fails.

    To wait for a full piece would lose what came of one when the connection breaks.
    """
    try:
        return source.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Broken(str(error) or type(error).__name__) from None


def fetch(address, path, wanted, retries=5, pause=1.0, locate=None):
    """Bring one file to `path`, checked, going on from `path`.part if that is there.

    Args:
        address: a URL or the path of a file.
        locate: a function that is asked before every try where `address` lies at the moment; it returns (URL or
            path, request headers). None: at `address`.
        retries: how many times in a row a transfer may break without a further byte having come.
        pause: seconds before the first of these; doubled each time.
    Raises:
        MissingInput, BadInput: it is not there, does not come, or is not what is wanted. What
            was at `path` is unchanged.
    """
    part = make_path(path) + ".part"
    best, failures, restarted = 0, 0, False
    while True:
        resumed = os.path.isfile(part) and os.path.getsize(part) > 0
        try:
            where, headers = (address, {}) if locate is None else locate()
            _transfer(where, part, wanted.least_size, headers)
        except Broken as error:
            size = os.path.getsize(part) if os.path.isfile(part) else 0
            best, failures = max(best, size), 0 if size > best else failures + 1
            if failures > retries:
                raise BadInput(f"{address}: the transfer broke {failures} time(s) without progress ({error}); "
                                     f"check the connection and run the same command again: {size:,} bytes of the "
                                     "file are here already and will be kept") from None
            time.sleep(pause * 2 ** max(0, failures - 1))
            continue
        problem = problem_of(part, wanted)
        try:
            if problem is None:
                os.replace(part, path)
                return
            os.unlink(part)
        except OSError as error:
            raise BadInput(f"{path}: could not be written ({error.strerror}); choose another "
                                 "--model_dir") from None
        if restarted or not resumed:
            raise BadInput(f"{address}: {problem}; nothing was kept of it; try again later or another --source")
        best, failures, restarted = 0, 0, True  # what was resumed may have been of another version


def download(folder, files, source=None, retries=5, pause=1.0):
    """Bring every file of {name: Wanted} into `folder`; those that are there and right are left alone.

    Args:
        source: a folder or URL that holds all of them; a function of a name and a Wanted that returns the address and
            `locate` of fetch; None: each file's own address.
        retries, pause: as in fetch.
    Returns:
        The names of the files that were fetched.
    Raises:
        MissingInput, BadInput: as fetch, or too little space; the files that came before stay.
    """
    if isinstance(source, str) and not is_url(source) and not os.path.isdir(source):
        raise MissingInput(f"{source}: not a folder; --source takes a folder or an address that starts with "
                                 "http:// or https:// and holds the model's files")
    lacking = {name: wanted for name, wanted in files.items()
               if problem_of(os.path.join(folder, name), wanted) is not None}
    _require_space(folder, lacking)
    for name, wanted in lacking.items():
        locate = None
        if source is None:
            address = wanted.base + name
        elif callable(source):
            address, locate = source(name, wanted)
        elif is_url(source):
            address = source.rstrip("/") + "/" + urllib.parse.quote(name)
        else:
            address = os.path.join(source, name)
        fetch(address, os.path.join(folder, name), wanted, retries, pause, locate)
    return list(lacking)


def _require_space(folder, files):
    """Refuse before the first byte what the disk cannot hold."""
    parts = {name: os.path.join(folder, name + ".part") for name in files}
    needed = sum(max(0, wanted.least_size - (os.path.getsize(parts[name]) if os.path.isfile(parts[name]) else 0))
                 for name, wanted in files.items())
    place = os.path.abspath(folder)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise BadInput(f"{folder}: {needed:,} bytes are to come and {free:,} are free there; free some space or choose "
                       "another --model_dir")
