"""Texts as a model takes them, and the checks that they fit it; see explore/__init__.py for the letters."""

from typing import NamedTuple

import torch
from torch import nn

from formats.errors import BadInput
from generate import with_positions
from model_pytorch import TransformerModel
from t5_pytorch import EOS, PAD, T5
from text_utils import SentencePieceEncoder, TextEncoder

Encoder = TextEncoder | SentencePieceEncoder


class Batch(NamedTuple):
    """Texts as a model takes them, padded on the right.

    Attributes:
        x: for GPT int64 [b, t, 2], token ids and position ids; for T5 int64 [b, t], token ids, each text with EOS.
        mask: bool [b, t], True at tokens, False at padding.
        tokens: for each text the list of its pieces, for pictures; empty where the batch was made of ids.
    """

    x: torch.Tensor
    mask: torch.Tensor
    tokens: list

    def __repr__(self):
        b, t = self.mask.shape
        return f"Batch({b} texts of {self.mask.sum(1).min()} to {t} tokens)"


def batch(model: nn.Module, encoder: Encoder, texts: list[str]) -> Batch:
    """Encode some texts for a model.

    Args:
        model: a GPT (LMModel, DoubleHeadModel, TransformerModel) or a T5. encoder: its encoder.
        texts: list of strings. A T5's targets are encoded like its sources.
    Raises:
        BadInput: no list of strings; a text without tokens (GPT) or with more tokens than the model has positions;
            encoder and model do not belong together.
    """
    rows = encoder.encode(texts, verbose=False)
    if isinstance(model, T5):
        rows = [[*row, EOS] for row in rows]
    return batch_of_ids(model, rows)._replace(tokens=[pieces(encoder, row) for row in rows])


def batch_of_ids(model: nn.Module, rows: list[list[int]]) -> Batch:
    """As batch, of lists of token ids. A T5's get no EOS here.

    Raises:
        BadInput: no rows, or one that does not fit the model, with its number.
    """
    if not len(rows):
        raise BadInput("there are no texts; give at least one")
    n_words, n_ctx = sizes(model)
    for number, row in enumerate(rows):
        if not len(row):
            raise BadInput(f"texts[{number}] has no tokens; give it at least one word, or leave it out")
        if n_ctx is not None and len(row) > n_ctx:
            raise BadInput(f"texts[{number}] has {len(row)} tokens, but the model has {n_ctx} positions (n_ctx); cut "
                           "it into several texts")
        if not 0 <= min(row) <= max(row) < n_words:
            raise BadInput(f"texts[{number}] has token ids from {min(row)} to {max(row)}, but the model's are 0 to "
                           f"{n_words - 1}; encoder and model do not belong together")
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])                  # [b, t]
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    device = next(model.parameters()).device
    x = ids if isinstance(model, T5) else with_positions(ids, 0, n_words)
    return Batch(x.to(device), mask.to(device), [])


def checked_batches(model, texts, targets):
    """Return two Batches (or None); what is a tensor becomes one. See hidden_states."""
    sizes(model)  # refuses what is no model of ours
    if targets is not None and not isinstance(model, T5):
        raise BadInput("targets are for a T5; a GPT has one text: give texts alone")

    def checked(given, name):
        if given is None or isinstance(given, Batch):
            return given
        if not isinstance(given, torch.Tensor) or given.dtype not in (torch.int32, torch.int64) \
                or given.dim() != (2 if isinstance(model, T5) else 3):
            found = f"{given.dtype} {list(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
            raise BadInput(f"{name} is {found}, expected a Batch (explore.batch makes it of texts), or int "
                           f"{'[b, t]' if isinstance(model, T5) else '[b, t, 2]'}")
        mask = given != PAD if isinstance(model, T5) else given.new_ones(given.shape[:2], dtype=torch.bool)
        return Batch(given.long(), mask, [])

    return checked(texts, "texts"), checked(targets, "targets")


def sizes(model):
    """Return (rows of tokens, positions) of a model; a T5 has no limit of positions: None."""
    if isinstance(model, T5):
        return model.logits_weight().size(0) if model.tie_token_emb else model.encoder.embedding.num_embeddings, None
    transformer = getattr(model, "transformer", model)
    if not isinstance(transformer, TransformerModel):
        raise BadInput(f"model is {type(model).__name__}, expected a GPT (LMModel, DoubleHeadModel, TransformerModel) "
                       "or a T5")
    return transformer.n_vocab - transformer.n_ctx, transformer.n_ctx


def pieces(encoder, ids):
    """Return the pieces of some ids, as they are read: without the mark of a word's end."""
    if isinstance(encoder, SentencePieceEncoder):
        return [encoder.model.id_to_piece(i) if i < encoder.n_tokens else f"<{i}>" for i in ids]
    names = {i: piece for piece, i in encoder.encoder.items()}
    return [names.get(i, f"<{i}>").removesuffix("</w>") for i in ids]


def parts(texts, n):
    """Cut a list of texts in parts of n."""
    if isinstance(texts, str):
        raise BadInput(f"texts is the string {texts[:40]!r}, expected a list of strings; for one text give [text]")
    texts = list(texts)
    return [texts[i:i + n] for i in range(0, max(len(texts), 1), n)]
