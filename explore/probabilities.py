"""What a model expects: log-probabilities of tokens, surprisal, the next words."""

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from explore.batches import Batch, Encoder, batch, checked_batches, parts, pieces, sizes
from explore.reading import reading, run_t5
from formats.errors import BadInput
from loss import at_least_float32
from t5_pytorch import T5


def token_log_probs(model: nn.Module, texts: Batch, targets: Batch | None = None) -> torch.Tensor:
    """The log-probability of each token given those before it, in nats.

    Args:
        model: a GPT with a language-model head, or a T5. texts, targets: see hidden_states. A T5 needs targets, whose
            log-probabilities these are.
    Returns:
        float32 (or 64) [b, t]; NaN at padding, and at GPT's first token, which nothing predicts. GPT chooses among its
        words: a position has no probability.
    Raises:
        BadInput: see hidden_states.
    """
    texts, targets = checked_batches(model, texts, targets)
    if isinstance(model, T5):
        if targets is None:
            raise BadInput("targets is None; a T5 gives log-probabilities of targets: give a batch of them")
        with reading(model):
            log_p = at_least_float32(run_t5(model, texts, targets)).log_softmax(-1)            # [b, t, v]
        return log_p.gather(-1, targets.x[..., None])[..., 0].masked_fill(~targets.mask, torch.nan)
    require_lm(model)
    ids = texts.x[..., 0]
    with reading(model):
        h = model.transformer(texts.x)
        found = [word_logits(model, states[:-1]).log_softmax(-1).gather(-1, row[1:, None])[:, 0]
                 for states, row in zip(h, ids, strict=True)]                   # one text at a time: [t, v] is large
    log_p = F.pad(torch.stack(found), (1, 0), value=torch.nan)                  # [b, t - 1] -> [b, t]
    return log_p.masked_fill(~texts.mask, torch.nan)


def surprisal(model: nn.Module, encoder: Encoder, texts: list[str], n_batch: int = 32) -> pd.DataFrame:
    """The surprisal of each token of some texts: minus its log-probability given the tokens before it.

    Args:
        model: a GPT. encoder, texts: see batch. n_batch: texts at a time.
    Returns:
        a table with the columns text (its number), position, token, and surprisal in nats (divide by log 2 for bits);
        NaN for the first token of a text, which nothing predicts.
    """
    rows = []
    for first, part in enumerate(parts(texts, n_batch)):
        some = batch(model, encoder, part)
        values = -token_log_probs(model, some).cpu()
        rows += [(first * n_batch + i, j, token, values[i, j].item())
                 for i, tokens in enumerate(some.tokens) for j, token in enumerate(tokens)]
    return pd.DataFrame(rows, columns=["text", "position", "token", "surprisal"])


def next_words(model: nn.Module, encoder: Encoder, texts: list[str], n: int = 10) -> pd.DataFrame:
    """The most probable next tokens after each text.

    Args:
        model: a GPT. encoder, texts: see batch. n: tokens for each text.
    Returns:
        a table with the columns text, token and probability, from the most probable one down.
    Raises:
        BadInput: see batch; or n is not from 1 to the number of words.
    """
    require_lm(model)
    some = batch(model, encoder, texts)
    n_words = sizes(model)[0]
    if not 1 <= n <= n_words:
        raise BadInput(f"n is {n}, expected 1 to {n_words}, the words of the model")
    with reading(model):
        h = model.transformer(some.x)
        h = h[torch.arange(len(h), device=h.device), some.mask.sum(1) - 1]      # [b, t, d] -> [b, d], each row's end
        values, ids = word_logits(model, h).softmax(-1).topk(n)                 # [b, n]
    rows = [(text, token, p) for text, row, of_row in zip(texts, ids.tolist(), values.tolist(), strict=True)
            for token, p in zip(pieces(encoder, row), of_row, strict=True)]
    return pd.DataFrame(rows, columns=["text", "token", "probability"])


def word_logits(model, h):
    """The language-model head's logits of words: h [..., d] -> [..., words], in float32 at least."""
    return at_least_float32(model.lm_head.decoder(h)[..., :sizes(model)[0]])


def require_lm(model):
    """Raise BadInput unless a model is a GPT with a language-model head."""
    if not hasattr(model, "transformer") or not hasattr(model, "lm_head"):
        raise BadInput(f"model is {type(model).__name__}, expected a GPT with a language-model head, such as LMModel")
