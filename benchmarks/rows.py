"""The rows: what is measured, and against whom. To add one, write its two sides and name them here.

A side is a function in ours.py, of (case, plain), or in peers.py, of (case, setting), that returns a cases.Work.
`agree` holds every row to the same numbers on both sides, in a tiny form, before its time is taken.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks import ours, peers
from benchmarks.cases import KINDS, TINY, Case
from benchmarks.peers import settings
from formats.errors import BadInput

LARGEST_DIFFERENCE = 2e-5  # of real numbers, for the largest of them


class Row(NamedTuple):
    """Work, and who does it.

    Attributes:
        ours: function of (case, plain) returning a Work.
        peers: {name: (function of (case, setting) returning a Work, function of a precision returning settings)}; the
            best of the settings is taken.
        same_work: whether times may be compared; else the row is for its memory.
        devices, precisions: where and how it runs.
        plain: whether --plain is measured too; decoding without a cache takes long.
    """

    ours: Callable
    peers: dict
    same_work: bool = True
    devices: tuple = ("cpu", "cuda")
    precisions: tuple = ("fp32", "bf16")
    plain: bool = True


def no_choice(precision):
    """The settings of a peer that has none."""
    return [""]


def _gpt_generate(batch):
    predicts = settings("sdpa", "eager", predicts=True)
    return Row(partial(ours.gpt_generate, batch=batch), {
        "transformers": (partial(peers.gpt_generate, batch=batch), settings("eager", predicts=True)),
        "transformers' GPT-2": (partial(peers.gpt2_generate, batch=batch), predicts)}, plain=False)


def _task(kind, what):
    """Training or evaluation on a task of GPT-1's paper, a key of cases.KINDS."""
    mine, theirs = {"train": (ours.task_train, peers.task_train),
                    "evaluate": (ours.task_evaluate, peers.task_evaluate)}[what]
    return Row(partial(mine, kind=kind), {
        "transformers": (partial(theirs, kind=kind), settings("eager", predicts=what == "evaluate"))},
        plain=(kind, what) != ("race", "train"))  # beside transformers it wants more than 24 GB


def _t5_decode(batch, beams):
    what = dict(batch=batch, beams=beams)
    return Row(partial(ours.t5_decode, **what), {
        "transformers": (partial(peers.t5_decode, **what), settings("sdpa", "eager", predicts=True)),
        **{f"CTranslate2 {t}": (partial(peers.ctranslate2_t5, compute_type=t, **what), no_choice)
           for t in ("float32", "int8")}}, plain=batch == 1)


def _t5_answers(kind, beams=1):
    what, choices = dict(kind=kind, beams=beams), settings("sdpa", "eager", predicts=True)
    theirs = {f"transformers, {order}": (partial(peers.t5_answers, ordered=ordered, **what), choices)
              for order, ordered in (("sorted", True), ("in order", False))}
    stay = partial(ours.t5_answers, leave=False, **what)
    return Row(partial(ours.t5_answers, **what), theirs | {
        "ours, all rows stay": (lambda case, setting: stay(case), no_choice)}, plain=False)


ROWS = {
    "gpt-train": Row(ours.gpt_train, {"transformers": (peers.gpt_train, settings("eager"))}),
    "gpt-pretrain": Row(ours.gpt_pretrain, {"transformers' GPT-2": (peers.gpt2_pretrain, settings("sdpa", "eager"))}),
    "gpt-evaluate": Row(ours.gpt_evaluate, {
        "transformers": (peers.gpt_evaluate, settings("eager", predicts=True)),
        "its parts, no words": (partial(peers.gpt_evaluate, with_words=False), settings("eager", predicts=True))}),
    "gpt-generate-1": _gpt_generate(1),
    "gpt-generate-8": _gpt_generate(8),
    **{f"gpt-{kind}-{what}": _task(kind, what) for kind in KINDS for what in ("train", "evaluate")},
    "t5-train": Row(ours.t5_train, {"transformers": (peers.t5_train, settings("sdpa", "eager"))}),
    "t5-pretrain": Row(ours.t5_pretrain, {"transformers": (peers.t5_pretrain, settings("sdpa", "eager"))}),
    "t5-greedy-1": _t5_decode(1, 1),
    "t5-greedy-16": _t5_decode(16, 1),
    "t5-beam4-1": _t5_decode(1, 4),
    "t5-beam4-16": _t5_decode(16, 4),
    "t5-labels": _t5_answers("labels"),                       # as of SST-2
    "t5-answers": _t5_answers("answers"),                     # as of SQuAD
    "t5-summaries": _t5_answers("summaries", beams=4),        # as of CNN/Daily Mail
    # a whole default update of ours, 4 towers of 8 stories, against one batch of 8 of theirs
    "gpt-default-update-memory": Row(partial(ours.gpt_train, towers=4),
                                     {"transformers": (peers.gpt_train, settings("eager"))}, same_work=False,
                                     precisions=("fp32",), plain=False),
    "gpt-3-epochs": Row(ours.gpt_three_epochs, {}, devices=("cuda",), plain=False),
}


def sides(row, precision):
    """Return the sides of a row: {name: {setting: function of a case returning a Work}}; ours is the first.

    Args:
        row: a Row.
    """
    all_sides = {"ours": {"": row.ours}} | ({"ours, --plain": {"": partial(row.ours, plain=True)}} if row.plain else {})
    for name, (build, settings_of) in row.peers.items():
        all_sides[name] = {}
        for setting in settings_of(precision):
            all_sides[name][str(setting)] = partial(build, setting=setting)
            with_compiler = peers.with_compiler(setting)
            if with_compiler is not None:
                all_sides[name][str(with_compiler)] = partial(build, setting=with_compiler)
    return all_sides


def agree(name, builds=None):
    """Check on the tiny form that the sides of a row compute the same numbers.

    Args:
        name: of a row. builds: see sides; None: all that run without torch.compile.
    Returns:
        The names of the sides that were compared with ours, and why each of the others was not: {name: reason or None}.
    Raises:
        BadInput: two sides differ.
    """
    case, said = Case(TINY), {}
    if builds is None:
        builds = {f"{side}, {setting}".strip(", "): build for side, of_side in sides(ROWS[name], "fp32").items()
                  for setting, build in of_side.items() if "compiled" not in setting}
    expected = builds["ours"](case).numbers
    for side, build in builds.items():
        if side == "ours":
            continue
        try:
            numbers = build(case).numbers
        except ImportError as error:
            said[side] = f"absent: {error}"
            continue
        said[side] = None if numbers and expected else "another model, or other weights"
        if said[side] is None:
            require_equal(f"{name}: {side}", expected(), numbers())
    return said


def require_equal(what, expected, found):
    """Raise BadInput unless two tensors are equal, or for real numbers within LARGEST_DIFFERENCE of the largest."""
    if expected.shape != found.shape:
        raise BadInput(f"{what}: a result of the shape {list(found.shape)}, ours is {list(expected.shape)}")
    if not expected.is_floating_point():
        if not torch.equal(expected, found):
            raise BadInput(f"{what}: ids {found.tolist()}, ours are {expected.tolist()}")
        return
    off, largest = (expected - found).abs().max().item(), expected.abs().max().item()
    if not off <= LARGEST_DIFFERENCE * largest:
        raise BadInput(f"{what}: differs from ours by {off:.2g}, where the largest number is {largest:.2g}")
