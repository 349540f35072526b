"""The Hugging Face Hub: which files of a repository are a model, and what its library's errors mean."""

import json
import os
import re

from formats.errors import BadInput, MissingInput

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there, in one file or in parts, is taken
VOCABULARIES = ("spiece.model", "tokenizer.json", "vocab.json", "merges.txt", "encoder_bpe_40000.json",
                "vocab_40000.bpe")
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
            "added_tokens.json")
MOST_INDEX_BYTES = 50_000_000
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # OWNER/NAME


def wanted_names(file_names):
    """Choose the files of a repository or folder that a model is read from.

    Weights in safetensors come before those in pytorch_model.bin, and one file before several parts. Parts go with
    their index; which of them count, the index says (indexed_parts).

    Args:
        file_names: what is there, relative to the root; files in subfolders are never chosen.
    Returns:
        A list: settings, vocabulary files, then the weights (an index before its parts).
    Raises:
        BadInput: there are no weights that are read here, or not all of their parts.
    """
    there = set(file_names)
    chosen = [name for name in (*SETTINGS, *VOCABULARIES) if name in there]
    lacking = []
    for name in WEIGHTS:
        if name in there:
            return [*chosen, name]
        index, parts = name + ".index.json", _complete_parts(name, there)
        if index in there and parts:
            return [*chosen, index, *parts]
        if index in there:
            lacking.append(f"{index} without all the parts it needs")
        elif parts:
            lacking.append(f"{len(parts)} parts without {index}")
    found = lacking or sorted(name for name in there if name.endswith(
        (".safetensors", ".bin", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt", ".pt", ".pth", ".npy")))[:5]
    raise BadInput("no weights that are read here: expected model.safetensors or pytorch_model.bin, in one file or in "
                   f"parts with their index; found {', '.join(found) or 'no weights at all'}")


def _complete_parts(name, there):
    """Return the sorted names of the parts of every whole set NAME-00001-of-00003.EXT that is there."""
    stem, extension = os.path.splitext(name)
    sets = {}
    for candidate in there:
        if match := re.fullmatch(rf"{stem}-(\d{{5}})-of-(\d{{5}}){re.escape(extension)}", candidate):
            sets.setdefault(match[2], []).append(candidate)
    return sorted(part for total, parts in sets.items() if len(parts) == int(total) for part in parts)


def indexed_parts(path):
    """Return the sorted names of the files that an index (model.safetensors.index.json) says the tensors lie in.

    Raises:
        BadInput: no index, or one that names a file in another folder.
    """
    try:
        if os.path.getsize(path) > MOST_INDEX_BYTES:
            raise BadInput(f"{path}: more than {MOST_INDEX_BYTES:,} bytes, too many for an index")
        with open(path, encoding="utf-8") as f:
            parts = set(json.load(f)["weight_map"].values())
        if not parts or any(os.path.basename(part) != part or "\\" in part or part in ("", ".", "..")
                            for part in parts):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{path}: not an index; expected a weight_map from tensors to files beside it") from None
    return sorted(parts)


def may_pass(error):
    """Whether an exception of huggingface_hub is one of the network or of a busy server, worth another try."""
    from huggingface_hub import errors  # slow to import, and models read from folders need it not
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, errors.HTTPError) and (status is None or status in (408, 429) or status >= 500)


def in_words(error, repository, revision=None):
    """Return the BadInput or MissingInput that says in one line what an exception of huggingface_hub means."""
    from huggingface_hub import constants, errors
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    at = f"{repository} on {constants.ENDPOINT}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    login = "give your token (set HF_TOKEN, or run hf auth login)"
    if isinstance(error, errors.HFValidationError):
        return BadInput(f"{repository}: not the name of a repository; expected OWNER/NAME, as google/flan-t5-base")
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return MissingInput(f"{repository}{f' at revision {revision}' if revision else ''}: not in the Hub's cache "
                            f"({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to ask the Hub; unset that, or "
                            "bring the files on a machine with a network")
    if isinstance(error, errors.GatedRepoError):
        return BadInput(f"{at}: gated; accept its conditions on {constants.ENDPOINT}/{repository} and {login}")
    if status == 401 and "credentials" in error.response.headers.get("X-Error-Message", ""):
        return BadInput(f"{at}: the token is not valid; {login}, or unset it")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return MissingInput(f"{at}: no such repository, or a private one; check the name, or {login}")
    if isinstance(error, errors.RevisionNotFoundError):
        return MissingInput(f"{at}: no revision {revision}; give a branch, a tag or a commit of this repository")
    if status == 403:
        return BadInput(f"{at}: refused (403); {login} of an account that may read it")
    if status is not None:
        return BadInput(f"{at}: the server answers {status}; try again later, or another mirror (HF_ENDPOINT)")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
    if isinstance(error, (errors.HTTPError, OSError)):
        return BadInput(f"{at}: no answer ({reason}); check the connection, or set HF_ENDPOINT to a mirror")
    return BadInput(f"{at}: the server does not answer as the Hub does ({reason}); check HF_ENDPOINT")


def is_out_of_reach(error):
    """Whether an exception of huggingface_hub says that the Hub could not, or must not, be asked."""
    from huggingface_hub import errors
    return may_pass(error) or isinstance(error, errors.OfflineModeIsEnabled)


def cached_folder(repository, revision=None):
    """Return the folder of a repository in the Hub's cache; None where that does not hold a whole model."""
    import huggingface_hub
    # not snapshot_download: without a network that refuses a cache that lacks any file, a README too
    config = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = os.path.dirname(config)
    there = os.listdir(folder)
    try:
        indexes = [name for name in wanted_names(there) if name.endswith(".index.json")]
        whole = all(part in there for index in indexes for part in indexed_parts(os.path.join(folder, index)))
    except BadInput:
        return None
    return folder if whole else None


def local_folder(name_or_folder, revision=None):
    """Return the local folder (or file) that a path, or the name of a repository on the Hub, means.

    What exists is taken as it is, and so is what looks like a path. A name such as `google/flan-t5-base` is asked of
    the Hub's library, which keeps the files in its cache and, without a network, answers from there.

    Args:
        name_or_folder: a path, or OWNER/NAME.
        revision: branch, tag or commit of the repository.
    Raises:
        MissingInput, BadInput: see in_words and wanted_names.
    """
    name = os.fspath(name_or_folder)
    if os.path.exists(name) or not REPOSITORY.fullmatch(name) or os.path.isdir(os.path.dirname(name)):
        return name
    import huggingface_hub
    try:
        files = [file.rfilename for file in huggingface_hub.model_info(name, revision=revision).siblings]
    except Exception as error:  # the library raises its own types, and those of the two that it uses
        if is_out_of_reach(error) and (cached := cached_folder(name, revision)):
            return cached
        answer = in_words(error, name, revision)
        raise type(answer)(f"{name}: no such folder here; {answer}") from None
    try:
        return huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted_names(files))
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    except Exception as error:
        raise in_words(error, name, revision) from None
