"""A fine-tuned model in the folder of its run: what is there besides the parameters, and reading it back.

    task.json                                       what it was trained for
    best_params                                     see training/loop.py
    encoder_bpe_40000.json, vocab_40000.bpe         of a GPT: the vocabulary, without the three special tokens
    config.json, model.safetensors, spiece.model    of a T5, as in the folder of a released one, when the run has ended

A GPT's task.json has the task, its classes and the sizes of the model; a T5's has how inputs are read and answered.
"""

import json
import os
from typing import Any, NamedTuple

import torch

from ablations.lstm import make_model
from formats.errors import BadInput, MissingInput
from formats.files import load_tensors
from formats.gpt_vocabulary import OPENAI_FILES
from formats.initial_values import filled
from formats.mapped import load_state_dict
from model_pytorch import ACT_FNS, DEFAULT_CONFIG, DoubleHeadModel
from t5_pytorch import T5, T5_CONFIGS, load_t5_pretrained_model, read_t5_config
from tasks.layout import SPECIAL
from text_utils import SentencePieceEncoder, TextEncoder
from training.answering import DECODE_LENGTH

__all__ = ["Finetuned", "files_of_run", "load_finetuned", "load_released_t5", "t5_files_of_run"]

TASK_FILE = "task.json"
KINDS = {"task": dict, "n_ctx": int, "n_ctx_asked": int, "sizes": dict}  # what task.json has to hold
TASK_KINDS = {"name": str, "transformation": str, "texts": list, "classes": list, "head": (str, list), "cut": str,
              "n_context": int, "score_range": (list, type(None))}
# what a T5's has to hold: the run's data set, tokens of an input and of an answer, beams of a search (1: greedy), and
# how rows of one's own data became inputs
T5_KINDS = {"model": str, "dataset": str, "n_ctx": int, "decode_length": int, "beams": int, "column": str,
            "template": (str, type(None))}
RELEASED = {"model": "t5", "dataset": "as released", "n_ctx": 512, "decode_length": DECODE_LENGTH, "beams": 1,
            "column": "input", "template": None}


class Finetuned(NamedTuple):
    """A fine-tuned model and what belongs to it.

    Attributes:
        model: the DoubleHeadModel or T5 with the best parameters, in evaluation mode.
        encoder: its TextEncoder, with the special tokens, or its SentencePieceEncoder.
        class_names: of the logits, in their order; of a multiple choice the choices' names; () for a score and a T5.
        settings: what task.json says: {'task': {...}, 'n_ctx': ..., 'n_ctx_asked': ..., 'sizes': {...}}, or for a T5
            the names of T5_KINDS.
    """

    model: DoubleHeadModel | T5
    encoder: TextEncoder | SentencePieceEncoder
    class_names: tuple[str, ...]
    settings: dict

    def __repr__(self):
        if isinstance(self.model, T5):
            return (f"Finetuned({self.settings['dataset']}: text to text; a T5 of {len(self.model.encoder.block)} "
                    f"layers of width {self.model.dim})")
        task, sizes = self.settings["task"], self.settings["sizes"]
        names = ", ".join(self.class_names)
        what = (names if len(names) <= 80 else f"{len(self.class_names)} classes") or \
            "a score from {} to {}".format(*task["score_range"])
        layers = f"{sizes['n_layer']} layers" if "n_unit" not in sizes else f"an LSTM of {sizes['n_unit']} units"
        return (f"Finetuned({task['name']}: {task['transformation']} into {what}; {layers} of width "
                f"{sizes['n_embd']}, {self.settings['n_ctx']} positions)")


def files_of_run(args: Any, task: Any, encoder: TextEncoder, n_ctx: int) -> dict[str, bytes]:
    """Return {name: bytes} of what belongs into the folder of a run of train.py.

    Args:
        args: its options. task: a gpt_tasks.Task. n_ctx: positions of the model.
    """
    more = ("architecture", "n_unit") if args.architecture == "lstm" else ()
    sizes = {name: getattr(args, name) for name in ("n_embd", "n_head", "n_layer", "afn", *more)}
    described = {name: getattr(task, name) for name in TASK_KINDS}
    settings = {"task": described, "n_ctx": n_ctx, "n_ctx_asked": args.n_ctx, "sizes": sizes}
    merges = sorted(encoder.bpe_ranks, key=encoder.bpe_ranks.get)
    pieces = {piece: i for i, piece in encoder.decoder.items()}
    contents = json.dumps(pieces), "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
    texts = dict(zip(OPENAI_FILES, contents, strict=True)) | {TASK_FILE: json.dumps(settings, indent=1) + "\n"}
    return {name: text.encode() for name, text in texts.items()}


def t5_files_of_run(settings: dict) -> dict[str, bytes]:
    """Return {name: bytes} of what belongs into the folder of a run of train_t5.py; settings: see T5_KINDS."""
    return {TASK_FILE: (json.dumps(settings, indent=1) + "\n").encode()}


def read_settings(folder: str) -> dict:
    """Return what task.json in a folder says. The folder of a T5 may be without.

    Raises:
        MissingInput, BadInput: it is not there, or not as train.py writes it.
    """
    path = os.path.join(folder, TASK_FILE)
    if not os.path.isfile(path):
        if any(os.path.isfile(os.path.join(folder, name)) for name in ("spiece.model", "tokenizer.json")):
            return RELEASED  # a released T5, or a run of before task.json was written
        raise MissingInput(f"{path}: not found; expected the folder of a run of train.py or train_t5.py in save/; an "
                           "older run of train.py gets this file from the same command with --resume")
    try:
        with open(path, encoding="utf-8") as f:
            settings = json.load(f)
        if settings.get("model") == "t5":
            wrong = [name for name, kinds in T5_KINDS.items() if not isinstance(settings.get(name), kinds)]
            wrong += [name for name in ("n_ctx", "decode_length", "beams") if not settings.get(name, 0) >= 1]
            if wrong:
                raise BadInput(f"{path}: lacks {wrong[0]}, or it is of another kind; run train_t5.py again")
            return settings
        found = [(kinds, part.get(name), name) for part, named in ((settings, KINDS), (settings["task"], TASK_KINDS))
                 for name, kinds in named.items()]
        wrong = [name for kinds, value, name in found if not isinstance(value, kinds)]
        wrong += [name for name in ("n_embd", "n_head", "n_layer") if not isinstance(settings["sizes"].get(name), int)]
        wrong += ["afn"] if settings["sizes"].get("afn") not in ACT_FNS else []
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: is not as train.py writes it ({str(error)[:80]}); run train.py again") from None
    if wrong:
        raise BadInput(f"{path}: lacks {wrong[0]}, or it is of another kind; run train.py again")
    return settings


def load_finetuned(folder: str, dtype: torch.dtype | None = None) -> Finetuned:
    """Return the fine-tuned model in the folder of a run, with its encoder and the names of its classes.

    Args:
        folder: such as save/NAME, of train.py or train_t5.py; or of a released T5. Nothing else is read.
        dtype: of the parameters; torch.bfloat16 takes half of the memory. None: float32.
    Raises:
        MissingInput, BadInput: a file is not there or damaged, or they do not belong together.
    """
    settings = read_settings(folder)
    if settings.get("model") == "t5":
        return _finetuned_t5(folder, settings, dtype)
    encoder = TextEncoder.from_folder(folder)
    for name in SPECIAL:
        encoder.encoder[name] = len(encoder.encoder)
    path = os.path.join(folder, "best_params")
    if not os.path.isfile(path):
        raise MissingInput(f"{path}: not found; the run has not come to its first evaluation yet")
    head, n_ctx = settings["task"]["head"], settings["n_ctx"]
    try:
        model = filled(lambda: make_model(DoubleHeadModel, DEFAULT_CONFIG | settings["sizes"],
                                          encoder.encoder[SPECIAL[-1]], head if isinstance(head, str) else tuple(head),
                                          vocab=len(encoder.encoder) + n_ctx, n_ctx=n_ctx), _fill_from(path), dtype)
    except (RuntimeError, AttributeError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split("\n")[1:2]).strip()[:150] or str(error)[:150]
        raise BadInput(f"{path}: does not fit {TASK_FILE} and the vocabulary beside it ({reason}); the files are of "
                       "different runs") from None
    return Finetuned(model.eval(), encoder, tuple(settings["task"]["classes"]), settings)


def _finetuned_t5(folder, settings, dtype):
    """load_finetuned for a T5: the best parameters so far; a released folder has its own."""
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise MissingInput(f"{os.path.join(folder, 'config.json')}: not found; the folder of a run of train_t5.py gets "
                           "it when the run has ended, which --resume goes on with")
    path = os.path.join(folder, "best_params")
    if not os.path.isfile(path) and settings is not RELEASED and os.path.isfile(f"{path}.previous"):
        raise MissingInput(f"{path}: not found; the run has not come to its first evaluation yet")
    if not os.path.isfile(path):
        return load_released_t5(folder, dtype=dtype)._replace(settings=settings)
    encoder, config = SentencePieceEncoder.from_folder(folder), read_t5_config(folder)
    _require_words(folder, encoder, config)
    try:
        model = filled(lambda: T5(**config), _fill_from(path), dtype)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split("\n")[1:2]).strip()[:150] or str(error)[:150]
        raise BadInput(f"{path}: does not fit config.json beside it ({reason}); the files are of different runs, or "
                       "the run has not ended yet") from None
    return Finetuned(model.eval(), encoder, (), settings)


def _fill_from(path):
    """Return the function for `filled` that loads all parameters from a file of a run."""
    def fill(model):
        load_state_dict(model, load_tensors(path, mapped=True))
        return []
    return fill


def load_released_t5(folder: str, size: str | None = None, dtype: torch.dtype | None = None) -> Finetuned:
    """Return a released T5 as load_finetuned does.

    Args:
        folder: with vocabulary and checkpoint, see load_t5_pretrained_model. size: a key of T5_CONFIGS; None: what
            config.json says. dtype: of the parameters; None: float32.
    Raises:
        MissingInput, BadInput: a file is not there or damaged, or they do not belong together.
    """
    encoder, config = SentencePieceEncoder.from_folder(folder), T5_CONFIGS[size] if size else read_t5_config(folder)
    _require_words(folder, encoder, config)
    model = filled(lambda: T5(**config), lambda model: load_t5_pretrained_model(model, folder)["fresh"], dtype)
    return Finetuned(model.eval(), encoder, (), RELEASED)


def _require_words(folder, encoder, config):
    if encoder.n_tokens > config["enc_num_tokens"]:
        raise BadInput(f"{folder}: the vocabulary has {encoder.n_tokens} ids with the sentinels, but the model only "
                       f"{config['enc_num_tokens']}; the two do not belong together")
