"""Attention weights of every layer and head."""

import contextlib
from typing import NamedTuple

import torch
from torch import nn

from explore.batches import Batch, checked_batches
from explore.reading import hooks, reading, run_t5, shapes
from formats.errors import BadInput
from t5_pytorch import T5


class T5Attention(NamedTuple):
    """Attention weights of T5: encoder [l, b, h, s, s] and, where there was a target, decoder [l, b, h, t, t] and cross
    [l, b, h, t, s], from the target to the source."""

    encoder: torch.Tensor
    decoder: torch.Tensor | None
    cross: torch.Tensor | None

    def __repr__(self):
        return shapes(self)


def attention(model: nn.Module, texts: Batch, targets: Batch | None = None) -> torch.Tensor | T5Attention:
    """The attention weights of every layer and head: row i is how much position i takes from each position.

    Args:
        model, texts, targets: see hidden_states.
    Returns:
        GPT: [l, b, h, t, t]. T5: a T5Attention. Weights on padding are 0, but in the rows of padding itself, which mean
        nothing. Row i of a decoder is what predicts token i of the target; it reads the tokens before that one, with
        the start in front.
    Raises:
        BadInput: see hidden_states; or a layer's attention is not as we wrote it.
    """
    texts, targets = checked_batches(model, texts, targets)
    if not isinstance(model, T5):
        transformer = getattr(model, "transformer", model)
        dropouts = {"layers": [getattr(getattr(block, "attn", None), "attn_dropout", None) for block in transformer.h]}
    else:
        dropouts = {"encoder": [block.layer[0].SelfAttention.dropout for block in model.encoder.block]}
        if targets:
            dropouts["decoder"] = [block.layer[0].SelfAttention.dropout for block in model.decoder.block]
            dropouts["cross"] = [block.layer[1].EncDecAttention.dropout for block in model.decoder.block]
    weights = {name: [] for name in dropouts}
    if any(part is None for parts in dropouts.values() for part in parts):
        raise BadInput("a layer has no attention of ours (attn.attn_dropout), so that its weights cannot be read")
    with reading(model), contextlib.ExitStack() as stack:
        for name, parts in dropouts.items():
            stack.enter_context(hooks([(part, weights[name]) for part in parts], before=True))
        if isinstance(model, T5):
            run_t5(model, texts, targets)
        else:
            transformer(texts.x)
    for name, parts in dropouts.items():
        if len(weights[name]) != len(parts):
            raise BadInput(f"{len(weights[name])} of {len(parts)} layers ({name}) passed their attention weights "
                           "through dropout; expected attention as we wrote it")
    stacked = {name: torch.stack(parts) for name, parts in weights.items()}
    if isinstance(model, T5):
        return T5Attention(stacked["encoder"], stacked.get("decoder"), stacked.get("cross"))
    return stacked["layers"]
