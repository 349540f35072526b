"""What --precision means: bfloat16 for the matrix products of training, and for all of an evaluation.

Training runs under autocast: weights and optimizer stay float32. What reads the weights only (evaluation, prediction,
decoding) runs a copy of the model whose weights are converted once, or a model that was loaded in bfloat16: under
autocast each product would look up its weight's conversion, and what lies between two products would go through memory
in float32. Norms and softmax compute in float32 inside, as everywhere; losses and probabilities are taken in float32,
of logits that bfloat16 rounds.
"""

import copy

import torch
import torch.nn as nn


def autocast(device: torch.device, precision: str, keep_weights: bool = True) -> torch.autocast:
    """Return the context in which a forward pass of training runs for --precision.

    keep_weights: keep the converted weights until one_update ends. Of a model that is shared out nothing may stay.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=keep_weights)


def dtype_of(precision: str) -> torch.dtype | None:
    """Return the type of the weights of a model that is only read, as the `dtype` of what loads one."""
    return torch.bfloat16 if precision == "bf16" else None


def one_update(device: torch.device) -> torch.autocast:
    """Return a context around the towers of one update, in which autocast converts each weight once for all of them.

    autocast forgets its conversions where the outermost context ends; this one does nothing else. It has to end before
    the optimizer changes the weights. The backward passes may run in it: what converts a weight keeps nothing that
    one of them would free.
    """
    return torch.autocast(device.type, enabled=False)


def for_evaluation(model: nn.Module, precision: str) -> nn.Module:
    """Return what evaluates a model in --precision: the model itself in fp32, in bf16 a copy with weights in bfloat16.

    What was loaded in bfloat16, see dtype_of, is not copied. Else the model stays as it is, and the copy shares no
    memory with it. What the model ties stays tied. A model that is shared out (--shard) is evaluated in fp32.
    """
    if precision != "bf16" or all(p.dtype == torch.bfloat16 or hasattr(p, "to_local") for p in model.parameters()):
        return model
    short = {id(p): nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, short)  # which takes these for the parameters
