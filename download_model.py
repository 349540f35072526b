"""Brings released weights into a folder, goes on where a broken transfer stopped, and checks every file.

    python download_model.py                                   OpenAI's GPT: 13 files, about 470 MB, to model/
    python download_model.py --from hub                        the same weights as the Hugging Face Hub holds them
    python download_model.py --model t5-small                  a T5 of Google's, from the Hub, to model/t5-small/
    python download_model.py --model OWNER/NAME --revision R   any repository of the Hub, to model/OWNER/NAME/
    python download_model.py --verify                          checks a folder that is there; asks no network
    python download_model.py --source ~/finetune-transformer-lm/model      copies from a clone or another server

The Hub's own library says what a repository holds, where it lies and what its sha256 is; it knows tokens (HF_TOKEN),
mirrors (HF_ENDPOINT), offline mode (HF_HUB_OFFLINE) and the cache. The bytes are carried here, from the Hub as from
OpenAI's repository: the library (2.4.0) over HTTP keeps nothing of a file when it is stopped and checks its size alone.
A file in transfer is called NAME.part; it takes its own name only when it has passed its check.
"""

import contextlib
import json
import os
import re
import sys
import urllib.parse
import zipfile
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers, validate_repo_id

import utils
from formats import hub
from formats.checks import Wanted, by_form, is_old_torch, problem_of, verify
from formats.errors import BadInput, MissingInput, warn
from formats.files import make_path, write_atomically
from formats.locks import locked
from formats.transfers import TIMEOUT, Broken, download, is_url

OPENAI = "https://raw.githubusercontent.com/openai/finetune-transformer-lm/master/model/"
RECORD = "downloaded.json"  # what the Hub said of the files beside it


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
GPT_REPOSITORY, GPT_VALUES = "openai-community/openai-gpt", 116_534_784
SPIECE_SHA256 = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
T5_MODELS = {  # name: (repository on the Hub, millions of parameters)
    "t5-small": ("google-t5/t5-small", 60), "t5-base": ("google-t5/t5-base", 222),
    "t5-large": ("google-t5/t5-large", 737), "t5-3b": ("google-t5/t5-3b", 2851),
    "t5-11b": ("google-t5/t5-11b", 11307),
    **{f"{kind}-{size}": (f"google/{kind}-{size}", millions) for kind in ("t5-v1_1", "flan-t5")
       for size, millions in (("small", 76), ("base", 247), ("large", 783), ("xl", 2849), ("xxl", 11135))},
}


def wanted_files(folder, hub_vocabulary=False):
    """Say what GPT's published weights and vocabulary have to be, in the form that a folder holds them in.

    Args:
        hub_vocabulary: the vocabulary that is used is vocab.json and merges.txt of the folder, not OpenAI's two files.
    Returns:
        ({file name: Wanted}, how they are known to be the published ones, in words).
    """
    if os.path.isfile(os.path.join(folder, "params_shapes.json")):
        return OPENAI_FILES, "OpenAI's, every file verified by its git blob id"
    record = read_record(folder) if os.path.isfile(os.path.join(folder, RECORD)) else None
    if record is not None and record.repository == GPT_REPOSITORY:
        weights = {name: wanted for name, wanted in record.files.items()
                   if name not in (*hub.SETTINGS, *hub.VOCABULARIES)}
        return (record.files if hub_vocabulary else VOCABULARY_FILES | weights,
                f"the Hub's ({record.at}), every file verified by its hash")
    weights = {"model.safetensors": Wanted("", "safetensors", GPT_VALUES)}
    if hub_vocabulary:
        return (weights | {name: by_form(name) for name in ("vocab.json", "merges.txt")},
                "the Hub's model.safetensors, its number of values checked, and a vocabulary that is not verified")
    return VOCABULARY_FILES | weights, "the Hub's model.safetensors, its number of values checked"


HUB_ERRORS = (huggingface_hub.errors.HTTPError, OSError, ValueError, KeyError, TypeError)


class Record(NamedTuple):
    """What a repository holds at one commit: its name there, the name asked for, {file name: Wanted}."""

    repository: str
    asked: str
    commit: str
    files: dict

    @property
    def at(self):
        """The repository and the commit in short."""
        return f"{self.repository} at commit {self.commit[:12]}"


def hub_listing(repository, revision=None):
    """Ask the Hub what a repository holds, sizes and hashes included.

    Raises:
        HUB_ERRORS, see formats.hub.in_words.
    """
    info = huggingface_hub.HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT)
    files = {}
    for file in info.siblings:
        if file.lfs is not None:
            files[file.rfilename] = Wanted("", "sha256", file.lfs.sha256, file.lfs.size)
        elif file.blob_id is not None:
            files[file.rfilename] = Wanted("", "git", file.blob_id, file.size or 0)
        else:  # a mirror that lists names alone
            files[file.rfilename] = by_form(file.rfilename)
    if not re.fullmatch("[0-9a-f]{40,64}", info.sha or ""):
        raise ValueError("it names no commit")
    return Record(info.id, repository, info.sha, files)


def hub_source(record):
    """Return the `source` of download for the files of a Record: the Hub's cache, else the Hub."""
    def source(name, wanted):
        url = huggingface_hub.hf_hub_url(record.repository, name, revision=record.commit)

        def locate():
            cached = huggingface_hub.try_to_load_from_cache(record.repository, name, revision=record.commit)
            if isinstance(cached, str) and problem_of(cached, wanted) is None:
                return cached, {}
            try:
                metadata = huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
            except HUB_ERRORS as error:
                if hub.may_pass(error):
                    raise Broken(str(error).splitlines()[0][:150] or type(error).__name__) from None
                raise hub.in_words(error, record.repository, record.commit) from None
            headers = build_hf_headers()
            if urllib.parse.urlsplit(metadata.location)[:2] != urllib.parse.urlsplit(url)[:2]:
                headers.pop("authorization", None)  # large files lie with others, whom the token does not concern
            return metadata.location, headers

        return url, locate

    return source


def cached_listing(folder, repository):
    """Return the Record of a folder in the Hub's cache, where links lead to files that are named by their hashes."""
    files = {}
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        blob = os.path.basename(os.readlink(path)) if os.path.islink(path) else ""
        check = {64: "sha256", 40: "git"}.get(len(blob))
        files[name] = Wanted("", check, blob, os.path.getsize(path)) if check else by_form(name)
    return Record(repository, repository, os.path.basename(folder), files)


def read_record(folder):
    """Return the Record that download_from_hub left in a folder.

    Raises:
        BadInput: it is damaged.
    """
    path = os.path.join(folder, RECORD)
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
        files = {}
        for name, item in value["files"].items():
            check = "sha256" if "sha256" in item else "git"
            files[name] = Wanted("", check, item[check], int(item["size"]))
            if os.path.basename(name) != name:
                raise ValueError
        return Record(*(str(value[key]) for key in ("repository", "asked", "commit")), files)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{path}: damaged; delete it, then run the same command again") from None


def _write_record(folder, record):
    """Leave in `folder` what its files have to be, for --verify; a warning where some file's hash is unknown."""
    path = os.path.join(folder, RECORD)
    if not all(wanted.check in ("sha256", "git") for wanted in record.files.values()):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        warn(f"{folder}: no hashes of these files are known, so only their form is checked")
        return
    files = {name: {"size": wanted.least_size, wanted.check: wanted.expected} for name, wanted in record.files.items()}
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        json.dump({"repository": record.repository, "asked": record.asked, "commit": record.commit, "files": files}, f,
                  indent=1)
        f.write("\n")


def download_from_hub(folder, repository, revision=None, source=None, retries=5, pause=1.0):
    """Bring a model's files from the Hub, its cache or a folder into `folder`, and record there what they are.

    Args:
        repository: OWNER/NAME. revision: a branch, tag or commit; None: main.
        source: a folder that holds the files, asked in place of the Hub.
        retries, pause: as in fetch.
    Returns:
        (the Record of the files that were chosen, the names of those that were fetched).
    Raises:
        MissingInput, BadInput: no such repository or revision, no access, no network, no weights, or as download.
    """
    if source is not None:
        there = _folder_listing(source, repository)
    else:
        try:
            there = hub_listing(repository, revision)
            source = hub_source(there)
        except HUB_ERRORS as error:
            there = None
            if hub.is_out_of_reach(error):
                source = hub.cached_folder(repository, revision)
                there = cached_listing(source, repository) if source else _whole_folder(folder, repository, revision)
            if there is None:
                raise hub.in_words(error, repository, revision) from None
            source = source or folder
            warn(f"{constants.ENDPOINT} could not be asked for a newer version; taking {there.at} from {source}")
    try:
        names = hub.wanted_names(there.files)
    except BadInput as error:
        raise BadInput(f"{repository}: {error}") from None
    _require_room(folder, there, names)
    fetched = []
    index = next((name for name in names if name.endswith(".index.json")), None)
    if index is not None:
        fetched = download(folder, {index: there.files[index]}, source, retries, pause)
        parts = hub.indexed_parts(os.path.join(folder, index))
        if lacking := [part for part in parts if part not in there.files]:
            raise BadInput(f"{repository}: {index} names {lacking[0]}, which is not there; its owner has to mend that")
        names = [*names[:names.index(index) + 1], *parts]
    chosen = there._replace(files={name: there.files[name] for name in names})
    _write_record(folder, chosen)
    return chosen, fetched + download(folder, chosen.files, source, retries, pause)


def _whole_folder(folder, repository, revision):
    """Return the Record in `folder` where all that it names is there and right, else None."""
    if not os.path.isfile(os.path.join(folder, RECORD)):
        return None
    record = read_record(folder)
    right = repository in (record.repository, record.asked) and revision in (None, record.commit)
    return record if right and not verify(folder, record.files) else None


def _folder_listing(source, repository):
    """Return the Record of a folder given as --source: its own, or one without hashes."""
    if is_url(source):
        raise BadInput(f"--source {source}: nothing lists what lies there; for a mirror of the Hub set HF_ENDPOINT "
                       f"({constants.ENDPOINT} now)")
    if not os.path.isdir(source):
        raise MissingInput(f"{source}: not a folder; --source takes a folder that holds the files of {repository}")
    if os.path.isfile(os.path.join(source, RECORD)):
        return read_record(source)
    return Record(repository, repository, "", {name: by_form(name) for name in os.listdir(source)})


def _require_room(folder, there, names):
    """Refuse a folder that holds another model, whose files would be read in place of, or along with, the new ones."""
    if os.path.isfile(os.path.join(folder, RECORD)):
        record = read_record(folder)
        if record.repository != there.repository:
            raise BadInput(f"{folder}: holds {record.repository}; choose another --model_dir for {there.repository}")
    for name in hub.wanted_names([*os.listdir(folder), *names]):
        if name not in names and name not in VOCABULARY_FILES:
            raise BadInput(f"{os.path.join(folder, name)}: is not part of {there.repository} and would be read with "
                           "it; delete it, or choose another --model_dir")


def expected_of_hub_folder(folder, model, repository):
    """Say what the files of a folder from the Hub have to be, as far as that is known without asking it.

    Args:
        model: "gpt", a name of T5_MODELS, or a repository; None: whatever the folder holds.
        repository: the repository that `model` means; None as there.
    Returns:
        ({file name: Wanted}, in words what is checked and what is not).
    Raises:
        BadInput: another model's folder, no weights, a damaged record or index.
    """
    if os.path.isfile(os.path.join(folder, RECORD)):
        record = read_record(folder)
        if repository not in (None, record.repository, record.asked):
            raise BadInput(f"{folder}: holds {record.repository}, not {repository}; check --model and --model_dir")
        return record.files, (f"as the Hub gave size and hash of each for {record.at}; not asked: whether the Hub has "
                              "a newer version")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    try:
        names = hub.wanted_names(names)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from None
    weights = [name for name in names if name not in (*hub.SETTINGS, *hub.VOCABULARIES)]
    if weights[0].endswith(".index.json"):
        weights = [weights[0], *hub.indexed_parts(os.path.join(folder, weights[0]))]
    files = {"config.json": by_form("config.json")} | {name: by_form(name) for name in names} \
        | {name: by_form(name) for name in weights}
    n_values = GPT_VALUES if model == "gpt" else 1_000_000 * T5_MODELS[model][1] if model in T5_MODELS else 0
    if weights == ["model.safetensors"]:
        files[weights[0]] = Wanted("", "safetensors", n_values)
    elif len(weights) == 1:
        files[weights[0]] = files[weights[0]]._replace(least_size=2 * n_values)  # bytes, in 16-bit numbers
    elif sum(os.path.getsize(path) for name in weights
             if os.path.isfile(path := os.path.join(folder, name))) < 2 * n_values:
        raise BadInput(f"{folder}: the parts together are too small for the {n_values:,} values of {model}")
    words = f"each whole in its form; their values were not checked, as no {RECORD} with the Hub's hashes is there"
    if model in T5_MODELS:
        files["config.json"] = Wanted("", "json", "d_model")
        if "spiece.model" in files:
            files["spiece.model"] = Wanted("", "sha256", SPIECE_SHA256, 791_656)
            words += " (except spiece.model, Google's by its sha256)"
    old = [name for name in weights if name.endswith(".bin") and os.path.isfile(path := os.path.join(folder, name))
           and not zipfile.is_zipfile(path) and is_old_torch(path)]
    if old:
        words += f"; {old[0]} is in torch's older form, in which not even a lost end would show"
    return files, words


def main(argv=None, files=None):
    """Download or verify. `files` ({name: Wanted}) stands in for the table of OpenAI's."""
    parser = utils.OneLineParser(prog="download_model.py", description="Bring and check released weights.")
    parser.add_argument("--model", metavar="NAME",
                        help=f"gpt, {', '.join(T5_MODELS)}, or the OWNER/NAME of any repository of the Hub; None: gpt, "
                        "with --verify what the folder holds")
    parser.add_argument("--from", dest="origin", choices=["auto", "openai", "hub"], default="auto",
                        help="OpenAI's repository or the Hugging Face Hub; auto: openai for gpt, hub for all else")
    parser.add_argument("--revision", help="a branch, tag or commit of the repository on the Hub; None: main")
    parser.add_argument("--model_dir", help="the folder to fill or check; None: model/, or model/NAME/ for others "
                        "than gpt")
    parser.add_argument("--source", help="another folder that holds the files, for OpenAI's also a URL; None: the "
                        "usual place")
    parser.add_argument("--verify", action="store_true", help="check the files that are there and fetch nothing")
    parser.add_argument("--retries", type=int, default=5,
                        help="times in a row that a transfer may break without progress")
    args = parser.parse_args(argv)
    utils.require_ranges(args, {"retries": (0, 100)})
    model = args.model or "gpt"
    if model != "gpt" and model not in T5_MODELS and "/" not in model:
        raise BadInput(f"--model {model}: expected gpt, {', '.join(T5_MODELS)}, or OWNER/NAME of a repository")
    if model != "gpt" and args.origin == "openai":
        raise BadInput(f"--from openai: OpenAI's repository has no {model}; leave --from out")
    folder = args.model_dir or (os.path.join("model", *model.split("/")) if model != "gpt" else "model")
    from_hub = model != "gpt" or args.origin == "hub" or (
        args.verify and args.origin == "auto" and os.path.isfile(os.path.join(folder, RECORD)))
    if args.revision is not None and (not from_hub or args.verify or args.source):
        raise BadInput("--revision chooses what is asked of the Hub; it does not go with --verify, --source or "
                       "OpenAI's repository (--from hub)")
    repository = GPT_REPOSITORY if model == "gpt" else T5_MODELS[model][0] if model in T5_MODELS else model
    try:
        validate_repo_id(repository)
    except huggingface_hub.errors.HFValidationError as error:
        raise hub.in_words(error, repository) from None
    if args.verify:
        _verify(folder, *(expected_of_hub_folder(folder, args.model, repository if args.model else None) if from_hub
                          else (files or OPENAI_FILES, "by their git blob ids")))
        return
    was_there = os.path.isdir(folder)
    make_path(os.path.join(folder, RECORD))
    try:
        with locked(folder, "wait until it ends, or choose another --model_dir"):
            if from_hub:
                record, fetched = download_from_hub(folder, repository, args.revision, args.source, args.retries)
                files = record.files
            else:
                files = files or OPENAI_FILES
                fetched = download(folder, files, args.source, args.retries)
    except KeyboardInterrupt:
        raise BadInput("stopped; run the same command again to go on where it was") from None
    finally:
        if not was_there:  # nothing came: leave no empty folder
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    print(f"{folder}: {len(files)} files, {len(set(fetched))} of them fetched now, all as they should be")


def _verify(folder, files, words):
    problems = verify(folder, files)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise BadInput(f"{folder}: {len(problems)} of {len(files)} files are not as they should be; run the "
                             "same command without --verify to bring them")
    print(f"{folder}: {len(files)} files, all as they should be ({words})")


if __name__ == "__main__":
    sys.exit(utils.run_script(main))
