"""What is said to a person in one line: what was found, what was expected, what to do."""

import functools
import os
import sys

OPENAI_MODEL = "get the folder `model` of OpenAI's repository finetune-transformer-lm (python download_model.py)"


class BadInput(ValueError):
    """Something the user gave cannot be used; the message is the one line the user should read."""


class MissingInput(FileNotFoundError):
    """A file or folder the user named is not there; the message says where to get it."""


def is_first_process():
    """True in the one process of a run, or in the first of several; the others stay quiet."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "1") or os.environ.get("RANK", "0") == "0"


def warn(message):
    """Print one line of warning on standard error, once for all processes."""
    if is_first_process():
        print(f"warning: {message}", file=sys.stderr)


@functools.cache
def warn_once(message):
    """As warn; the same line is not printed again by this process."""
    warn(message)
