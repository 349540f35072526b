"""Folders by name: one that is here, or a repository of the Hugging Face Hub, brought by its own library."""

import fnmatch
import os
import re

from formats.errors import MissingInput

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CONFIGURATION = ("*.json", "*.model", "*.txt", "*.bpe")  # configuration, index and vocabulary
WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin", "params_*.npy")


def local_folder(name_or_folder, revision=None):
    """Return the local folder (or file) that a path or the name of a repository on the Hub means.

    What exists is taken as it is, and so is what looks like a path. A name such as `google/flan-t5-base` is asked of
    the Hub's library, which resumes, checks, and answers from its cache where it can; HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE mean what they mean there.

    Raises:
        MissingInput: neither a folder here nor a repository that can be had.
    """
    name = os.fspath(name_or_folder)
    if os.path.exists(name) or not REPOSITORY.fullmatch(name) or os.path.isdir(os.path.dirname(name)):
        return name
    import huggingface_hub  # here, as it takes a second, which those who have a folder need not pay
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    try:
        try:
            files = [file.rfilename for file in huggingface_hub.model_info(name, revision=revision).siblings]
        except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except Exception:  # no network, offline mode, a server that is down: what the cache holds will do
            return huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
        wanted = next((kind for kind in WEIGHTS if fnmatch.filter(files, kind)), None)
        return huggingface_hub.snapshot_download(name, revision=revision,
                                                 allow_patterns=[*CONFIGURATION, *([wanted] if wanted else [])])
    except Exception as error:  # the library raises its own types and those of two others
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise MissingInput(f"{name}: no such folder, and nothing of that name could be had from the Hugging Face Hub "
                           f"({reason[0][:150]})") from None
