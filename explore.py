"""Look inside GPT-1 and T5: continuations, next words, vectors, attention, surprisal, answers with scores.

    model, encoder = load_gpt("model/")                    # or load_t5; a folder, or a name on the Hub
    model, encoder, class_names, _ = load_finetuned("save/NAME")               # what train.py made; predict.py uses it
    continue_texts(model, encoder, ["The cat sat on"], n_tokens=20)
    next_words(model, encoder, ["The cat sat on"])
    surprisal(model, encoder, ["The cat sat on the mat."])
    sentence_vectors(model, encoder, ["A cat sat.", "A dog ran."])

    texts = batch(model, encoder, ["A cat sat.", "A dog ran away."])
    hidden_states(model, texts), attention(model, texts), token_log_probs(model, texts)

The functions run the papers' text, model_pytorch.py and t5_pytorch.py, and read what passes through its modules.
Nothing is dropped, whatever the model's mode, which stays as it was; there are no gradients. Padding stands on the
right and changes nothing. analysis.py draws what they return.

Letters in the shape comments: those of model_pytorch.py and t5_pytorch.py, and l layers.
"""

import contextlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

import fast.t5
from formats.errors import BadInput
from formats.hub import local_folder
from generate import generate_gpt, with_positions
from loss import at_least_float32
from model_pytorch import LMModel, TransformerModel
from t5_decoding import evaluation_mode
from t5_pytorch import EOS, PAD, T5, shift_right
from text_utils import SentencePieceEncoder, TextEncoder
from training.finetuned import Finetuned, load_finetuned

__all__ = ["Batch", "Finetuned", "T5Attention", "T5States", "answers", "attention", "batch", "batch_of_ids",
           "continue_batch", "continue_texts", "hidden_states", "load_finetuned", "load_gpt", "load_t5", "means",
           "next_words", "sentence_vectors", "similarities", "surprisal", "token_log_probs"]


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


class T5States(NamedTuple):
    """Hidden states of T5: encoder [l + 1, b, s, d] and, where there was a target, decoder [l + 1, b, t, d]."""

    encoder: torch.Tensor
    decoder: torch.Tensor | None

    def __repr__(self):
        return _shapes(self)


class T5Attention(NamedTuple):
    """Attention weights of T5: encoder [l, b, h, s, s] and, where there was a target, decoder [l, b, h, t, t] and cross
    [l, b, h, t, s], from the target to the source."""

    encoder: torch.Tensor
    decoder: torch.Tensor | None
    cross: torch.Tensor | None

    def __repr__(self):
        return _shapes(self)


def _shapes(tensors):
    parts = (f"{name}={None if value is None else list(value.shape)}" for name, value in tensors._asdict().items())
    return f"{type(tensors).__name__}({', '.join(parts)})"


def load_gpt(name: str, revision: str | None = None,
             dtype: torch.dtype | None = None) -> tuple[LMModel, TextEncoder]:
    """Return a GPT in evaluation mode, and its encoder.

    Args:
        name: a folder in OpenAI's format or the Hub's, or `owner/name` of a repository on the Hub.
        revision: branch, tag or commit of the repository.
        dtype: of the parameters; torch.bfloat16 takes half of the memory. None: float32.
    Raises:
        MissingInput, BadInput: see LMModel.from_pretrained and TextEncoder.from_folder.
    """
    folder = local_folder(name, revision)
    return LMModel.from_pretrained(folder, dtype=dtype), TextEncoder.from_folder(folder)


def load_t5(name: str, revision: str | None = None,
            dtype: torch.dtype | None = None) -> tuple[T5, SentencePieceEncoder]:
    """Return a T5 in evaluation mode, and its encoder; as load_gpt.

    Raises:
        MissingInput, BadInput: see T5.from_pretrained and SentencePieceEncoder.from_folder.
    """
    folder = local_folder(name, revision)
    return T5.from_pretrained(folder, dtype=dtype), SentencePieceEncoder.from_folder(folder)


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
    return batch_of_ids(model, rows)._replace(tokens=[_pieces(encoder, row) for row in rows])


def batch_of_ids(model: nn.Module, rows: list[list[int]]) -> Batch:
    """As batch, of lists of token ids. A T5's get no EOS here.

    Raises:
        BadInput: no rows, or one that does not fit the model, with its number.
    """
    if not len(rows):
        raise BadInput("there are no texts; give at least one")
    n_words, n_ctx = _sizes(model)
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
    for part in _parts(texts, n_batch):
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
    texts, targets = _checked(model, texts, targets)
    if not isinstance(model, T5):
        transformer, states = getattr(model, "transformer", model), []
        with _reading(model), _hooks([(transformer.h[0], states)] if len(transformer.h) else [], before=True), \
                _hooks([(block, states) for block in transformer.h]):
            last = transformer(texts.x)
        return torch.stack(states or [last])
    states = {}
    with _reading(model), contextlib.ExitStack() as stack:
        for name, part in (("encoder", model.encoder), ("decoder", model.decoder)):
            states[name] = []
            stack.enter_context(_hooks([(part.block[0], states[name])], before=True))
            stack.enter_context(_hooks([(block, states[name]) for block in part.block[:-1]]))
            stack.enter_context(_hooks([(part, states[name])]))
        _run_t5(model, texts, targets)
    return T5States(torch.stack(states["encoder"]), torch.stack(states["decoder"]) if targets else None)


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
    texts, targets = _checked(model, texts, targets)
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
    with _reading(model), contextlib.ExitStack() as stack:
        for name, parts in dropouts.items():
            stack.enter_context(_hooks([(part, weights[name]) for part in parts], before=True))
        if isinstance(model, T5):
            _run_t5(model, texts, targets)
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
    texts, targets = _checked(model, texts, targets)
    if isinstance(model, T5):
        if targets is None:
            raise BadInput("targets is None; a T5 gives log-probabilities of targets: give a batch of them")
        with _reading(model):
            log_p = at_least_float32(_run_t5(model, texts, targets)).log_softmax(-1)            # [b, t, v]
        return log_p.gather(-1, targets.x[..., None])[..., 0].masked_fill(~targets.mask, torch.nan)
    _require_lm(model)
    ids = texts.x[..., 0]
    with _reading(model):
        h = model.transformer(texts.x)
        found = [_word_logits(model, states[:-1]).log_softmax(-1).gather(-1, row[1:, None])[:, 0]
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
    for first, part in enumerate(_parts(texts, n_batch)):
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
    _require_lm(model)
    some = batch(model, encoder, texts)
    n_words = _sizes(model)[0]
    if not 1 <= n <= n_words:
        raise BadInput(f"n is {n}, expected 1 to {n_words}, the words of the model")
    with _reading(model):
        h = model.transformer(some.x)
        h = h[torch.arange(len(h), device=h.device), some.mask.sum(1) - 1]      # [b, t, d] -> [b, d], each row's end
        values, ids = _word_logits(model, h).softmax(-1).topk(n)                # [b, n]
    rows = [(text, token, p) for text, row, of_row in zip(texts, ids.tolist(), values.tolist(), strict=True)
            for token, p in zip(_pieces(encoder, row), of_row, strict=True)]
    return pd.DataFrame(rows, columns=["text", "token", "probability"])


def continue_batch(model: nn.Module, texts: Batch, n_tokens: int, **sampling) -> torch.Tensor:
    """Continue each text of a padded batch from its own end.

    Args:
        model: a GPT. texts: see hidden_states.
        sampling: temperature, top_k, top_p, generator of generate.generate_gpt; greedy by default.
    Returns:
        int64 [b, n_tokens], the new tokens.
    """
    _require_lm(model)
    texts, _ = _checked(model, texts, None)
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
    _require_lm(model)
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


def _sizes(model):
    """Return (rows of tokens, positions) of a model; a T5 has no limit of positions: None."""
    if isinstance(model, T5):
        return model.logits_weight().size(0) if model.tie_token_emb else model.encoder.embedding.num_embeddings, None
    transformer = getattr(model, "transformer", model)
    if not isinstance(transformer, TransformerModel):
        raise BadInput(f"model is {type(model).__name__}, expected a GPT (LMModel, DoubleHeadModel, TransformerModel) "
                       "or a T5")
    return transformer.n_vocab - transformer.n_ctx, transformer.n_ctx


def _pieces(encoder, ids):
    """Return the pieces of some ids, as they are read: without the mark of a word's end."""
    if isinstance(encoder, SentencePieceEncoder):
        return [encoder.model.id_to_piece(i) if i < encoder.n_tokens else f"<{i}>" for i in ids]
    names = {i: piece for piece, i in encoder.encoder.items()}
    return [names.get(i, f"<{i}>").removesuffix("</w>") for i in ids]


def _parts(texts, n):
    """Cut a list of texts in parts of n."""
    if isinstance(texts, str):
        raise BadInput(f"texts is the string {texts[:40]!r}, expected a list of strings; for one text give [text]")
    texts = list(texts)
    return [texts[i:i + n] for i in range(0, max(len(texts), 1), n)]


def _checked(model, texts, targets):
    """Return two Batches (or None); what is a tensor becomes one. See hidden_states."""
    _sizes(model)  # refuses what is no model of ours
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


def _word_logits(model, h):
    """The language-model head's logits of words: h [..., d] -> [..., words], in float32 at least."""
    return at_least_float32(model.lm_head.decoder(h)[..., :_sizes(model)[0]])


def _require_lm(model):
    """Raise BadInput unless a model is a GPT with a language-model head."""
    if not hasattr(model, "transformer") or not hasattr(model, "lm_head"):
        raise BadInput(f"model is {type(model).__name__}, expected a GPT with a language-model head, such as LMModel")


def _run_t5(model, texts, targets):
    """Run a T5 on sources and, where there are some, targets; return the logits [b, t, v], or None."""
    if targets is None:
        model.encode(texts.x, texts.mask)
        return None
    return model(texts.x, shift_right(targets.x), texts.mask, targets.mask)


@contextlib.contextmanager
def _reading(model):
    """Evaluation mode without gradients; what is computed are ordinary tensors."""
    with evaluation_mode(model), torch.inference_mode(False), torch.no_grad():
        yield


@contextlib.contextmanager
def _hooks(modules_and_lists, before=False):
    """Append what passes each module to its list: what it returns or, with `before`, what it is given."""
    handles = []
    try:
        for module, values in modules_and_lists:
            def take(module, args, *returned, values=values):
                values.append(returned[0] if returned else args[0])
            handles.append(module.register_forward_pre_hook(take) if before else module.register_forward_hook(take))
        yield
    finally:
        for handle in handles:
            handle.remove()
