"""Brings released weights into a folder, goes on where a broken transfer stopped, and checks every file.

    python download_model.py                                   OpenAI's GPT: 13 files, about 470 MB, to model/
    python download_model.py --from hub                        the same weights as the Hub's model.safetensors
    python download_model.py --model t5-small                  a T5 of Google's, from the Hub, to model/t5-small/
    python download_model.py --verify                          checks a folder that is there; fetches nothing
    python download_model.py --source ~/finetune-transformer-lm/model      copies from a clone or another server

Files are fetched one by one with HTTP ranges rather than by `git clone`, which starts anew when it breaks.
A file in transfer is called NAME.part; it takes its own name only when it has passed its check.
"""

import hashlib
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

import utils
from formats import progress
from formats.errors import BadInput, MissingInput
from formats.files import is_lfs_pointer, make_path

OPENAI = "https://raw.githubusercontent.com/openai/finetune-transformer-lm/master/model/"
HUB = "https://huggingface.co/{}/resolve/main/"
CHUNK = 1 << 18  # bytes
TIMEOUT = 60  # seconds without a byte


class Wanted(NamedTuple):
    """What a file has to be.

    check is the name of a check and `expected` what it has to give: "git" a git blob id, "sha256" a
    sha256, "safetensors" at least so many stored values, "json" a key the object has. A file of fewer
    than `least_size` bytes is called truncated. `base` is the address it is fetched from.
    """

    base: str
    check: str
    expected: object
    least_size: int = 1


# The git blob ids are those of the folder `model` in OpenAI's finetune-transformer-lm. A params file holds
# 11,653,479 (the first four) or 11,653,478 float32 values behind a header of its own.
VOCABULARY_FILES = {
    "encoder_bpe_40000.json": Wanted(OPENAI, "git", "9dc3f0af5a80956e57dc8d9401e16dfadcade7c2", 815_973),
    "vocab_40000.bpe": Wanted(OPENAI, "git", "0023a687b3d4d0b795a5e97cc914bdabb5a253df", 458_495),
}
PARAMS_BLOBS = [
    "84d83ac1f1cc878f56f33b167482c184491875d2", "0f19f4d4cda3d8f908e3faffd2cb2a8b9a4039da",
    "25bc19c72fdff69505a828ec6d73b32063532148", "5b2e6958d42a930966c9d602a012eb846ca67c83",
    "87ad158987e307e6aa64952610f466d750b73bc7", "74f3853316bba327229605dbedfe921996f11448",
    "5ef44e40bc076d0c9686d1273d54cbc16c3f0980", "d8d5c8d3bee9b20a677605ac1fe6c7af4df57c94",
    "f980f4b393716f396ae5ae6401708dcf4f270dc9", "d389eb2074dd74754444b8062aba78b49f6a9053",
]
OPENAI_FILES = {
    **VOCABULARY_FILES,
    "params_shapes.json": Wanted(OPENAI, "git", "29fac299ae848d7e447be84a33345edcf1b5353c", 1_478),
    **{f"params_{i}.npy": Wanted(OPENAI, "git", blob, 4 * (11_653_479 if i < 4 else 11_653_478))
       for i, blob in enumerate(PARAMS_BLOBS)},
}
# The Hub has the weights in one file; the two vocabulary files still come from the authors.
HUB_FILES = {
    **VOCABULARY_FILES,
    "model.safetensors": Wanted(HUB.format("openai-community/openai-gpt"), "safetensors", 116_534_784),
}
SPIECE_SHA256 = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
T5_MODELS = {  # name: (repository on the Hub, millions of parameters)
    "t5-small": ("google-t5/t5-small", 60), "t5-base": ("google-t5/t5-base", 222),
    "t5-large": ("google-t5/t5-large", 737), "t5-3b": ("google-t5/t5-3b", 2851),
    "t5-11b": ("google-t5/t5-11b", 11307),
    **{f"{kind}-{size}": (f"google/{kind}-{size}", millions) for kind in ("t5-v1_1", "flan-t5")
       for size, millions in (("small", 76), ("base", 247), ("large", 783), ("xl", 2849), ("xxl", 11135))},
}


def wanted_files(model, origin):
    """Return {file name: Wanted} of a model: "gpt" from "openai" or "hub", or a name of T5_MODELS."""
    if model == "gpt":
        return {"openai": OPENAI_FILES, "hub": HUB_FILES}[origin]
    repository, millions = T5_MODELS[model]
    base = HUB.format(repository)
    return {"config.json": Wanted(base, "json", "d_model"),
            "spiece.model": Wanted(base, "sha256", SPIECE_SHA256, 791_656),
            "model.safetensors": Wanted(base, "safetensors", millions * 1_000_000)}


# Checks


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
            return _problem_of_safetensors(path, size, wanted.expected)
        found = git_blob_id(path) if wanted.check == "git" else file_hash(path, wanted.check)
    except OSError as error:
        return f"cannot be read ({error.strerror}); check its permissions"
    if found != wanted.expected:
        return f"altered: found the {wanted.check} hash {found}, expected {wanted.expected}"
    return None


def _problem_of_json(path, key):
    try:
        with open(path, encoding="utf-8") as f:
            found = json.loads(f.read(1 << 20))
    except (ValueError, RecursionError):
        return "altered: it is not JSON"
    return None if isinstance(found, dict) and key in found else f"altered: it has no {key}, expected a model's config"


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


# Transfers


def _is_url(address):
    return re.match("https?://", address) is not None


class _Broken(Exception):
    """A transfer stopped before the end; what came is kept and it may be tried again."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and remembers the sha256 with which the Hub announces a large file on the way."""

    sha256 = None

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        announced = headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", announced):
            self.sha256 = announced
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_source(address, start):
    """Open a file or URL at byte `start`.

    Returns:
        (readable, the byte it really starts at, whole size or None, sha256 or None); the readable is None
        where there is nothing after `start`.
    Raises:
        _Broken: worth another try.
        MissingInput, BadInput: not worth it.
    """
    if not _is_url(address):
        if not os.path.isfile(address):
            raise MissingInput(f"{address}: not found; expected all files of the model in the folder --source")
        try:
            size, source = os.path.getsize(address), open(address, "rb")
        except OSError as error:
            raise BadInput(f"{address}: cannot be read ({error.strerror}); check its permissions") from None
        return source, source.seek(start if start <= size else 0), size, None
    redirects = _Redirects()
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "download_model.py"})
        if start:
            request.add_header("Range", f"bytes={start}-")
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # nothing after `start`: all is here, or what is here is something else
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return None, start, start, redirects.sha256
            return _open_source(address, 0)
        if error.code in (408, 429) or error.code >= 500:
            raise _Broken(f"the server answers {error.code} {error.reason}") from None
        if error.code == 404:
            hint = "; the Hub holds its largest models in several parts, which its own client brings (pip install " \
                "huggingface_hub; hf download REPOSITORY --local-dir FOLDER)" if "//huggingface.co/" in address else ""
            raise MissingInput(f"{address}: the server has no such file (404); check --model and --source"
                                     f"{hint}") from None
        raise BadInput(f"{address}: the server refuses ({error.code} {error.reason}); open the address in a "
                             "browser, or copy the files from elsewhere and use --verify") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(getattr(error, "reason", error)) or type(error).__name__) from None
    except ValueError as error:
        raise BadInput(f"{address}: not an address ({error}); check --source") from None
    length = response.headers.get("Content-Length", "")
    total, at = int(length) if length.isdecimal() else None, 0
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != start:
            response.close()
            if start:
                return _open_source(address, 0)
            raise _Broken("the server sends another range than was asked for")
        at, total = start, int(span[2]) + 1 if span[3] == "*" else int(span[3])
    return response, at, total, redirects.sha256


def _transfer(address, part):
    """Bring a file or URL to `part`, going on where that ends; return the sha256 its server announces, or None.

    Raises as _open_source does, and BadInput where `part` cannot be written.
    """
    have = os.path.getsize(part) if os.path.isfile(part) else 0
    source, at, total, sha256 = _open_source(address, have)
    if source is None:
        return sha256
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
    if total is not None and at < total:
        raise _Broken(f"the connection ended after {at:,} of {total:,} bytes")
    return sha256


def _read(source):
    """Return the next bytes of a source, b"" at its end; raise _Broken where reading fails."""
    try:
        return source.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from None


def fetch(address, path, wanted, retries=5, pause=1.0):
    """Bring one file to `path`, checked, going on from `path`.part if that is there.

    Args:
        address: a URL or the path of a file.
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
            announced = _transfer(address, part)
        except _Broken as error:
            size = os.path.getsize(part) if os.path.isfile(part) else 0
            best, failures = max(best, size), 0 if size > best else failures + 1
            if failures > retries:
                raise BadInput(f"{address}: the transfer broke {failures} time(s) without progress ({error}); "
                                     f"check the connection and run the same command again: {size:,} bytes of the "
                                     "file are here already and will be kept") from None
            time.sleep(pause * 2 ** max(0, failures - 1))
            continue
        problem = problem_of(part, wanted)
        if problem is None and announced and file_hash(part, "sha256") != announced:
            problem = f"altered: expected the sha256 {announced} that its server announces"
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
        source: a folder or URL that holds all of them; None: each file's own address.
        retries, pause: as in fetch.
    Returns:
        The names of the files that were fetched.
    Raises:
        MissingInput, BadInput: as fetch; the files that came before stay.
    """
    if source is not None and not _is_url(source) and not os.path.isdir(source):
        raise MissingInput(f"{source}: not a folder; --source takes a folder or an address that starts with "
                                 "http:// or https:// and holds the model's files")
    fetched = []
    for name, wanted in files.items():
        path = os.path.join(folder, name)
        if problem_of(path, wanted) is None:
            continue
        if source is None:
            address = wanted.base + name
        elif _is_url(source):
            address = source.rstrip("/") + "/" + urllib.parse.quote(name)
        else:
            address = os.path.join(source, name)
        fetch(address, path, wanted, retries, pause)
        fetched.append(name)
    return fetched


def main(argv=None, files=None):
    """Download or verify. `files` ({name: Wanted}) stands in for the table of the model that is asked for."""
    parser = utils.OneLineParser(prog="download_model.py", description="Bring and check released weights.")
    parser.add_argument("--model", metavar="NAME", choices=["gpt", *T5_MODELS], default="gpt",
                        help=f"gpt, or one of {', '.join(T5_MODELS)}")
    parser.add_argument("--from", dest="origin", choices=["auto", "openai", "hub"], default="auto",
                        help="OpenAI's repository or the Hugging Face Hub; auto: openai for gpt, hub for a T5")
    parser.add_argument("--model_dir", help="the folder to fill or check; None: model/, or model/NAME/ for a T5")
    parser.add_argument("--source", help="another folder or URL that holds the files; None: the usual one")
    parser.add_argument("--verify", action="store_true", help="check the files that are there and fetch nothing")
    parser.add_argument("--retries", type=int, default=5,
                        help="times in a row that a transfer may break without progress")
    args = parser.parse_args(argv)
    utils.require_ranges(args, {"retries": (0, 100)})
    is_t5 = args.model != "gpt"
    if is_t5 and args.origin == "openai":
        raise BadInput(f"--from openai: OpenAI's repository has no {args.model}; leave --from out")
    if files is None:
        files = wanted_files(args.model, "hub" if args.origin == "hub" else "openai")
    folder = args.model_dir or (os.path.join("model", args.model) if is_t5 else "model")
    if not args.verify:
        try:
            fetched = download(folder, files, args.source, args.retries)
        except KeyboardInterrupt:
            raise BadInput("stopped; run the same command again to go on where it was") from None
        print(f"{folder}: {len(files)} files, {len(fetched)} of them fetched now, all as they should be")
        return
    problems = verify(folder, files)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise BadInput(f"{folder}: {len(problems)} of {len(files)} files are not as they should be; run the "
                             "same command without --verify to bring them")
    print(f"{folder}: {len(files)} files, all as they should be")


if __name__ == "__main__":
    sys.exit(utils.run_script(main))
