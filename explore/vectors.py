"""Hidden states of every layer, and vectors of texts."""

import contextlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from explore.batches import Batch, Encoder, batch, checked_batches, parts
from explore.reading import hooks, reading, run_t5, shapes
from formats.errors import BadInput
from t5_pytorch import T5


class T5States(NamedTuple):
    """Hidden states of T5: encoder [l + 1, b, s, d] and, where there was a target, decoder [l + 1, b, t, d]."""

    encoder: torch.Tensor
    decoder: torch.Tensor | None

    def __repr__(self):
        return shapes(self)


def means(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of each text over its tokens, without padding.

    Args:
        states: [..., b, t, d]; mask: bool [b, t].
    Returns:
        [..., b, d].
    Raises:
        BadInput: the shapes do not belong together, or a text has no token.
    """
    if states.shape[-3:-1] != mask.shape:
        raise BadInput(f"states are {list(states.shape)} and mask is {list(mask.shape)}, expected [..., b, t, d] and "
                       "[b, t]")
    if not mask.any(1).all():
        raise BadInput(f"mask is False everywhere in row {int((~mask.any(1)).int().argmax())}; a mean needs a token")
    return states.where(mask[..., None], 0).sum(-2) / mask.sum(-1, keepdim=True).to(states.dtype)


def similarities(vectors: torch.Tensor) -> torch.Tensor:
    """Cosines between all pairs of vectors, [n, d] -> [n, n]."""
    vectors = F.normalize(vectors, dim=-1)
    return vectors @ vectors.T                                                  # [n, d] x [d, n] -> [n, n]


def sentence_vectors(model: nn.Module, encoder: Encoder, texts: list[str], layer: int = -1,
                     n_batch: int = 32) -> torch.Tensor:
    """A vector for each text: the mean over its tokens of a layer's hidden states (T5: the encoder's).

    Args:
        model, encoder, texts: see batch. layer: see hidden_states; 0 the embeddings, -1 the last layer.
        n_batch: texts at a time.
    Returns:
        [n, d], on the CPU.
    """
    vectors = []
    for part in parts(texts, n_batch):
        some = batch(model, encoder, part)
        states = hidden_states(model, some)
        vectors.append(means((states.encoder if isinstance(model, T5) else states)[layer], some.mask).cpu())
    return torch.cat(vectors)


def hidden_states(model: nn.Module, texts: Batch, targets: Batch | None = None) -> torch.Tensor | T5States:
    """The hidden states of every layer.

    Args:
        model: see batch. texts: a Batch, or its x; then GPT's has no padding, and T5's is where PAD stands.
        targets: for a T5, what its decoder predicts, likewise; it reads them shifted right.
    Returns:
        GPT: [l + 1, b, t, d]: the embeddings, then what each block returns. T5: a T5States; its last ones are those
        after the final norm, which is what the next part of the model is given.
    Raises:
        BadInput: a target is given to a GPT, or ids do not fit the model.
    """
    texts, targets = checked_batches(model, texts, targets)
    if not isinstance(model, T5):
        transformer, states = getattr(model, "transformer", model), []
        with reading(model), hooks([(transformer.h[0], states)] if len(transformer.h) else [], before=True), \
                hooks([(block, states) for block in transformer.h]):
            last = transformer(texts.x)
        return torch.stack(states or [last])
    states = {}
    with reading(model), contextlib.ExitStack() as stack:
        for name, part in (("encoder", model.encoder), ("decoder", model.decoder)):
            states[name] = []
            stack.enter_context(hooks([(part.block[0], states[name])], before=True))
            stack.enter_context(hooks([(block, states[name]) for block in part.block[:-1]]))
            stack.enter_context(hooks([(part, states[name])]))
        run_t5(model, texts, targets)
    return T5States(torch.stack(states["encoder"]), torch.stack(states["decoder"]) if targets else None)
