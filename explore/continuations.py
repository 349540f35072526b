"""What a model writes: GPT's continuations, and T5's answers with their scores."""

import numpy as np
import pandas as pd
import torch
from torch import nn

import fast.t5
from explore.batches import Batch, Encoder, batch, checked_batches
from explore.probabilities import require_lm
from formats.errors import BadInput
from generate import generate_gpt
from t5_pytorch import T5


def continue_batch(model: nn.Module, texts: Batch, n_tokens: int, **sampling) -> torch.Tensor:
    """Continue each text of a padded batch from its own end.

    Args:
        model: a GPT. texts: see hidden_states.
        sampling: temperature, top_k, top_p, generator of generate.generate_gpt; greedy by default.
    Returns:
        int64 [b, n_tokens], the new tokens.
    """
    require_lm(model)
    texts, _ = checked_batches(model, texts, None)
    lengths, new = texts.mask.sum(1), texts.x.new_zeros(len(texts.x), n_tokens)
    for length in lengths.unique().tolist():  # rows of one length go on together, the same as each alone
        rows = lengths == length
        new[rows] = generate_gpt(model, texts.x[rows, :length, 0], n_tokens, **sampling)
    return new


def continue_texts(model: nn.Module, encoder: Encoder, texts: list[str], n_tokens: int = 20, **sampling) -> list[str]:
    """Return each text with its continuation by n_tokens tokens, in the lower-cased form that GPT reads and writes.

    Args:
        model: a GPT. encoder, texts: see batch. sampling: see continue_batch.
    """
    require_lm(model)
    some = batch(model, encoder, texts)
    new = continue_batch(model, some, n_tokens, **sampling).tolist()
    old = [row[:n] for row, n in zip(some.x[..., 0].tolist(), some.mask.sum(1).tolist(), strict=True)]
    return [encoder.decode([*row, *ids]) for row, ids in zip(old, new, strict=True)]


def answers(model: T5, encoder: Encoder, texts: list[str],
            n_best: int = 1, beams: int = 4, max_length: int | None = None,
            alpha: float = 0.6) -> pd.DataFrame:
    """The best answers of a T5 to each text, by beam search.

    Args:
        model: a T5. encoder, texts: see batch.
        n_best: answers for each text. beams: hypotheses that are kept, at least n_best.
        max_length, alpha: see t5_decoding.beam_search; max_length None is as many tokens as the longest text has.
    Returns:
        a table with the columns text, answer and score, the log-probability over the length penalty; for each text
        from the best one down.
    """
    if not isinstance(model, T5):
        raise BadInput(f"model is {type(model).__name__}, expected a T5; a GPT continues texts: continue_texts")
    some = batch(model, encoder, texts)
    ids, scores = fast.t5.beam_search(model, some.x, some.mask, max_length, max(beams, n_best), alpha, n_best=n_best,
                                      return_scores=True)
    ids, scores = ids.view(len(texts), n_best, -1).tolist(), scores.view(len(texts), n_best).tolist()
    return pd.DataFrame([(text, encoder.decode(row), score)
                         for text, rows, of_rows in zip(texts, ids, scores, strict=True)
                         for row, score in zip(rows, of_rows, strict=True) if score > -np.inf],
                        columns=["text", "answer", "score"])
