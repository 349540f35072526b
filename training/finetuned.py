"""A fine-tuned GPT in the folder of its run: what train.py writes there besides the parameters, and reading it back.

    task.json                                       the task, its classes, and the sizes of the model
    encoder_bpe_40000.json, vocab_40000.bpe         the vocabulary, without the three special tokens
    best_params                                     see training/loop.py

It needs nothing of our datasets.py, so that a notebook with a library of that name can load a model.
"""

import json
import os
from typing import Any, NamedTuple

import torch

from formats.errors import BadInput, MissingInput
from formats.files import load_tensors
from formats.gpt_vocabulary import OPENAI_FILES
from formats.initial_values import filled
from formats.mapped import load_state_dict
from model_pytorch import ACT_FNS, DEFAULT_CONFIG, DoubleHeadModel
from tasks.layout import SPECIAL
from text_utils import TextEncoder

__all__ = ["Finetuned", "files_of_run", "load_finetuned"]

TASK_FILE = "task.json"
KINDS = {"task": dict, "n_ctx": int, "n_ctx_asked": int, "sizes": dict}  # what task.json has to hold
TASK_KINDS = {"name": str, "transformation": str, "texts": list, "classes": list, "head": (str, list), "cut": str,
              "n_context": int, "score_range": (list, type(None))}


class Finetuned(NamedTuple):
    """A fine-tuned model and what belongs to it.

    Attributes:
        model: the DoubleHeadModel with the best parameters, in evaluation mode.
        encoder: its TextEncoder, with the special tokens.
        class_names: of the logits, in their order; of a multiple choice the choices' names; () for a score.
        settings: what task.json says: {'task': {...}, 'n_ctx': ..., 'n_ctx_asked': ..., 'sizes': {...}}.
    """

    model: DoubleHeadModel
    encoder: TextEncoder
    class_names: tuple[str, ...]
    settings: dict

    def __repr__(self):
        task, sizes = self.settings["task"], self.settings["sizes"]
        names = ", ".join(self.class_names)
        what = (names if len(names) <= 80 else f"{len(self.class_names)} classes") or \
            "a score from {} to {}".format(*task["score_range"])
        return (f"Finetuned({task['name']}: {task['transformation']} into {what}; {sizes['n_layer']} layers of width "
                f"{sizes['n_embd']}, {self.settings['n_ctx']} positions)")


def files_of_run(args: Any, task: Any, encoder: TextEncoder, n_ctx: int) -> dict[str, bytes]:
    """Return {name: bytes} of what belongs into the folder of a run of train.py.

    Args:
        args: its options. task: a gpt_tasks.Task. n_ctx: positions of the model.
    """
    sizes = {name: getattr(args, name) for name in ("n_embd", "n_head", "n_layer", "afn")}
    described = {name: getattr(task, name) for name in TASK_KINDS}
    settings = {"task": described, "n_ctx": n_ctx, "n_ctx_asked": args.n_ctx, "sizes": sizes}
    merges = sorted(encoder.bpe_ranks, key=encoder.bpe_ranks.get)
    pieces = {piece: i for i, piece in encoder.decoder.items()}
    contents = json.dumps(pieces), "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
    texts = dict(zip(OPENAI_FILES, contents, strict=True)) | {TASK_FILE: json.dumps(settings, indent=1) + "\n"}
    return {name: text.encode() for name, text in texts.items()}


def read_settings(folder: str) -> dict:
    """Return what task.json in a folder says.

    Raises:
        MissingInput, BadInput: it is not there, or not as train.py writes it.
    """
    path = os.path.join(folder, TASK_FILE)
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; expected the folder of a run of train.py in save/; an older run gets "
                           "this file from the same command with --resume")
    try:
        with open(path, encoding="utf-8") as f:
            settings = json.load(f)
        found = [(kinds, part.get(name), name) for part, named in ((settings, KINDS), (settings["task"], TASK_KINDS))
                 for name, kinds in named.items()]
        wrong = [name for kinds, value, name in found if not isinstance(value, kinds)]
        wrong += [name for name in ("n_embd", "n_head", "n_layer") if not isinstance(settings["sizes"].get(name), int)]
        wrong += ["afn"] if settings["sizes"].get("afn") not in ACT_FNS else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: is not as train.py writes it ({str(error)[:80]}); run train.py again") from None
    if wrong:
        raise BadInput(f"{path}: lacks {wrong[0]}, or it is of another kind; run train.py again")
    return settings


def load_finetuned(folder: str, dtype: torch.dtype | None = None) -> Finetuned:
    """Return the fine-tuned model in the folder of a run of train.py, with its encoder and the names of its classes.

    Args:
        folder: such as save/NAME. Nothing else is read.
        dtype: of the parameters; torch.bfloat16 takes half of the memory. None: float32.
    Raises:
        MissingInput, BadInput: a file is not there or damaged, or they do not belong together.
    """
    settings = read_settings(folder)
    encoder = TextEncoder.from_folder(folder)
    for name in SPECIAL:
        encoder.encoder[name] = len(encoder.encoder)
    path = os.path.join(folder, "best_params")
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; the run has not come to its first evaluation yet")
    head, n_ctx = settings["task"]["head"], settings["n_ctx"]

    def build():
        return DoubleHeadModel(DEFAULT_CONFIG | settings["sizes"], encoder.encoder[SPECIAL[-1]],
                               head if isinstance(head, str) else tuple(head), len(encoder.encoder) + n_ctx, n_ctx)

    def fill(model):
        load_state_dict(model, load_tensors(path, mapped=True))
        return []

    try:
        model = filled(build, fill, dtype)
    except (RuntimeError, AttributeError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split("\n")[1:2]).strip()[:150] or str(error)[:150]
        raise BadInput(f"{path}: does not fit {TASK_FILE} and the vocabulary beside it ({reason}); the files are of "
                       "different runs") from None
    return Finetuned(model.eval(), encoder, tuple(settings["task"]["classes"]), settings)
