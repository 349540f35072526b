"""What the fast functions know: the modules of the papers' text exactly as they are written.

A fast function reads parameters past the modules' own forwards. Where a module bears a hook, is subclassed, wrapped,
replaced, parametrised, sharded or compiled, or has a method of its own, it means more than the function knows, and
the plain text runs. So it does under torch.func's transforms, a tracer or compiler, and autocast to float16.
"""

import types

import torch
import torch.nn as nn

import model_pytorch as gpt
import t5_pytorch as t5
from formats.errors import warn_once

HEADS = (gpt.MultipleChoiceHead, gpt.ClfHead, gpt.SimilarityHead)

# class -> {child: the class it has to be of, or several}; "*" stands for every child
CHILDREN = {
    nn.Dropout: {}, nn.Embedding: {}, nn.Linear: {},
    gpt.LayerNorm: {}, gpt.Conv1D: {}, gpt.TiedDecoder: {},
    gpt.Attention: {"c_attn": gpt.Conv1D, "c_proj": gpt.Conv1D, "attn_dropout": nn.Dropout,
                    "resid_dropout": nn.Dropout},
    gpt.MLP: {"c_fc": gpt.Conv1D, "c_proj": gpt.Conv1D, "dropout": nn.Dropout},
    gpt.Block: {"attn": gpt.Attention, "ln_1": gpt.LayerNorm, "mlp": gpt.MLP, "ln_2": gpt.LayerNorm},
    gpt.TransformerModel: {"embed": nn.Embedding, "embd_dropout": nn.Dropout, "h": (nn.ModuleList, gpt.Block)},
    gpt.LMHead: {"decoder": gpt.TiedDecoder},
    **{head: {"dropout": nn.Dropout, "linear": nn.Linear} for head in HEADS},
    gpt.LMModel: {"transformer": gpt.TransformerModel, "lm_head": gpt.LMHead},
    gpt.DoubleHeadModel: {"transformer": gpt.TransformerModel, "lm_head": gpt.LMHead, "task_head": HEADS},
    t5.SequenceDropout: {}, t5.Dense: {}, t5.RMSNorm: {},
    t5.Attention: {"q": t5.Dense, "k": t5.Dense, "v": t5.Dense, "o": t5.Dense, "dropout": t5.SequenceDropout,
                   "relative_attention_bias": nn.Embedding},
    t5.DenseReluDense: {"wi": t5.Dense, "wi_0": t5.Dense, "wi_1": t5.Dense, "wo": t5.Dense,
                        "dropout": t5.SequenceDropout},
    t5.SelfAttentionLayer: {"layer_norm": t5.RMSNorm, "SelfAttention": t5.Attention, "dropout": t5.SequenceDropout},
    t5.CrossAttentionLayer: {"layer_norm": t5.RMSNorm, "EncDecAttention": t5.Attention, "dropout": t5.SequenceDropout},
    t5.FeedForwardLayer: {"layer_norm": t5.RMSNorm, "DenseReluDense": t5.DenseReluDense, "dropout": t5.SequenceDropout},
    t5.Block: {"layer": (nn.ModuleList, (t5.SelfAttentionLayer, t5.CrossAttentionLayer, t5.FeedForwardLayer))},
    t5.Stack: {"block": (nn.ModuleList, t5.Block), "final_layer_norm": t5.RMSNorm, "dropout": t5.SequenceDropout,
               "embedding": nn.Embedding, "logits": t5.Dense},
    t5.T5: {"shared": nn.Embedding, "encoder": t5.Stack, "decoder": t5.Stack},
}


def _methods(kind):
    """The methods of a class that the papers' text writes, and its forward, by name."""
    written = (part for part in kind.__mro__ if part.__module__ in (gpt.__name__, t5.__name__))
    names = {name for part in written for name, value in vars(part).items()
             if isinstance(value, types.FunctionType) and not name.startswith("__")}
    return {name: getattr(kind, name) for name in names | {"forward"}}


METHODS = {kind: _methods(kind) for kind in CHILDREN}  # as they were when this module was imported
ACTIVATIONS = tuple(gpt.ACT_FNS.values())              # likewise
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def knows(model):
    """Whether every module of a GPT or T5 is as written; if not, say once which one is not, and why.

    Args:
        model: an LMModel, DoubleHeadModel, TransformerModel or T5, or what took its place.
    """
    found = "a hook for all modules is registered" if nn.modules.module._has_any_global_hook() else \
        _stranger(model, type(model).__name__, type(model))
    if found is None and (torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_transformed()):
        return False
    if found is None and _autocasts_to_float16(model):
        found = "autocast is to float16, whose range is too small for the fast loss"
    if found is not None:
        warn_once(f"{found}; the plain text runs in place of the fast functions (same numbers, slower)")
    return found is None


def _is_transformed():
    """Whether this runs within vmap, grad or another transform of torch.func, where tensors have no values."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _autocasts_to_float16(model):
    device = next(model.parameters()).device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def _stranger(module, name, kinds):
    """Return what is not as written in a module that ought to be of one of some classes, or None."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    kind = type(module)
    if kind not in kinds or kind not in CHILDREN:
        return f"{name} is a {kind.__name__}, which the fast functions do not know"
    state = vars(module)
    if any(state[hooks] for hooks in HOOKS):
        return f"{name} bears a hook"
    for method, written in METHODS[kind].items():
        if method in state or getattr(kind, method) is not written:
            return f"{name} has a {method} of its own"
    if module._compiled_call_impl is not None:
        return f"{name} is compiled"
    for parameter, value in module._parameters.items():
        if type(value) not in (nn.Parameter, type(None)):
            return f"the parameter {name}.{parameter} is a {type(value).__name__}"
        if value is not None and value.dtype == torch.float16:
            return f"the parameter {name}.{parameter} is float16"
    return _unusual_setting(module, name) or _strange_child(module, name, CHILDREN[kind])


def _unusual_setting(module, name):
    """Return the attribute of a known module that has a value the fast functions do not know, or None."""
    if isinstance(module, gpt.MLP) and module.act not in ACTIVATIONS:
        return f"{name} has an activation of its own"
    if isinstance(module, nn.Dropout) and module.p >= 1:
        return f"{name} drops everything"
    if isinstance(module, t5.T5) and (getattr(module.encoder, "is_decoder", False),
                                      getattr(module.decoder, "is_decoder", True)) != (False, True):
        return f"{name} has a stack that changed its is_decoder"
    if isinstance(module, nn.Embedding) and (module.padding_idx is not None or module.max_norm is not None
                                             or module.sparse or module.scale_grad_by_freq):
        return f"{name} is an embedding with options"
    if isinstance(module, (gpt.LMModel, gpt.DoubleHeadModel)) and isinstance(module.lm_head, gpt.LMHead) \
            and getattr(module.lm_head.decoder, "weight", None) is not getattr(module.transformer.embed, "weight", 0):
        return f"{name}.lm_head.decoder has a weight of its own"
    return None


def _strange_child(module, name, expected):
    """Return what is not as written among a module's children, or None."""
    for child_name, child in module._modules.items():
        full = f"{name}.{child_name}"
        kinds = expected.get(child_name)
        if kinds is None:
            return f"{full} is no part of a {type(module).__name__}"
        if isinstance(kinds, tuple) and kinds[0] is nn.ModuleList:
            if type(child) is not nn.ModuleList:
                return f"{full} is a {type(child).__name__}, expected a ModuleList"
            parts = [(f"{full}.{number}", part, kinds[1]) for number, part in child._modules.items()]
        else:
            parts = [(full, child, kinds)]
        found = next((found for part in parts if (found := _stranger(part[1], part[0], part[2]))), None)
        if found is not None:
            return found
    return None
