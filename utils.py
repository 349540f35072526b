"""What every script shares: one-line errors, files that are never half written, batches, logs.

Nothing here knows about a model. The names encode_dataset, iter_data, ResultLogger and make_path
are those of `utils.py` in OpenAI's finetune-transformer-lm.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from formats import progress, streams
from formats.errors import BadInput, MissingInput
from formats.files import make_path, write_atomically  # noqa: F401 (make_path is the original's name here)

__all__ = ["OneLineParser", "ResultLogger", "Stopped", "device_names", "encode_dataset", "iter_data", "make_path",
           "read_log", "require_ranges", "run_script", "select_device"]


class Stopped(Exception):
    """The user or the system asked a run to end, and it did so in order; the message says how to go on."""


class DefaultsShown(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, where there is one and the help does not tell it already."""

    def _get_help_string(self, action):
        told = action.default is None or action.default is False or "default:" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults in --help and answers a mistake in one line, status 2."""

    def __init__(self, **kwargs):
        kwargs.setdefault("formatter_class", DefaultsShown)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> None:
        """End with one line, status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def run_script(main: Callable, argv: list[str] | None = None, prints: bool = False) -> int:
    """Call `main(argv)` and return an exit status: 0, 2 after one line for a user's mistake, 130 when stopped.

    Only BadInput and MissingInput are a user's mistakes; any other exception is a defect of ours
    and keeps its traceback. A closed, full or abandoned standard output stops no work; if it was full, the status is
    2 in the end.

    Args:
        prints: what is printed is the script's work, which ends when nobody can take it.
    """
    script = os.path.basename(sys.argv[0])
    with streams.safe_output(prints) as out:
        try:
            status = _status(main, argv, script)
        except streams.OutputLost:
            status = 0
        except SystemExit as error:  # argparse: --help, or a mistake in the options
            if error.code or not out.was_lost():
                raise
            status = 0
        with contextlib.suppress(streams.OutputLost):
            out.flush()
        if out.was_lost():
            print(f"{script}: standard output could not be written ({getattr(out.error, 'strerror', out.error)}); "
                  "what was to be printed is lost" + ("" if prints else ", the files are written"), file=sys.stderr)
            status = status or 2
    return status


def _status(main, argv, script):
    try:
        main(argv)
    except (BadInput, MissingInput) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as error:
        print(f"{script}: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{script}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def require_ranges(args: argparse.Namespace, ranges: dict) -> None:
    """Check numeric options before any work starts.

    Args:
        args: the parsed options (argparse.Namespace).
        ranges: {option name: (smallest, largest)}, both allowed; None means unbounded.
    Raises:
        BadInput: naming every option out of range, its value and what is allowed.
    """
    problems = []
    for name, (low, high) in ranges.items():
        value = getattr(args, name)
        if (low is not None and not value >= low) or (high is not None and not value <= high) \
                or (isinstance(value, float) and not math.isfinite(value)):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            problems.append(f"--{name} is {value}, allowed is {allowed}")
    if problems:
        raise BadInput("; ".join(problems))


def encode_dataset(*splits, encoder: Any) -> list[list]:
    """Turn every list of strings in every split into a list of lists of token ids.

    Args:
        splits: splits, each a tuple of fields (lists of strings, or arrays that pass through
            unchanged); or one tuple of such splits, as `datasets.rocstories` returns them.
        encoder: has .encode(list of strings) -> list of lists of int.
    Returns:
        The same structure with ids in place of strings.
    """
    if len(splits) == 1 and len(splits[0]) and isinstance(splits[0][0][0], (list, tuple, np.ndarray)):
        splits = splits[0]

    def encoded(field):
        is_text = not isinstance(field, np.ndarray) and any(isinstance(text, str) for text in field)
        return encoder.encode(field) if is_text else field

    return [[encoded(field) for field in split] for split in splits]


def iter_data(*datas, n_batch: int = 128, truncate: bool = False, verbose: bool = False,
              max_batches: float = float("inf")) -> Iterator:
    """Yield aligned batches of several arrays of equal length.

    Args:
        n_batch: examples per batch.
        truncate: drop the last, partial batch (training); otherwise it is kept (evaluation).
        verbose: show a progress bar.
        max_batches: stop after that many.
    Yields:
        One array when one was given, else a tuple of arrays.
    Raises:
        BadInput: no arrays, arrays of different lengths, or n_batch is not 1 or more.
    """
    lengths = [len(data) for data in datas]
    if len(set(lengths)) != 1:
        raise BadInput(f"iter_data got arrays of {', '.join(map(str, lengths)) or 'no'} rows, expected one or more "
                       "arrays of the same number")
    if n_batch < 1:
        raise BadInput(f"n_batch is {n_batch}, expected 1 or more")
    n = lengths[0]
    if truncate:
        n = n // n_batch * n_batch
    starts = range(0, n, n_batch)
    if max_batches != float("inf"):
        starts = starts[:max_batches]
    for start in progress.bar(starts, unit="batch", show=verbose):
        batch = tuple(d[start:min(start + n_batch, n)] for d in datas)
        yield batch[0] if len(datas) == 1 else batch


class ResultLogger:
    """A JSON-lines log: first the run's arguments, then one line per `log` call, each with a time.

    Args:
        path: the file. Its folder is made if missing.
        keep: a function of one parsed line; given, the file is continued and only the lines after
            the first for which keep(line) is true are kept (a resumed run drops those it will redo).
        kwargs: the arguments to write as the first line.
    """

    def __init__(self, path: str, *args, keep: Callable[[dict], bool] | None = None, **kwargs):
        kwargs.setdefault("time", time.time())
        lines = [json.dumps(kwargs)]
        if keep is not None and os.path.isfile(path):
            lines = [json.dumps(line) for i, line in enumerate(read_log(path)) if i == 0 or keep(line)] or lines
        with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
            f.write("".join(line + "\n" for line in lines))
        try:
            self.f_log = open(path, "a", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"{path}: cannot be written ({error.strerror}); choose another --log_dir") from None

    def log(self, **kwargs) -> None:
        """Append one line; it is on disk when this returns."""
        kwargs.setdefault("time", time.time())
        try:
            self.f_log.write(json.dumps(kwargs) + "\n")
            self.f_log.flush()
            os.fsync(self.f_log.fileno())
        except OSError as error:
            raise BadInput(f"{self.f_log.name}: could not be written ({error.strerror}); free some space") from None

    def close(self) -> None:
        """Close the file."""
        self.f_log.close()


def reached_epoch(path: str, n_epochs: int) -> dict | None:
    """Return the arguments in the log at `path` if its run has come to that epoch, else None.

    Raises:
        BadInput: it is not JSON lines.
    """
    lines = read_log(path) if os.path.isfile(path) else []
    if len(lines) > 1 and all(isinstance(line, dict) for line in lines) and lines[-1].get("n_epochs") == n_epochs:
        return lines[0]
    return None


def read_log(path: str) -> list[dict]:
    """Return the parsed lines of a ResultLogger file; a last line cut short by a crash is left out.

    Raises:
        MissingInput, BadInput: not there, or not JSON lines.
    """
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; expected a log written by train.py")
    lines = []
    with open(path, encoding="utf-8", errors="replace") as f:
        rows = f.read().split("\n")
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        try:
            lines.append(json.loads(row))
        except ValueError:
            if number == len(rows):
                break
            raise BadInput(f"{path}: line {number} is not JSON; expected a log written by train.py") from None
    return lines


def select_device(name: str) -> torch.device:
    """Return the torch.device for an option: 'cpu', an accelerator's name, or 'auto': the accelerator if there is one.

    torch sees at most one kind of accelerator: 'cuda' (NVIDIA, and AMD through ROCm), 'mps' (Apple), 'xpu' (Intel).

    Raises:
        BadInput: an accelerator is asked for that is not there.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    there = "cpu" if found is None else found.type
    if name not in ("auto", "cpu", there):
        raise BadInput(f"--device {name}: this torch sees no {name.upper()} device; use --device {there}")
    return torch.device(there if name == "auto" else name)


def device_names() -> tuple[str, ...]:
    """Return what --device may be: 'auto', 'cpu' and the accelerators' names, the one that torch sees included."""
    found = torch.accelerator.current_accelerator()
    names = ("auto", "cpu", "cuda", "mps", "xpu")
    return names if found is None or found.type in names else (*names, found.type)
