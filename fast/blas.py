"""Which of the two CPU libraries that torch carries multiplies float32 matrices: MKL or oneDNN.

torch itself calls MKL for float32 (and oneDNN for bfloat16). Which one is faster depends on the processor's maker: on
AMD's EPYCs MKL takes 1.05 to 3 times oneDNN's time, on Intel's Xeons oneDNN takes 1.05 to 1.9 times MKL's
(docs/speed.md). The two round differently, and a run has to repeat itself bit for bit on one machine. So the choice
follows the maker, who stays the same, and not a measurement, which does not: for one product of one EPYC the ratio was
1.3 in a quiet moment and 0.7 while others used the machine. Where nothing was measured the library is torch's own. With
oneDNN go the ways that matmul.py has for a few rows, which were measured on the same processors.
`python -m fast.rates` measures; the environment variable GPT_T5_MATMUL forces a library.

A training run notes its library in its log and its checkpoint, see training/loop.py.
"""

import contextlib
import functools
import os
import platform

import torch

from formats.errors import BadInput, warn

LIBRARIES = ("mkl", "onednn")  # mkl: what torch calls by itself, which is MKL on x86
VARIABLE = "GPT_T5_MATMUL"
ONEDNN_IS_FASTER = ("AuthenticAMD", "HygonGenuine")  # makers of processors on which MKL lags, see above

_settled = None  # see settle


def in_force() -> str:
    """Return the library in force, one of LIBRARIES: that of the run, else of the environment, else of the processor.

    Raises:
        BadInput: the environment variable has another value.
    """
    return _settled or of_this_machine()


def of_this_machine() -> str:
    """Return the library that GPT_T5_MATMUL asks for, else that of the processor.

    Raises:
        BadInput: see forced_library.
    """
    return forced_library() or usual_library(maker())


def forced_library() -> str | None:
    """Return the library that GPT_T5_MATMUL asks for, or None.

    Raises:
        BadInput: it names none, or one that this torch lacks.
    """
    name = os.environ.get(VARIABLE, "")
    if name not in ("", *LIBRARIES):
        raise BadInput(f"the environment variable {VARIABLE} is {name!r}, expected {' or '.join(LIBRARIES)}; unset it "
                       "to leave the choice to the processor's kind")
    if name == "onednn" and not torch.backends.mkldnn.is_available():
        raise BadInput(f"the environment variable {VARIABLE} is onednn, but this torch has no oneDNN; unset it")
    return name or None


def usual_library(maker: str) -> str:
    """Return the library for processors of a maker."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return "onednn" if both and maker in ONEDNN_IS_FASTER else "mkl"


@functools.cache
def maker() -> str:
    """Return the processor's maker as the processor writes it, such as GenuineIntel; "" where nothing tells."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
        for line in f:
            if line.startswith("vendor_id"):
                return line.split(":", 1)[1].strip()
    return platform.processor().rpartition(", ")[2]  # Windows: "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD"


@contextlib.contextmanager
def of_one_run():
    """Give back after the body the freedom to choose that `settle` took."""
    global _settled
    before = _settled
    try:
        yield
    finally:
        _settled = before


def settle(here: str, made_by: str | None, path: str) -> str:
    """Let one library do all products of a run, and return its name.

    A run that goes on from a checkpoint takes that of the checkpoint, unless GPT_T5_MATMUL asks for another. A line
    says where this machine would choose otherwise.

    Args:
        here: what this machine chooses; of several processes, what the first one's does.
        made_by: the library of the checkpoint; None: there is none, and the choice is free.
        path: the checkpoint, for the line.
    """
    global _settled
    _settled = made_by or here
    if _settled == here:
        return here
    made = f"{path}: its matrix products were made by {made_by}"
    if forced_library() is not None:
        warn(f"{made}, those to come by {here} ({VARIABLE}), which rounds differently")
        _settled = here
    elif made_by not in LIBRARIES or made_by == "onednn" and not torch.backends.mkldnn.is_available():
        warn(f"{made}, which this torch lacks; those to come by {here}, which rounds differently")
        _settled = here
    else:
        warn(f"{made}, and so are those to come; this processor's own choice would be {here} ({VARIABLE}={here} takes "
             "that, which rounds differently)")
    return _settled
