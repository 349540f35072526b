"""The weights of a GPT between the released files and a model: loading, and writing in OpenAI's form or the Hub's.

gpt_files knows the files; this knows which parameter of model_pytorch.TransformerModel each array is, and asks the
model for its parameters and sizes only. model_pytorch offers the same functions.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from formats.errors import BadInput, warn
from formats.gpt_files import (
    ACTIVATIONS,
    Released,
    gpt_config,
    layer_names,
    read_pretrained,
    released_shapes,
    write_hub_model,
    write_released,
)
from formats.mapped import copy_into
from formats.tensor_files import Report

__all__ = ["export_hub_model", "export_openai_model", "load_openai_pretrained_model", "load_released",
           "not_loaded", "read_with_settings", "tf_name"]


def tf_name(name: str) -> str:
    """Return the TF variable of a parameter of TransformerModel: 'h.0.attn.c_attn.w' -> 'model/h0/attn/c_attn/w:0'."""
    if name == "embed.weight":
        return "model/we:0"
    return "model/" + name.replace("h.", "h", 1).replace(".", "/") + ":0"


def load_openai_pretrained_model(model: nn.Module, n_ctx: int = -1, n_special: int = -1, n_transfer: int = 12,
                                 n_embd: int = 768, path: str = "./model/", path_names: str = "./",
                                 verbose: bool = True, released: Released | None = None) -> Report:
    """Copy released weights into a TransformerModel (or into the transformer of an LMModel or DoubleHeadModel).

    `we` becomes [tokens; n_special fresh rows N(0, 0.02); the first n_ctx positions], as in the original's train.py.
    The fresh rows are drawn from NumPy's global generator, again as there: np.random.seed fixes them.

    Args:
        n_ctx: positions to load; -1 for all.
        n_special: rows between tokens and positions; -1 for none.
        n_transfer: layers to load besides `we`; 0 loads `we` alone, -1 loads nothing.
        n_embd: the width expected.
        path: a folder in the released format, or a folder or file with the Hub's model.safetensors or
            pytorch_model.bin.
        path_names: ignored; the 2018 port kept a list of names there.
        verbose: print one line on what was loaded.
        released: what read_pretrained(path) returned, where it was called already; its arrays are gone afterwards.
    Returns:
        {'loaded': [TF names], 'fresh': [TF names], 'left_out': [names in the file]}: the first two together are
        every variable of the transformer; the last are the heads that a file of transformers' may have. What is
        printed of it are their numbers.
    Raises:
        MissingInput, BadInput: see read_pretrained; or model and weights do not fit, in the heads and the activation
            that config.json gives too. The model is then unchanged.
    """
    model = getattr(model, "transformer", model)
    n_special = max(n_special, 0)
    if n_transfer < -1 or n_transfer > len(model.h):
        raise BadInput(f"n_transfer is {n_transfer}, allowed is -1 to {len(model.h)}, the model's n_layer")
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    loaded, left_out = [], ()
    if n_transfer >= 0:
        released = read_pretrained(path) if released is None else released
        weights, positions, n_vocab, width, layers = released[:5]
        left_out = released.left_out
        if n_transfer > 0:
            _require_blocks(model)
            _require_heads(model, released, path)
        n_ctx = positions if n_ctx < 0 else n_ctx
        if n_transfer > layers:
            raise BadInput(f"n_transfer is {n_transfer}, allowed is -1 to {layers}, the layers in {path}")
        if not width == n_embd == model.embed.weight.size(1):
            raise BadInput(f"n_embd is {n_embd} (the model's is {model.embed.weight.size(1)}), but the weights in "
                           f"{path} have {width}; give n_embd {width}, or n_transfer -1 for none of them")
        if n_ctx > positions:
            raise BadInput(f"n_ctx is {n_ctx}, allowed is at most {positions}, the positions in {path}")
        rows = n_vocab + n_special + n_ctx
        if model.embed.weight.size(0) != rows:
            raise BadInput(f"the model's we has {model.embed.weight.size(0)} rows, but {path} with n_special "
                           f"{n_special} and n_ctx {n_ctx} gives {n_vocab} + {n_special} + {n_ctx} = {rows}; "
                           f"make the model with vocab={rows}")
        special = (np.random.randn(n_special, width) * 0.02).astype(np.float32)
        we = parameters["embed.weight"]
        pairs = [(we[:n_vocab], weights.pop("tokens")), (we[n_vocab:rows - n_ctx], torch.from_numpy(special)),
                 (we[rows - n_ctx:], weights.pop("positions")[:n_ctx])]
        loaded = [name for name in parameters  # but for those that someone added to a block
                  if name.startswith("h.") and int(name.split(".")[1]) < n_transfer and name in weights]
        pairs += [(parameters[name], weights.pop(name)) for name in loaded]
        weights.clear()
        copy_into(pairs)
        loaded = ["embed.weight", *loaded]
    fresh = [name for name in parameters if name not in loaded]
    if verbose:
        source = f"from {path}" if loaded else "(n_transfer -1)"
        print(f"loaded {len(loaded)} of {len(parameters)} variables {source}; "
              f"fresh: {n_special if loaded else 'all'} special rows"
              + (f" and {len(fresh)} variables, {tf_name(fresh[0])} to {tf_name(fresh[-1])}" if fresh else "")
              + (f"; left out: {', '.join(left_out)[:300]}" if left_out else ""))
    return Report(loaded=[tf_name(name) for name in loaded], fresh=[tf_name(name) for name in fresh],
                  left_out=list(left_out))


def not_loaded(model: nn.Module, report: Report) -> list[str]:
    """Return the names of a model's parameters that load_openai_pretrained_model did not write, by what it returned."""
    loaded = set(report["loaded"])
    return [name for name, _ in model.named_parameters() if tf_name(name.removeprefix("transformer.")) not in loaded]


def read_with_settings(path: str) -> tuple[Released, dict]:
    """Return what read_pretrained returns of a path, and the settings of a model of its sizes by name.

    Raises:
        MissingInput, BadInput: see read_pretrained; or the files do not say how many heads there are.
    """
    released = read_pretrained(path)
    if released.n_head is None:
        raise BadInput(f"{path}: has no config.json, and its weights do not tell the number of heads (n_head) and the "
                       "activation (afn); write one, or make the model and call load_openai_pretrained_model")
    sizes = {name: getattr(released, name) for name in ("n_embd", "n_head", "n_layer", "afn")}
    return released, sizes | released.dropouts


def load_released(model: nn.Module, released: Released, path: str, n_special: int = 0) -> list[str]:
    """Copy all that a Released model has into an LMModel or DoubleHeadModel of its sizes, a head of the Hub's too.

    Tensors that have no place in the model are named in a warning.

    Args:
        path: where it was read, for that line. n_special: rows between tokens and positions.
    Returns:
        names of the model's parameters that were not written.
    """
    report = load_openai_pretrained_model(model, n_special=n_special, n_transfer=released.n_layer,
                                          n_embd=released.n_embd, path=path, verbose=False, released=released)
    names, left_out, head = not_loaded(model, report), released.left_out, getattr(model, "task_head", None)
    if released.choice_head and getattr(head, "is_in_hub_files", False):
        head.linear.load_state_dict(released.choice_head)
        names = [name for name in names if not name.startswith("task_head.linear.")]
        left_out = [name for name in left_out if not name.startswith("multiple_choice_head.")]
    if left_out:
        warn(f"{path}: {', '.join(left_out)[:300]} left out, which this model does not have")
    return names


def _require_heads(model, released, path):
    """Raise BadInput where the model's heads or activation are not those that the released model has."""
    attn, mlp = model.h[0].attn, model.h[0].mlp
    if released.n_head is not None and getattr(attn, "n_head", released.n_head) != released.n_head:
        raise BadInput(f"n_head is {attn.n_head}, but the model in {path} has {released.n_head} heads; give n_head "
                       f"{released.n_head}")
    afn = getattr(mlp, "afn", None)
    if released.afn is not None and afn not in (None, released.afn):
        raise BadInput(f"afn is {afn}, but the model in {path} has {released.afn}; give afn {released.afn}")


def _require_blocks(model):
    """Refuse a TransformerModel with something else in the place of its blocks, such as the ablations' LSTM."""
    other = next((block for block in model.h if not hasattr(block, "attn")), None)
    if other is not None:
        raise BadInput(f"the model has a {type(other).__name__} in the place of its blocks, for which the format has "
                       "no names; ablations/lstm.py reads and writes an LSTM")


def _config_of(model, n_vocab, **others):
    """Return what config.json says of a TransformerModel whose first n_vocab rows of `we` are tokens."""
    attn, mlp = model.h[0].attn, model.h[0].mlp
    if getattr(mlp, "afn", None) is None:
        raise BadInput("the model has an activation of its own; the format knows "
                       f"{', '.join(dict.fromkeys(ACTIVATIONS.values()))}")
    dropouts = {"embd_pdrop": model.embd_dropout.p, "attn_pdrop": attn.attn_dropout.p,
                "resid_pdrop": attn.resid_dropout.p}
    return gpt_config(model.n_ctx, n_vocab, model.embed.weight.size(1), len(model.h), attn.n_head, mlp.afn,
                      **dropouts, **others)


def export_openai_model(model: nn.Module, path: str, n_special: int = 0) -> None:
    """Write a model in the released format: params_0.npy .. params_9.npy and params_shapes.json, and config.json.

    Special rows and heads have no place in the format and are left out. config.json says what it does not say: the
    number of attention heads and the activation.

    Args:
        model: a TransformerModel, LMModel or DoubleHeadModel.
        path: the folder, made if missing.
        n_special: rows of `we` between tokens and positions, not written.
    Raises:
        BadInput: the folder cannot be written.
    """
    model = getattr(model, "transformer", model)
    _require_blocks(model)
    we = model.embed.weight
    n_vocab = len(we) - model.n_ctx - n_special
    parameters = dict(model.named_parameters())
    values = [we[-model.n_ctx:], we[:n_vocab]]
    values += [parameters[name] for name in layer_names(len(model.h))]
    flat = torch.cat([v.detach().float().cpu().flatten() for v in values]).numpy()
    write_released(path, flat, released_shapes(model.n_ctx, n_vocab, we.size(1), len(model.h)),
                   _config_of(model, n_vocab))


def export_hub_model(model: nn.Module, path: str, encoder: Any) -> None:
    """Write a model as the Hub keeps it: config.json, model.safetensors, vocab.json, merges.txt, tokenizer.json.

    OpenAIGPTModel, OpenAIGPTLMHeadModel and, with a multiple-choice head, OpenAIGPTDoubleHeadsModel of transformers 4
    and 5 read it, and so does from_pretrained. Special tokens of the encoder become tokens like the others.

    Args:
        model: an LMModel, TransformerModel or DoubleHeadModel. Heads other than multiple choice are left out.
        path: the folder, made if missing.
        encoder: its TextEncoder, with as many pieces as the model has rows before the positions.
    Raises:
        BadInput: encoder and model do not belong together, or the folder cannot be written.
    """
    transformer, task_head = getattr(model, "transformer", model), getattr(model, "task_head", None)
    _require_blocks(transformer)
    we, parameters = transformer.embed.weight, dict(transformer.named_parameters())
    n_vocab = len(we) - transformer.n_ctx
    if sorted(encoder.encoder.values()) != list(range(n_vocab)):
        raise BadInput(f"the encoder has {len(encoder.encoder)} pieces, but the model has {n_vocab} rows before the "
                       "positions; the two do not belong together")
    head = dict(task_head.linear.named_parameters()) if getattr(task_head, "is_in_hub_files", False) else None
    architecture = "OpenAIGPTDoubleHeadsModel" if head else "OpenAIGPTLMHeadModel"
    arrays = {"positions": we[n_vocab:], "tokens": we[:n_vocab],
              **{name: parameters[name] for name in layer_names(len(transformer.h))}}
    write_hub_model(path, arrays, _config_of(transformer, n_vocab, architectures=[architecture]), encoder, head)
